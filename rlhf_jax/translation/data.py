"""Parallel text: reading files, Moses normalisation and tokenisation.

Files are UTF-8, gzipped or not, tab-separated, with a first line that names the columns (en, fr, de). Layout of the data
directory (Multi30k task 1; Elliott et al. 2016, 2017):

    train.tsv.gz    val.tsv.gz    test_2016_flickr.tsv.gz
"""

import functools
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from sacremoses import MosesPunctNormalizer, MosesTokenizer

from rlhf_jax.translation import toy
from training import files
from training.errors import UserError

LANGUAGES = ("en", "fr", "de")
FILES = {"train": "train.tsv", "val": "val.tsv", "test": "test_2016_flickr.tsv"}

Texts = dict[str, tuple[str, ...]]  # language -> sentences; row i is the same sentence in every language


def find_directory(directory: str = "") -> Path | None:
    """The folder of the data: `directory`, else $QUINTET_DATA/multi30k, else None for the embedded grammar."""
    return files.data_directory(directory, "multi30k")


def load(directory: str = "") -> dict[str, Texts]:
    """The parts 'train', 'val' and 'test' in three languages, lower-case and tokenised."""
    folder = find_directory(directory)
    if folder is None:
        rows = toy.sentences()
        raw = {"train": rows[200:], "val": rows[:100], "test": rows[100:200]}
        parts = {name: dict(zip(LANGUAGES, zip(*part, strict=True), strict=True)) for name, part in raw.items()}
    else:
        parts = {name: read(_find(folder, file), LANGUAGES) for name, file in FILES.items()}
    return {name: {lang: tokenise(lang, texts) for lang, texts in part.items()} for name, part in parts.items()}


def _find(folder: Path, name: str) -> Path:
    return path if (path := folder / f"{name}.gz").is_file() else folder / name


def read(path: Path, languages: Sequence[str]) -> Texts:
    """Sentences of one file in `languages`, untokenised. Raises UserError, with file and line, for a damaged file."""
    if not path.is_file():
        raise UserError(f"no file {path}; give the folder of Multi30k as --config.data.dir or QUINTET_DATA")
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}); fetch it again") from None
    head, *lines = content.removesuffix(b"\n").split(b"\n")
    names = [name.strip() for name in head.decode("utf-8", "replace").split("\t")]
    if missing := [lang for lang in languages if lang not in names]:
        raise UserError(f"{path} line 1 names the columns {names}; {', '.join(missing)} is missing")
    rows = [_row(line, names, f"{path} line {number}") for number, line in enumerate(lines, 2)]
    if not rows:
        raise UserError(f"{path} has no sentences below its first line")
    return {lang: tuple(row[names.index(lang)] for row in rows) for lang in languages}


def _row(line: bytes, names: list[str], where: str) -> list[str]:
    try:
        fields = [" ".join(field.split()) for field in line.decode("utf-8").split("\t")]
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None
    if len(fields) != len(names):
        raise UserError(f"{where} has {len(fields)} columns between tabs; line 1 names {len(names)}")
    if "" in fields:
        raise UserError(f"{where}: the {names[fields.index('')]} sentence is empty; drop the line or fill it in")
    return fields


def tokenise(language: str, texts: Sequence[str]) -> tuple[str, ...]:
    """Texts in lower case, as Moses tokens with one blank between them, after Moses' normalisation of punctuation.

    The same steps as in SILTranslationGame's scripts.
    """
    normaliser, tokeniser = _moses(language)
    return tuple(tokeniser.tokenize(normaliser.normalize(text.lower()), escape=False, return_str=True) for text in texts)


@functools.cache
def _moses(language: str) -> tuple[MosesPunctNormalizer, MosesTokenizer]:
    return MosesPunctNormalizer(language), MosesTokenizer(language)
