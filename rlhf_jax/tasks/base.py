"""What a task gives: prompts with references and gold answers, preference pairs, plain texts, labelled texts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
    """One split, as aligned lists. `prompt + reference` is the human text; a reference has what stands between them."""

    prompts: list[str]
    references: list[str]  # '' if none
    answers: list[str]  # gold answer of an exact match; '' if none

    def texts(self) -> list[str]:
        return [prompt + reference for prompt, reference in zip(self.prompts, self.references, strict=True)]

    def head(self, n: int) -> "Examples":
        """The first n rows; all of them for n = 0."""
        return Examples(*(column[: n or None] for column in self))


class Pairs(NamedTuple):
    """Preferences, as aligned lists: `prompt + chosen` is the better text."""

    prompts: list[str]
    chosen: list[str]
    rejected: list[str]

    def head(self, n: int) -> "Pairs":
        return Pairs(*(column[: n or None] for column in self))


class Task(NamedTuple):
    """Everything of one task. The splits are 'train', 'validation' and 'test', and share no prompt's source text.

    texts: plain text of each split for language modelling and held-out NLL; in the order of `splits`, prompt + reference
      (but 'train' of StackExchange, which has a subset of its own for this).
    labelled: texts and labels int32 [n] for a reward classifier, in the order of `splits`; {} where the data have no labels.
    """

    name: str
    splits: dict[str, Examples]
    pairs: dict[str, Pairs]
    texts: dict[str, list[str]]
    labelled: dict[str, tuple[list[str], np.ndarray]]


def examples_of(rows: Sequence[tuple[str, str] | tuple[str, str, str]]) -> Examples:
    """Rows of (prompt, reference) or (prompt, reference, answer)."""
    filled = [(*row, "")[:3] for row in rows]
    return Examples(*map(list, zip(*filled, strict=True))) if filled else Examples([], [], [])


def pairs_of(rows: Sequence[tuple[str, str, str]]) -> Pairs:
    """Rows of (prompt, chosen, rejected)."""
    return Pairs(*map(list, zip(*rows, strict=True))) if rows else Pairs([], [], [])
