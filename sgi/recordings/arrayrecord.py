"""Recorded play as ArrayRecord: read at random without being decoded to a cache first.

    {root}/{Game}/{run}/arrays_ckpt.{i}.array_record          the rows of one checkpoint, all kinds

Records, in this order (array_record compresses each one by zstd):
  wide kinds     those with more than a number a row (observation, ram), in groups of GROUP rows: group 0 of each, group 1 ...
  narrow kinds   action, reward, terminal and extra ones: all rows of a kind in one record
  contents       JSON {"format", "rows", "group", "kinds": [{"name", "dtype", "row"}, ...]}, kinds in the order of the records
Rows are plain numbers in C order, so nothing in a file is code.

Why 8: random windows of 13 + 4 frames, 256 at once, took 48 ms with 1 row a record, 35 with 4, 47 with 8, 84 with 32
(Boxing and Ms. Pac-Man, mean; memory-mapped frames: 2-10); 20,000 frames took 19, 7.5, 5.4 and 3.8 MB (DQN Replay files: 6.5).
"""

import json
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from fsspec.implementations.local import LocalFileSystem

from sgi.atari.emulator import display_name
from sgi.recordings.dqn_replay import KINDS, Store, as_rows, open_root, pick_shards
from training.errors import UserError

GROUP = 8  # rows of a wide kind in one record
FORMAT = "quintet recorded play, 1"
HELD = 1024  # decoded groups of a kind kept in memory: 58 MB of frames a file
READ = {"options": "readahead_buffer_size:0,max_parallelism:0", "file_reader_buffer_size": 1 << 15}  # for random access


class Kind(NamedTuple):
    """One kind of array in a file: its name, type and the shape of a row."""

    name: str
    dtype: np.dtype
    row: tuple[int, ...]


class Writer:
    """A context manager that appends rows to one file, which appears whole when the block is left normally, or not at all.

    Memory: GROUP rows, and the narrow kinds (9 bytes a row).
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.rows = Path(path), 0
        self._hidden = self.path.with_name(f".{uuid.uuid4().hex}")
        self._kinds, self._pending, self._narrow = None, None, {}

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._records = ArrayRecordWriter(str(self._hidden), "group_size:1,zstd:3")
        return self

    def append(self, **arrays: np.ndarray):
        """Append n >= 0 rows of observation=, action=, reward=, terminal= and any extra kinds."""
        arrays, count = as_rows(arrays)
        kinds = sorted((Kind(k, rows.dtype, rows.shape[1:]) for k, rows in arrays.items()), key=lambda k: (not k.row, k.name))
        if self._kinds is None:
            self._kinds = kinds
            self._pending = {kind.name: arrays[kind.name][:0] for kind in kinds if kind.row}
            self._narrow = {kind.name: bytearray() for kind in kinds if not kind.row}
        if kinds != self._kinds:
            raise ValueError(f"append() got {kinds} after {self._kinds}")
        for name, data in self._narrow.items():
            data += arrays[name].tobytes()
        self._pending = {name: np.concatenate([rows, arrays[name]]) for name, rows in self._pending.items()}
        self.rows += count
        whole = self.rows % GROUP
        self._write_groups(len(self._pending["observation"]) - whole)

    def __exit__(self, error, *_):
        try:
            if error is None and self.rows:
                self._write_groups(len(self._pending["observation"]))
                for data in self._narrow.values():
                    self._records.write(bytes(data))
                kinds = [{"name": k.name, "dtype": k.dtype.str, "row": k.row} for k in self._kinds]
                contents = {"format": FORMAT, "rows": self.rows, "group": GROUP, "kinds": kinds}
                self._records.write(json.dumps(contents).encode())
            self._records.close()
            if error is None and self.rows:
                ArrayRecordShard(0, 0, self._hidden)  # readable: the disk was not full, for one
                os.replace(self._hidden, self.path)
        finally:
            self._hidden.unlink(missing_ok=True)

    def _write_groups(self, count):
        for begin in range(0, count, GROUP):
            for rows in self._pending.values():
                self._records.write(rows[begin : min(begin + GROUP, count)].tobytes())
        self._pending = {name: rows[count:] for name, rows in self._pending.items()}


class ArrayRecordShard:
    """One file, as a `sgi.recordings.dqn_replay.Shard`. Raises UserError for what is not such a file, or is damaged."""

    def __init__(self, run: int, checkpoint: int, path: str | os.PathLike):
        self.run, self.checkpoint, self._path = run, checkpoint, str(path)
        try:
            self._reader = ArrayRecordReader(self._path, **READ)
            self._records = self._reader.num_records()
        except Exception as error:  # array_record raises several classes
            raise self._damage_error(error) from error
        self.rows, self._group, self.kinds = self._contents()
        self._wide = [kind.name for kind in self.kinds if kind.row]
        groups = -(-self.rows // self._group)
        narrow = [kind.name for kind in self.kinds if not kind.row]
        if self._records != len(self._wide) * groups + len(narrow) + 1:
            raise self._damage_error(f"{self._records} records do not hold {self.rows} rows of {', '.join(self.kind_names)}")
        self._whole = {name: len(self._wide) * groups + i for i, name in enumerate(narrow)}

    def __reduce__(self) -> tuple:
        return ArrayRecordShard, (self.run, self.checkpoint, self._path)

    @property
    def kind_names(self) -> list[str]:
        return [kind.name for kind in self.kinds]

    def path(self, kind: str) -> str:
        return self._path

    def read(self, kind: str) -> np.ndarray:
        if kind in self._whole:
            return self._read(self._whole[kind], self._kind(kind), self.rows)
        return self.view(kind)[np.arange(self.rows)]

    def view(self, kind: str):
        return self.read(kind) if kind in self._whole else Groups(self, self._kind(kind))

    def group(self, kind: Kind, number: int) -> np.ndarray:
        """One record of a wide kind: [<= GROUP, *row]."""
        count = min(self._group, self.rows - number * self._group)
        return self._read(number * len(self._wide) + self._wide.index(kind.name), kind, count)

    def locate(self, row: int) -> tuple[int, int]:
        """The place of a row: (group, row in it)."""
        return divmod(row, self._group)

    def _kind(self, name):
        return next(kind for kind in self.kinds if kind.name == name)

    def _read(self, record, kind, count):
        try:
            return np.frombuffer(self._bytes(record), kind.dtype).reshape(count, *kind.row)
        except ValueError as error:
            raise self._damage_error(error) from error

    def _bytes(self, record):
        try:
            return self._reader.read([record])[0]
        except Exception as error:
            raise self._damage_error(error) from error

    def _contents(self):
        """The checked (rows, group, kinds) from the last record."""
        try:
            contents = json.loads(self._bytes(self._records - 1)) if self._records else {}
            if contents["format"] != FORMAT:
                raise ValueError(f"format {contents['format']!r}")
            rows, group = int(contents["rows"]), int(contents["group"])
            kinds = [Kind(str(k["name"]), _dtype(k["dtype"]), tuple(int(n) for n in k["row"])) for k in contents["kinds"]]
            narrow = {kind.name for kind in kinds if not kind.row}
            if min(rows, group, *(n for k in kinds for n in k.row)) < 1 or {"action", "reward", "terminal"} - narrow:
                raise ValueError(f"its contents are {contents}")
            if "observation" not in {kind.name for kind in kinds} - narrow:
                raise ValueError("it has no frames")
            return rows, group, kinds
        except (KeyError, TypeError, ValueError) as error:
            raise self._damage_error(f"no contents of ours: {error}") from error

    def _damage_error(self, error):
        return UserError(f"{self._path} is damaged, cut short or not recorded play ({str(error).splitlines()[0][:200]})")


class Groups:
    """Rows of a wide kind, decoded by groups when indexed by an integer array."""

    def __init__(self, shard: ArrayRecordShard, kind: Kind):
        self.shape, self.dtype, self._shard = (shard.rows, *kind.row), kind.dtype, shard
        self._group = lru_cache(HELD)(lambda number: shard.group(kind, number))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index)
        out = np.empty((index.size, *self.shape[1:]), self.dtype)
        for i, row in enumerate(index.ravel().tolist()):
            group, offset = self._shard.locate(row)
            out[i] = self._group(group)[offset]
        return out.reshape(*index.shape, *self.shape[1:])


def _dtype(text) -> np.dtype:
    if not re.fullmatch(r"[|<>][biuf][1248]", text):
        raise ValueError(f"numbers of type {text!r}")
    return np.dtype(text)


def file_of(root: str | os.PathLike, game: str, run: int, checkpoint: int) -> Path:
    """The file of one checkpoint."""
    return Path(root) / display_name(game) / str(run) / f"arrays_ckpt.{checkpoint}.array_record"


def find(root: str | os.PathLike, game: str) -> dict[tuple[int, int], str]:
    """The files of a game: {(run, checkpoint): path}."""
    files, base = open_root(root)
    paths = dict(_matches(files.glob(f"{base}/{display_name(game)}/*/arrays_ckpt.*.array_record")))
    if paths and not isinstance(files, LocalFileSystem):
        raise UserError(f"{root} holds ArrayRecord files, which are read from a local folder only: copy them to one")
    return paths


def _matches(paths) -> Iterator[tuple[tuple[int, int], str]]:
    for path in paths:
        if match := re.fullmatch(r".*/(\d+)/arrays_ckpt\.(\d+)\.array_record", path):
            yield (int(match[1]), int(match[2])), path


def open_store(root: str | os.PathLike, game: str, shards: Sequence[tuple[int, int]] | Literal["all"] = "all") -> Store:
    """Open (run, checkpoint) pairs, in this order, or all that there are, as `sgi.recordings.dqn_replay.open_store` does."""
    paths = find(root, game)
    if not paths:
        raise UserError(f"no ArrayRecord files of {display_name(game)} under {root}: make some with python -m sgi.formats")
    return store([(*pair, paths[pair]) for pair in pick_shards(paths, shards, root, game)])


def store(files: Sequence[tuple[int, int, str | os.PathLike]]) -> Store:
    """A Store of files (run, checkpoint, path); its channels are the extra kinds that all of them have."""
    shards = [ArrayRecordShard(*file) for file in files]
    extra = set.intersection(*(set(shard.kind_names) for shard in shards)) - KINDS.keys()
    return Store(shards, sorted(extra))
