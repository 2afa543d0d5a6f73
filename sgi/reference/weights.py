"""Files of reference weights: state dicts as .npz (numpy) or .pt, .pth (PyTorch), read and written as dicts of numpy arrays.

Files are data: no pickled object is loaded. PyTorch is needed for .pt and .pth only, and imported only then.
"""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from training.errors import UserError

TORCH = (".pt", ".pth")
SUFFIXES = (".npz", *TORCH)
NESTED = ("model", "model_state_dict", "state_dict", "agent_state_dict")  # where training scripts keep a state dict
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
DEPTH = 4  # of such nesting at most


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The state dict in `path`, by its suffix. In an .npz file names may start with 'weights/', and then only these are read.

    Raises:
      UserError: no such file, damaged, another suffix, objects instead of arrays, PyTorch needed and missing.
    """
    path = Path(path)
    check_suffix(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix in TORCH:
        return _plain(_read_torch(path), path)
    arrays = read_npz(path)
    golden = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
    return _plain(golden or arrays, path)


def write(path: str | Path, weights: Mapping[str, np.ndarray]) -> None:
    """Write a flat state dict to `path`, in the format of its suffix. What was there is replaced."""
    path = Path(path)
    check_suffix(path)
    torch = _torch(path) if path.suffix in TORCH else None
    with atomic_file(path) as file:
        if torch is None:
            np.savez(file, **weights)
        else:
            torch.save({name: torch.from_numpy(np.array(x, x.dtype.newbyteorder("="))) for name, x in weights.items()}, file)


def check_suffix(path: Path, allowed: tuple[str, ...] = SUFFIXES) -> None:
    """Raise UserError unless the file's name ends as it must."""
    if path.suffix not in allowed:
        raise UserError(f"{path}: the name must end in {' or '.join(allowed)}")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the name `path` when all is written; after an error there is none.

    Raises:
      UserError: the folder cannot be written to.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            yield file
        draft.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Every array of an .npz file. UserError if it is none, or holds Python objects."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable npz file ({error})") from error


def _plain(weights: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The same arrays, all of them numbers, without the prefixes that wrappers of a module leave in names."""
    plain = {}
    for name, value in weights.items():
        while name.startswith(PREFIXES):
            name = name.partition(".")[2]
        if value.dtype.kind not in "fiu":
            raise UserError(f"{path}: {name} holds {value.dtype} instead of numbers")
        if name in plain:
            raise UserError(f"{path}: {name} is there twice, with and without the prefix of a wrapped module")
        plain[name] = value
    return plain


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _torch(path)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make its readers raise anything
        raise UserError(f"{path}: no PyTorch file, or damaged, or with Python objects in it: only tensors are read") from error
    arrays = {}
    for name, tensor in _state_dict(contents, path, torch).items():
        try:
            tensor = tensor.detach()
            arrays[name] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()  # numpy has no bfloat16
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: {name} is not a plain tensor ({str(error).splitlines()[0]})") from error
    return arrays


def _state_dict(contents: Any, path: Path, torch: ModuleType) -> Mapping:
    """The flat mapping of tensors, at the top or under one of the usual names."""
    for _ in range(DEPTH):
        if not isinstance(contents, Mapping) or not contents:
            break
        if all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in contents.items()):
            return contents
        contents = next((contents[name] for name in NESTED if name in contents), None)
    raise UserError(f"{path} holds no state dict: a mapping from names to tensors, at the top or under {', '.join(NESTED)}")


def _torch(path: Path) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: PyTorch is needed for {' and '.join(TORCH)} files and is not installed: pip install torch, or use .npz "
            "files; python -m sgi.convert to-npz FILE.pt FILE.npz makes one on a machine that has PyTorch"
        ) from error
    return torch
