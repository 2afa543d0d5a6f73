"""Text files of people, in and out: UTF-8, with or without a byte-order mark, plain or .gz. What is wrong is a UserError."""

import argparse
import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from training.errors import UserError


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
        raise UserError(f"{path} is no JSON ({error}): {hint}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: {hint}")
    return value


def positive(value: str) -> int:
    """Type of a command line's counts, for argparse."""
    if (number := int(value)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return number
