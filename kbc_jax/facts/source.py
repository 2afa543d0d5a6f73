"""The data of a completion run: its splits, their lexicon, and a Source of training triples."""

import functools
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from kbc_jax.facts.data import Lexicon, Split, find_directory, load_split
from kbc_jax.mining.candidates import read_mined
from training.errors import UserError

MINED = ("novel3000.tsv", "human_scored_466.tsv")


class Knowledge(NamedTuple):
    """Splits of one training set, by name, and the lexicon of all of them and of the mined triples."""

    splits: dict[str, Split]
    lexicon: Lexicon

    @property
    def train(self):
        return next(iter(self.splits.values())).train


def open_knowledge(data: ConfigDict) -> Knowledge:
    """The data that `config.data` names. Raises UserError if its splits have different training triples."""
    if not data.splits or data.width < 1:
        raise UserError("config.data needs at least one split and a width of 1 word or more")
    folder = find_directory(data.dir)
    return _open(tuple(data.splits), str(folder) if folder else "toy", data.seed, data.width)


@functools.lru_cache(maxsize=4)  # the members of a population share them
def _open(names: tuple[str, ...], directory: str, seed: int, width: int) -> Knowledge:
    splits = {name: load_split(name, directory, seed=seed) for name in names}
    first = splits[names[0]]
    if any(split.train.keys() != first.train.keys() for split in splits.values()):
        raise UserError(f"config.data.splits {names} have different training triples; train one run for each")
    parts = [part for split in splits.values() for part in split[1:]]
    folder = find_directory(directory)
    mined = [read_mined(path)[0] for name in MINED if folder and (path := folder / "wiki_mined" / name).is_file()]
    return Knowledge(splits, Lexicon.build(first.train, *parts, *mined, width=width))


class TripleSource:
    """Training positives: int32 [n, 3] rows of (head phrase, relation, tail phrase)."""

    def __init__(self, ids: np.ndarray):
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        return self._ids[indices]
