"""Models as Hugging Face folders: config.json and model.safetensors, or several files with an index. No torch.

    cfg, params = load("path/to/pythia-410m")
    save("out", cfg, params)    # transformers' from_pretrained reads it

Families: gpt2, gpt_neox (Pythia), llama (TinyLlama, Rho, Llama 3.1) and distilbert classifiers. Parameters are in the layout of
decoder.py and distilbert.py. Beside them, a tensor at a time is read and a file at a time is written: no model exists twice.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models import decoder, distilbert
from models.decoder import TransformerConfig
from models.distilbert import EncoderConfig
from models.hub import config as hub_config
from models.hub import names as hub_names
from models.hub.names import SCORE, Names, Tensor
from models.tokenisers import Tokeniser
from training.errors import UserError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")  # files that `save` may leave in a folder
FLOATS = ("F32", "BF16", "F16", "F64")
SPARE = 1024  # a vocabulary that exceeds the tokeniser's by more is not padded to a round number, it is another one's


def load(folder: Path | str, dtype: str = "float32") -> tuple[TransformerConfig | EncoderConfig, dict]:
    """Read a model: (config, parameters as numpy arrays).

    A reward model's scalar head is params['score']['kernel'] [D, 1]; its language-model head may be missing then.

    Args:
      dtype: of the parameters: 'float32', or 'bfloat16' for frozen weights. The files may hold any floats.

    Raises:
      UserError: files that are missing, cut or do not fit each other, or a model that we cannot run.
    """
    folder = Path(folder)
    family, cfg = hub_config.read(folder / CONFIG)
    with contextlib.ExitStack() as stack:
        tensors, stored = _match(folder, family, cfg, _open(folder, stack))
        shapes = {**_shapes(cfg), SCORE: (cfg.width, 1)}
        paths = dict.fromkeys(path for tensor in tensors for path in tensor.paths)
        flat = {path: np.empty(shapes[path], np.dtype(dtype)) for path in paths}
        for tensor in tensors:
            for path, part in zip(tensor.paths, tensor.split(stored[tensor.name][:]), strict=True):
                flat[path][... if tensor.layer is None else tensor.layer] = part
    return cfg, unflatten_dict(flat, sep="/")


def _open(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """{name: lazily read tensor} of all weight files."""
    if (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (folder / INDEX).is_file():
        try:
            files = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"{folder / INDEX} is damaged ({error!r}); fetch it again") from None
    else:
        raise UserError(f"{folder} has neither {WEIGHTS} nor {INDEX}; convert other formats by transformers' save_pretrained")
    tensors = {}
    for name in files:
        try:
            file = stack.enter_context(safe_open(folder / name, "np"))
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read the weights {folder / name} ({error}); fetch them again") from None
        tensors |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (a safetensors file is no mapping)
    return tensors


def _match(folder: Path, family: str, cfg: Any, given: dict[str, Any]) -> tuple[list[Tensor], dict[str, Any]]:
    """The tensors to read, and where each is. Raises UserError for missing, unexpected or misshapen ones."""
    names = hub_names.FAMILIES[family]
    wanted = _tensors(names, cfg, score="score.weight" in given, head=names.head in given)
    known = {tensor.name for tensor in wanted}
    full = {name: name if name in known else names.prefix + name for name in given}  # files without a head lack the prefix
    stored = {full[name]: tensor for name, tensor in given.items() if full[name] in known}
    other = [name for name in given if full[name] not in known and not re.search(names.ignored, f".{name}")]
    if lacking := [tensor.name for tensor in wanted if tensor.name not in stored]:
        raise UserError(f"{folder} lacks {_some(lacking)}: its weights are not those of a {family} model of this {CONFIG}")
    if names.head in other and cfg.tie and np.array_equal(given[names.head][:], stored[wanted[0].name][:]):
        other.remove(names.head)  # the embedding once more
    if other:
        raise UserError(f"{folder} has {_some(other)} beside a {family} model of this {CONFIG}: fetch the right files")
    for tensor in wanted:
        kind, shape = stored[tensor.name].get_dtype(), tuple(stored[tensor.name].get_shape())
        if shape != tensor.shape or kind not in FLOATS:
            raise UserError(f"{folder}: {tensor.name} is {kind} {list(shape)}, the model takes floats {list(tensor.shape)}")
    return wanted, stored


def _tensors(names: Names, cfg: Any, score: bool, head: bool) -> list[Tensor]:
    """All tensors of a model. Only a reward model may lack the language-model head."""
    score = score and names.head is not None
    tensors = [tensor for tensor in names.tensors(cfg) if head or not score or tensor.name != names.head]
    return [*tensors, hub_names.score(cfg.width)] if score else tensors


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _shapes(cfg: Any) -> dict[str, tuple[int, ...]]:
    """{path: shape} of our parameters."""
    module = distilbert if isinstance(cfg, EncoderConfig) else decoder
    tree = jax.eval_shape(lambda: module.init(jax.random.key(0), cfg))
    return {path: leaf.shape for path, leaf in flatten_dict(tree, sep="/").items()}


def save(
    folder: Path | str, cfg: TransformerConfig | EncoderConfig, params: dict, family: str | None = None, *,
    tokeniser: Tokeniser | None = None, dtype: str = "float32", file_bytes: int = 5 * 2**30,
) -> None:  # fmt: skip
    """Write a model for `load` and transformers' from_pretrained, in place of one that is there.

    Args:
      params: as `load` returns them (numpy or jax arrays); LoRA matrices must be merged.
      family: model_type; None = the one that has such a config.
      tokeniser: written too; its EOS and padding go into config.json.
      dtype: of the files; 'float32' is exact.
      file_bytes: a bigger model is split into files of at most this size (unless one tensor is bigger).
    """
    folder = Path(folder)
    family, config = hub_config.write(cfg, family)
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
    tensors = _tensors(hub_names.FAMILIES[family], cfg, score=SCORE in flat, head="head/kernel" in flat)
    _check(cfg, flat, {path for tensor in tensors for path in tensor.paths})
    config |= {"architectures": [hub_config.FAMILIES[family].architectures[SCORE in flat]], "torch_dtype": dtype}
    if SCORE in flat:
        config |= hub_config.labels(1)
    if tokeniser is not None:
        if tokeniser.size > cfg.vocab:
            raise UserError(f"the tokeniser has {tokeniser.size} tokens, the model {cfg.vocab}: use the model's own tokeniser")
        config |= {"eos_token_id": tokeniser.eos, "pad_token_id": tokeniser.pad}
        tokeniser.save(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = _write(folder, tensors, flat, np.dtype(dtype), file_bytes)
    for old in folder.iterdir():
        if OURS.fullmatch(old.name) and old.name not in written:
            old.unlink()
    _replace(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2), "utf-8"))


def _check(cfg: Any, flat: dict[str, np.ndarray], paths: set[str]) -> None:
    if other := sorted(set(flat) - paths):
        raise UserError(f"the parameters have {_some(other)}, the model has not; merge LoRA matrices first (lora.merge)")
    if lacking := sorted(paths - set(flat)):
        raise UserError(f"the parameters lack {_some(lacking)}; give all that load or init returns")
    shapes = {**_shapes(cfg), SCORE: (cfg.width, 1)}
    if wrong := [f"{path} {flat[path].shape}, not {shapes[path]}" for path in flat if flat[path].shape != shapes[path]]:
        raise UserError(f"the parameters are not of this config: {_some(wrong)}")


def _write(folder: Path, tensors: list[Tensor], flat: dict, dtype: np.dtype, file_bytes: int) -> set[str]:
    """Write the weight files, and an index if there are several; returns their names."""
    groups: list[list[Tensor]] = [[]]
    room = file_bytes
    for tensor in tensors:
        size = math.prod(tensor.shape) * dtype.itemsize
        if size > room and groups[-1]:
            groups.append([])
            room = file_bytes
        groups[-1].append(tensor)
        room -= size
    many = len(groups)
    places = {}
    for i, group in enumerate(groups, 1):
        name = WEIGHTS if many == 1 else f"model-{i:05d}-of-{many:05d}.safetensors"
        arrays = {}
        for tensor in group:
            parts = [flat[path] if tensor.layer is None else flat[path][tensor.layer] for path in tensor.paths]
            arrays[tensor.name] = np.ascontiguousarray(tensor.join(parts), dtype)
            places[tensor.name] = name
        _replace(folder / name, lambda path, arrays=arrays: save_file(arrays, path, metadata={"format": "pt"}))
    if many == 1:
        return {WEIGHTS}
    total = sum(math.prod(tensor.shape) for tensor in tensors) * dtype.itemsize
    index = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
    _replace(folder / INDEX, lambda path: path.write_text(index, "utf-8"))
    return {*places.values(), INDEX}


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside and rename: a file is whole or as it was."""
    beside = path.with_name(f"{path.name}.tmp")
    write(beside)
    os.replace(beside, path)


def add_padding(cfg: TransformerConfig, params: dict) -> tuple[TransformerConfig, dict]:
    """One more row in the vocabulary, for a padding token that `tokenisers.load` added behind the last id.

    Embedding and head get the mean row: an average logit, where a row of 0 could win (GPT-2's logits are far below 0).
    """
    tokens = np.asarray(params["embed"]["tokens"])
    grown = {**params, "embed": {**params["embed"], "tokens": _with_mean(tokens, 0)}}
    if "head" in params:
        grown["head"] = {"kernel": _with_mean(np.asarray(params["head"]["kernel"]), 1)}
    return dataclasses.replace(cfg, vocab=cfg.vocab + 1), grown


def _with_mean(table: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate([table, table.mean(axis, np.float32, keepdims=True).astype(table.dtype)], axis)
