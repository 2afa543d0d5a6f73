"""Where the data are, reading JSON Lines, and dealing rows to splits. Every mistake in a file is named with its line."""

import gzip
import json
import logging
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import UserError

log = logging.getLogger(__name__)

TOY, TFDS = "toy", "tfds"


def find_file(folder: Path, *stems: str) -> Path | None:
    """The first of <stem>.jsonl and <stem>.jsonl.gz that is in the folder, or None."""
    paths = [folder / f"{stem}.jsonl{end}" for stem in stems for end in ("", ".gz")]
    return next((path for path in paths if path.is_file()), None)


def need_file(folder: Path, *stems: str) -> Path:
    """`find_file`, or UserError."""
    if path := find_file(folder, *stems):
        return path
    raise UserError(
        f"{folder} has no file {' or '.join(f'{stem}.jsonl' for stem in stems)} (or .jsonl.gz); check config.data.dir"
    )


def read_jsonl(
    path: Path, fields: dict[str, type], check: Callable[[dict], str] = lambda row: "", *, blank: Collection[str] = ()
) -> list[dict[str, Any]]:
    """All rows of a JSON Lines file, plain or gzipped; blank lines are skipped.

    Args:
      fields: what every row must have, by type. Other fields are kept as they are.
      check: what is wrong with a row, or ''.
      blank: fields whose text may be blank.

    Raises:
      UserError: with file and line, for anything else; with the file, if it is missing, has no rows or cannot be unpacked.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; check the path")
    rows = []
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            row = _parse(line, f"{path} line {number}")
            if wrong := lacks(row, fields, blank) or check(row):
                raise UserError(f"{path} line {number}: {wrong}; mend or drop the line")
            rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty: no rows to read")
    return rows


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); copy it again") from None


def _parse(line: bytes, where: str) -> dict:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error.msg} at column {error.colno}); one object a line is needed") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is a JSON {type(row).__name__}; one object a line is needed")
    return row


def lacks(row: dict, fields: dict[str, type], blank: Collection[str] = ()) -> str:
    """What is wrong with the fields of a row, or ''."""
    for name, kind in fields.items():
        if name not in row:
            return f"no field {name!r} among {', '.join(map(repr, row)) or 'none'}"
        if type(row[name]) is not kind:
            return f"field {name!r} is {type(row[name]).__name__}, not {kind.__name__}"
        if kind is str and name not in blank and not row[name].strip():
            return f"field {name!r} is blank"
    return ""


def read_tfds(name: str, split: str, directory: str) -> list[dict[str, Any]]:
    """A split of tensorflow-datasets, which downloads it unless it lies prepared (as array_record) in its data directory.

    directory: 'tfds', or 'tfds:' and the data directory. Text comes as str.
    """
    import tensorflow_datasets as tfds  # takes a second

    where = directory.partition(":")[2] or None
    try:
        builder = tfds.builder(name, data_dir=where, file_format="array_record")
        builder.download_and_prepare()
        rows = list(builder.as_data_source(split))
    except Exception as error:  # network, disk, packages of the builder: of any class
        reason = str(error).split("\n")[0]
        raise UserError(
            f"tensorflow-datasets cannot prepare {name} ({type(error).__name__}: {reason}); prepare it elsewhere and give "
            "--config.data.dir=tfds:FOLDER"
        ) from error
    return [{k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()} for row in rows]


def is_tfds(directory: str) -> bool:
    """Whether a data directory means tensorflow-datasets."""
    return directory.partition(":")[0] == TFDS


def shuffled(rows: Sequence, seed: int) -> list:
    """The rows in a random order."""
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def deal(rows: Sequence, shares: dict[str, float], seed: int, what: str = "rows") -> dict[str, list]:
    """Shuffle and cut: each named split gets its share, rounded, of one row or more; 'train' gets the rest."""
    if sum(shares.values()) >= 1 or min(shares.values()) <= 0:
        raise UserError(f"shares {shares} of held-out {what} must be above 0 and sum to less than 1")
    rest, dealt = shuffled(rows, seed), {}
    for name, share in shares.items():
        n = max(1, round(share * len(rows)))
        rest, dealt[name] = rest[:-n], rest[-n:]
    if not rest:
        raise UserError(f"{len(rows)} {what} are too few for {len(shares) + 1} splits; add data")
    return {"train": rest, **dealt}
