"""Files in and out: text of people (UTF-8, plain or .gz), JSON, files that appear whole. What is wrong is a UserError."""

import argparse
import codecs
import gzip
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from training.errors import UserError

TOY = "toy"  # a config's data.dir: use the data that the project embeds

log = logging.getLogger(__name__)


def data_directory(directory: str, *names: str) -> Path | None:
    """The folder of a data set: the argument, else $QUINTET_DATA/<the first of `names` that is there>.

    None where QUINTET_DATA is not set, and for 'toy' whatever it is: the caller then uses the data that it embeds. Raises
    UserError for a folder that does not exist, and where QUINTET_DATA has none of the names.
    """
    if directory == TOY:
        return None
    if directory:
        if not Path(directory).is_dir():
            raise UserError(f"no data folder {directory}; give one as --config.data.dir, or 'toy' for embedded data")
        return Path(directory)
    if not (root := os.environ.get("QUINTET_DATA")):
        log.info("no data directory (--config.data.dir or QUINTET_DATA): using embedded data")
        return None
    for name in names:
        if (folder := Path(root) / name).is_dir():
            return folder
    raise UserError(f"QUINTET_DATA is {root}, which has no folder {' or '.join(names)}; give it, or set --config.data.dir=toy")


def lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of a UTF-8 file. Raises UserError, with file and line, for other bytes."""
    path = Path(path)
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield number, line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} line {number} is not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read as a gzipped file: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def text(path: Path | str) -> str:
    """The whole file."""
    return "\n".join(line for _, line in lines(path))


def write(path: Path | str, content: Iterable[str]) -> None:
    """Write lines, given without their ends, as UTF-8. Raises UserError where that cannot be done."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in content)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}): name a file in a folder that exists") from None


def replace(path: Path, content: str | bytes) -> None:
    """Write a file that a reader, or a kill, finds old or new but never half: beside it, then renamed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def check_place(path: Path | str) -> None:
    """Raise UserError where a file cannot be written, before work is done for it."""
    if Path(path).is_dir() or not Path(path).parent.is_dir():
        raise UserError(f"cannot write {path}: name a file in a folder that exists")


def folder(path: Path) -> Path:
    """The folder, made if need be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path} ({error.strerror}): name another") from None
    return path


def json_object(path: Path, hint: str) -> dict[str, Any]:
    """A JSON file that holds an object. Raises UserError that ends with `hint` for any other."""
    try:
        value = json.loads(text(path))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): {hint}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}: {hint}")
    return value


def positive(value: str) -> int:
    """Type of a command line's counts, for argparse."""
    if (number := int(value)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return number
