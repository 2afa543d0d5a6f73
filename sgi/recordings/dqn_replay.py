"""The DQN Replay data set (Agarwal et al. 2020): written in chunks, read as memory-mapped frames.

    {root}/{Game}/{run}/replay_logs/$store$_{kind}_ckpt.{i}.gz            each a gzip of one .npy
    kind: observation uint8 [n, 84, 84], action int32 [n], reward float32 [n], terminal uint8 [n]   (published: n = 1,000,000)

Row t: the frame on the screen, the action chosen at it, the reward of that action and whether it ended the game. Our own
extension: further kinds of n rows, such as `ram` uint8 [n, 128].

The reader also takes the folder that the SGI download script makes: {root}/{Game}/{kind}_{id}.gz, where id is the
checkpoint of run 1, or `{run}01` for the first checkpoint of another run.
"""

import gzip
import hashlib
import os
import re
import shutil
import sys
import uuid
import zlib
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import fsspec
import numpy as np

from sgi.atari.emulator import display_name
from training.errors import UserError

KINDS = {"observation": np.uint8, "action": np.int32, "reward": np.float32, "terminal": np.uint8}
BLOCK = 1 << 23  # bytes of a file in memory at any time
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, ValueError)  # what a broken gzip or npy raises


class Writer:
    """A context manager that appends rows and writes them as complete files of `chunk` rows each, ckpt.{first}, ...

    Rows are spooled to a hidden file beside the target and compressed when the chunk is full, so that memory stays flat. Each
    file appears whole or not at all, `observation` last. Leaving the block normally writes the last, shorter chunk; leaving
    it by an exception drops that.
    """

    def __init__(self, root: str | os.PathLike, game: str, run: int, chunk: int = 1_000_000, first: int = 0):
        self.folder = Path(root) / display_name(game) / str(run) / "replay_logs"
        self.chunk, self.files = chunk, []
        self._spools, self._rows, self._index = {}, 0, first

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def append(self, **kinds: np.ndarray):
        """Append n >= 0 rows of observation=, action=, reward=, terminal= and any extra kinds."""
        arrays, total = as_rows(kinds)
        done = 0
        while done < total:
            part = min(total - done, self.chunk - self._rows)
            for kind, rows in arrays.items():
                self._spool(kind, rows[done : done + part])
            self._rows, done = self._rows + part, done + part
            if self._rows == self.chunk:
                self._flush()

    def __exit__(self, error, *_):
        try:
            if error is None and self._rows:
                self._flush()
        finally:
            for spool, _, _ in self._spools.values():
                spool.close()
                Path(spool.name).unlink()
                Path(f"{spool.name}.gz").unlink(missing_ok=True)
            self._spools = {}

    def _spool(self, kind, rows):
        if kind not in self._spools:
            spool = open(self.folder / f".{kind}.{uuid.uuid4().hex}", "w+b")  # noqa: SIM115 (closed by _flush or __exit__)
            self._spools[kind] = (spool, rows.dtype, rows.shape[1:])
        spool, dtype, shape = self._spools[kind]
        if (rows.dtype, rows.shape[1:]) != (dtype, shape):
            raise ValueError(f"append() got {kind} rows {rows.dtype}{rows.shape[1:]} after {dtype}{shape}")
        spool.write(rows)

    def _flush(self):
        for kind in sorted(self._spools, key=lambda kind: kind == "observation"):
            spool, dtype, shape = self._spools[kind]
            target = self.folder / f"$store$_{kind}_ckpt.{self._index}.gz"
            hidden = Path(f"{spool.name}.gz")
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (self._rows, *shape)}
            with open(hidden, "wb") as raw, gzip.GzipFile("", "wb", 4, raw, mtime=0) as packed:  # no time: equal bytes
                np.lib.format.write_array_header_1_0(packed, header)
                spool.seek(0)
                shutil.copyfileobj(spool, packed, BLOCK)
            os.replace(hidden, target)
            self.files.append(target)
            spool.seek(0)
            spool.truncate()
        self._rows, self._index = 0, self._index + 1


def as_rows(kinds: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Arrays in the layout's types, and their number of rows. ValueError if a kind is missing or their lengths differ."""
    if missing := KINDS.keys() - kinds:
        raise ValueError(f"append() lacks {sorted(missing)}")
    arrays = {kind: np.ascontiguousarray(rows, KINDS.get(kind)) for kind, rows in kinds.items()}
    counts = {len(rows) for rows in arrays.values()}
    if len(counts) != 1:
        raise ValueError(f"append() got different numbers of rows: { {k: len(v) for k, v in arrays.items()} }")
    return arrays, counts.pop()


class Shard(Protocol):
    """The interface of one checkpoint of one run to a Store, whatever its format."""

    run: int
    checkpoint: int

    def path(self, kind: str) -> str:
        """The file that holds a kind, for messages."""

    def read(self, kind: str) -> np.ndarray:
        """All rows of a small kind."""

    def view(self, kind: str):
        """Rows that stay on disk: `len`, `shape`, `dtype`, and indexing by an integer array."""


class GzipShard(NamedTuple):
    """A checkpoint of gzip files; `pattern.format(kind)` is the path of a kind's file in the file system `files`."""

    run: int
    checkpoint: int
    pattern: str
    files: fsspec.AbstractFileSystem
    cache: Path

    def path(self, kind: str) -> str:
        return self.pattern.format(kind)

    def read(self, kind: str) -> np.ndarray:
        return read_npy(self.files, self.path(kind))

    def view(self, kind: str) -> np.ndarray:
        return np.load(decode_once(self.files, self.path(kind), self.cache), mmap_mode="r")


class Store:
    """Read-only rows of several shards, one after another. Frames stay on disk; see `sgi.recordings.open.open_play`.

    num_frames   N, over all shards
    channels     names of the extra kinds that every shard has
    actions      int32 [N]
    terminals    bool [N]: the action taken at this frame ended the game
    starts       bool [N]: first frame of an episode or of a shard (what came before a shard is not here)
    rewards      float32 [N], unclipped, read when first asked for
    """

    def __init__(self, shards: Sequence[Shard], channels: Sequence[str]):
        self.shards, self.channels = tuple(shards), tuple(channels)
        self._lazy = {"observation": [_frames(shard) for shard in shards]}
        lengths = [len(frames) for frames in self._lazy["observation"]]
        self._offsets = np.cumsum([0, *lengths])
        self.num_frames = int(self._offsets[-1])
        self.actions = self._read_all("action").astype(np.int32, copy=False)
        self.terminals = self._read_all("terminal").astype(bool)
        self.starts = np.concatenate([[True], self.terminals[:-1]])
        self.starts[self._offsets[:-1]] = True

    def __getstate__(self) -> dict:
        """All but the frames: they are opened anew where the store is unpickled, as a worker process does."""
        return {**self.__dict__, "_lazy": {}}

    @cached_property
    def rewards(self) -> np.ndarray:
        return self._read_all("reward").astype(np.float32, copy=False)

    def frames(self, index) -> np.ndarray:
        """Frames uint8 [..., 84, 84] at integers of any shape [...]. Raises IndexError outside 0..N-1."""
        return self.rows("observation", index)

    def rows(self, channel: str, index) -> np.ndarray:
        """Rows like `frames`, for 'observation' or one of `channels`: [...] -> [..., *row]."""
        index = np.asarray(index)
        if channel not in self._lazy:
            if channel not in ("observation", *self.channels):
                raise UserError(f"these frames come without {channel!r}; they have {list(self.channels)}")
            self._lazy[channel] = [self._check_rows(shard.view(channel), channel, i) for i, shard in enumerate(self.shards)]
        if index.size and (index.min() < 0 or index.max() >= self.num_frames):
            raise IndexError(f"frames {index.min()}..{index.max()} of a store of {self.num_frames}")
        lazy = self._lazy[channel]
        owner = np.searchsorted(self._offsets, index, "right") - 1
        owners = np.unique(owner)
        if len(owners) == 1:  # the usual case, without a second copy
            return np.asarray(lazy[owners[0]][index - self._offsets[owners[0]]])
        out = np.empty((*index.shape, *lazy[0].shape[1:]), lazy[0].dtype)
        for shard in owners:
            here = owner == shard
            out[here] = lazy[shard][index[here] - self._offsets[shard]]
        return out

    def _read_all(self, kind):
        return np.concatenate([self._check_rows(shard.read(kind), kind, i) for i, shard in enumerate(self.shards)])

    def _check_rows(self, rows, kind, shard):
        expected = self._offsets[shard + 1] - self._offsets[shard]
        if len(rows) != expected:
            path = self.shards[shard].path(kind)
            raise UserError(f"{path} has {len(rows)} rows, its observation file has {expected}: fetch this checkpoint again")
        return rows


def _frames(shard: Shard):
    rows = shard.view("observation")
    if len(rows.shape) != 3 or rows.dtype != np.uint8 or not len(rows):
        raise UserError(f"{shard.path('observation')} holds {rows.dtype}{rows.shape}, not frames uint8 [n, 84, 84]")
    return rows


def open_store(
    root: str | os.PathLike,
    game: str,
    shards: Sequence[tuple[int, int]] | Literal["all"] = "all",
    cache: str | os.PathLike | None = None,
) -> Store:
    """Open (run, checkpoint) pairs, in this order, or all that there are.

    `root` is a folder or an fsspec URL, such as gs://atari-replay-datasets/dqn. gzip has no random access, so each observation
    file is decoded once, in small blocks, to a .npy in `cache` ($XDG_CACHE_HOME/quintet/frames or ~/.cache/quintet/frames; 7 GB
    for a million frames), and memory-mapped from then on. Raises UserError for missing or damaged files.
    """
    files, base = open_root(root)
    patterns = find_shards(files, f"{base}/{display_name(game)}")
    if not patterns:
        raise UserError(f"no DQN Replay files of {display_name(game)} under {root}: make some with python -m sgi.collect")
    pairs = pick_shards(patterns, shards, root, game)
    for pair in pairs:
        if missing := KINDS.keys() - patterns[pair].keys():
            raise UserError(f"{root}: run {pair[0]}, checkpoint {pair[1]} of {game} lacks {', '.join(sorted(missing))}")
    extra = set.intersection(*(set(patterns[pair]) for pair in pairs)) - KINDS.keys()
    cache = Path(cache) if cache else default_cache()
    return Store([GzipShard(*pair, patterns[pair]["observation"], files, cache) for pair in pairs], sorted(extra))


def open_root(root: str | os.PathLike) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a folder or a URL, and the path in it."""
    try:
        files, base = fsspec.core.url_to_fs(os.fspath(root))
    except (ImportError, ValueError) as error:
        raise UserError(
            f"cannot open {root}: {error}" + (": pip install gcsfs" if str(root).startswith("gs:") else "")
        ) from error
    return files, base.rstrip("/")


def pick_shards(
    available: Collection, shards: Sequence[tuple[int, int]] | Literal["all"], root, game: str
) -> list[tuple[int, int]]:
    """The (run, checkpoint) pairs asked for; 'all' in ascending order. Raises UserError if one is not `available`."""
    pairs = sorted(available) if isinstance(shards, str) else [tuple(pair) for pair in shards]
    if missing := [pair for pair in pairs if pair not in available]:
        raise UserError(f"{root} lacks (run, checkpoint) {missing} of {display_name(game)}; it has {sorted(available)}")
    if not pairs:
        raise UserError("no (run, checkpoint) pairs asked for")
    return pairs


def find_shards(files, folder: str) -> dict[tuple[int, int], dict[str, str]]:
    """The files in one game's folder, in either layout: {(run, checkpoint): {kind: path pattern}}."""
    patterns = {}
    for path in _glob(files, f"{folder}/*/replay_logs/*.gz"):
        if match := re.fullmatch(r"(.*/(\d+)/replay_logs/\$store\$_)(\w+)(_ckpt\.(\d+)\.gz)", path):
            head, run, kind, tail, checkpoint = match.groups()
            patterns.setdefault((int(run), int(checkpoint)), {})[kind] = f"{_escape(head)}{{}}{tail}"
    for path in _glob(files, f"{folder}/*.gz"):
        if match := re.fullmatch(r"(.*/)([a-z]+)(_(\d+)\.gz)", path):
            head, kind, tail, number = match.groups()
            pair = (1, int(number)) if int(number) < 100 else divmod(int(number), 100)
            patterns.setdefault(pair, {}).setdefault(kind, f"{_escape(head)}{{}}{tail}")
    return patterns


def _glob(files, pattern):
    try:
        return sorted(files.glob(pattern))
    except ImportError as error:
        raise UserError(f"cannot list {pattern}: {error}") from error


def _escape(text):
    return text.replace("{", "{{").replace("}", "}}")


def default_cache() -> Path:
    """The default folder of decoded frames."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quintet" / "frames"


def read_npy(files, path: str) -> np.ndarray:
    """A whole gzipped .npy of a small kind. Raises UserError naming a damaged file."""
    try:
        with files.open(path, "rb") as raw, gzip.open(raw) as packed:
            shape, dtype = _header(packed)
            data = packed.read()
            return np.frombuffer(data, dtype).reshape(shape)
    except DAMAGE as error:
        raise _damage_error(path, error) from error


def decode_once(files, path: str, cache: Path) -> Path:
    """Path of a .npy in the cache, decoded from a gzipped one unless that was done before.

    The name in the cache is a digest of where the source is, how long and how old. Two processes at once are safe: each writes
    a file of its own and renames it.
    """
    info = files.info(path)
    age = next((info[key] for key in ("mtime", "etag", "ETag", "updated", "LastModified", "created") if key in info), "")
    source = f"{files.unstrip_protocol(path)} {info['size']} {age}"
    target = cache / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}.npy"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    hidden = cache / f".{uuid.uuid4().hex}"
    print(f"decoding {path} into {cache}", file=sys.stderr, flush=True)
    try:
        with files.open(path, "rb") as raw, gzip.open(raw) as packed, open(hidden, "wb") as out:
            shape, dtype = _header(packed)
            np.lib.format.write_array_header_1_0(
                out, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            )
            start = out.tell()
            shutil.copyfileobj(packed, out, BLOCK)  # to the end, where gzip compares its checksum
            if (got := out.tell() - start) != (need := dtype.itemsize * int(np.prod(shape))):
                raise ValueError(f"{got} bytes of data, its header promises {need}")
        os.replace(hidden, target)
    except DAMAGE as error:
        raise _damage_error(path, error) from error
    except OSError as error:
        raise UserError(f"cannot decode {path} into {cache}: {error}") from error
    finally:
        hidden.unlink(missing_ok=True)
    return target


def _header(packed):
    """The shape and dtype of the .npy that starts here. Raises ValueError for what is not a plain array in C order."""
    version = np.lib.format.read_magic(packed)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(packed)
    if dtype.hasobject or (fortran and len(shape) > 1) or not shape:
        raise ValueError(f"an array {dtype}{shape} that cannot be read row by row")
    return shape, dtype


def _damage_error(path, error):
    return UserError(f"{path} is damaged or cut short ({error}): fetch it again")
