"""Movie reviews: continue the first half so that it sounds happy (Ramamurthy et al. 2022, RL4LMs; Maas et al. 2011).

RL4LMs's task is level 'review', not cleaned: prompt = first half of the words between blanks, 80 % of the training file to
train on, 20 % to validate. Level 'sentence' cuts reviews into sentences, for small models.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.tasks import embedded
from rlhf_jax.tasks.base import Examples, Task, examples_of
from rlhf_jax.tasks.files import deal, is_tfds, need_file, read_jsonl, read_tfds, shuffled
from training.errors import UserError
from training.files import data_directory

LEVELS = ("review", "sentence")
BREAK = re.compile(r"<br\s*/?>")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


def load(
    directory: str = "",
    *,
    seed: int = 0,
    limit: int = 0,
    level: str = "review",
    clean: bool = False,
    prompt_words: int = 0,
    words: int = 0,
    shortest: int = 2,
    longest: int = 0,
    validation: float = 0.2,
) -> Task:
    """IMDB, or embedded reviews without a data directory.

    Args:
      directory: folder with train.jsonl and test.jsonl (fields text and label, 0 or 1), plain or gzipped; 'tfds' or
        'tfds:FOLDER' for tensorflow-datasets' imdb_reviews; '' and 'toy' as in `data_directory`.
      limit: rows of each split (sentences come from as many reviews as they take); 0 = all.
      level: 'review' or 'sentence'. A sentence has the label of its review, and no split has a sentence of another.
      clean: `<br />` becomes a blank and blanks are run together (sentences always are).
      prompt_words: words of the prompt; 0 = the first half of the text.
      words: words of the continuation at most; 0 = all that is left.
      shortest, longest: texts of fewer or more words than this are left out; 0 = no limit.
      validation: share of the training file held out.
    """
    if level not in LEVELS:
        raise UserError(f"config.data.level {level!r} is not {' or '.join(LEVELS)}")
    if min(prompt_words, words, shortest, longest) < 0:
        raise UserError("config.data.prompt_words, words, shortest and longest are numbers of words: 0 or more")
    read = _reader(directory)
    reviews = {**deal(read("train"), {"validation": validation}, seed, "reviews"), "test": shuffled(read("test"), seed)}
    shortest = max(shortest, prompt_words + 1, 2)
    splits, labelled, seen = {}, {}, set()
    for split, rows in reviews.items():
        texts = _sentences(rows, seen) if level == "sentence" else _whole(rows, clean)
        fitting = ((w, label) for w, label in texts if shortest <= len(w) <= (longest or len(w)))
        kept = shuffled(list(itertools.islice(fitting, limit or None)), seed)  # sentences of a review lie together
        if not kept:
            raise UserError(f"no {level} of the {split} split has {shortest} to {longest or 'any number of'} words; widen them")
        splits[split] = _examples([w for w, _ in kept], prompt_words, words)
        labelled[split] = (splits[split].texts(), np.array([label for _, label in kept], np.int32))
    return Task("imdb", splits, {}, {split: texts for split, (texts, _) in labelled.items()}, labelled)


def _reader(directory: str) -> Callable[[str], list[dict[str, Any]]]:
    """A function from a split to its rows, with text and label."""
    if is_tfds(directory):
        return lambda split: read_tfds("imdb_reviews", split, directory)
    folder = data_directory(directory, "imdb")
    return embedded.reviews if folder is None else lambda split: _read(folder, split)


def _read(folder: Path, split: str) -> list[dict[str, Any]]:
    check = lambda row: "" if row["label"] in (0, 1) else f"label {row['label']} is not 0 or 1"  # noqa: E731
    return read_jsonl(need_file(folder, split), {"text": str, "label": int}, check)


def clean_text(text: str) -> str:
    """Without HTML line breaks, and with one blank between words."""
    return " ".join(BREAK.sub(" ", text).split())


def sentences(text: str) -> list[str]:
    """Sentences of a cleaned text: cut at blanks after . ! ? and closing quotes, which stay with their sentence."""
    ends = [m.start() + len(m.group().rstrip()) for m in SENTENCE_END.finditer(text)]
    return [part for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if (part := text[a:b].strip())]


def _whole(rows: Iterable[dict], clean: bool) -> Iterator[tuple[list[str], int]]:
    """(words, label) of each review; words are what lies between single blanks, as in RL4LMs, and so may be empty."""
    for row in rows:
        yield (clean_text(row["text"]) if clean else row["text"].strip()).split(" "), int(row["label"])


def _sentences(rows: Iterable[dict], seen: set[str]) -> Iterator[tuple[list[str], int]]:
    """(words, label) of the sentences that are not in `seen`, and adds them to it."""
    for row in rows:
        for sentence in sentences(clean_text(row["text"])):
            if sentence not in seen:
                seen.add(sentence)
                yield sentence.split(" "), int(row["label"])


def _examples(texts: Iterable[list[str]], prompt_words: int, words: int) -> Examples:
    rows = []
    for text in texts:
        start = prompt_words or len(text) // 2
        stop = start + words if words else len(text)
        rows.append((" ".join(text[:start]), " " + " ".join(text[start:stop])))
    return examples_of(rows)
