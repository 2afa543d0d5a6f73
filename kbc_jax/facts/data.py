"""Triples of ConceptNet: their files, the splits of the paper, and the lexicon that numbers words and phrases.

Files are tab-separated: relation, head, tail, and in dev and test files a fourth column, the label 1 or 0. Layout of the data
directory (Li et al. 2016's official files under other names; `cn82k` is the re-split of Wang et al. 2021):

    train100k.tsv dev1.tsv dev2.tsv test.tsv    cn82k/{train,valid,test}.tsv    wiki_mined/*.tsv
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kbc_jax.facts import toy
from training import files
from training.errors import UserError

PADDING, UNKNOWN = "", "UUUNKKK"  # words 0 and 1
FILES = {"train": "train100k.tsv", "dev1": "dev1.tsv", "dev2": "dev2.tsv", "test": "test.tsv"}
SPLITS = ("official", "redrawn", "random", "cn82k")
RANDOM_SEED = 777  # split_intrinsic_LiACL.py


NAMES = (
    "AtLocation UsedFor IsA CapableOf HasPrerequisite HasProperty Causes HasA MotivatedByGoal Desires CausesDesire PartOf "
    "ReceivesAction NotDesires MadeOf NotCapableOf DefinedAs HasFirstSubevent HasLastSubevent NotHasProperty NotIsA RelatedTo "
    "CreatedBy NotHasA SymbolOf NotMadeOf InstanceOf HasSubevent InheritsFrom LocatedNear HasPainIntensity HasPainCharacter "
    "DesireOf LocationOfAction"
)
RELATIONS = {name.lower(): name for name in NAMES.split()}  # in the order of the official rel.txt


class Triples(NamedTuple):
    """n triples as text: phrases of lower-case words with one blank between them, lower-case relations."""

    relation: tuple[str, ...]
    head: tuple[str, ...]
    tail: tuple[str, ...]
    label: np.ndarray  # bool [n]; all true where the file has no labels
    source: np.ndarray | None = None  # int [n] or unknown: row of the true triple that a false one corrupts

    @property
    def size(self) -> int:
        return len(self.label)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Triples":
        """The rows at `indices`, without `source`, since rows are numbered anew."""
        relation, head, tail = (tuple(column[i] for i in indices) for column in self[:3])
        return Triples(relation, head, tail, self.label[np.asarray(indices, int)])

    def positives(self) -> "Triples":
        return self.take(np.flatnonzero(self.label))

    def keys(self) -> list[tuple[str, str, str]]:
        """(relation, head, tail) of every row."""
        return list(zip(*self[:3], strict=True))

    @staticmethod
    def of(keys: Iterable[tuple[str, str, str]], label: np.ndarray | None = None) -> "Triples":
        """Triples from rows (relation, head, tail), all true without `label` [n]."""
        relation, head, tail = zip(*keys, strict=True)
        return Triples(relation, head, tail, np.ones(len(head), bool) if label is None else np.asarray(label, bool))

    @staticmethod
    def concatenate(*parts: "Triples") -> "Triples":
        columns = (sum(column, ()) for column in zip(*(p[:3] for p in parts), strict=True))
        return Triples(*columns, np.concatenate([p.label for p in parts]))


class Split(NamedTuple):
    """Training positives, and three labelled sets: dev1 chooses the threshold, dev2 the epoch, test is reported."""

    train: Triples
    dev1: Triples
    dev2: Triples
    test: Triples


def read_triples(path: Path | str, *, labelled: bool) -> Triples:
    """The triples of one file, with labels if `labelled`. Raises UserError, with file and line, for what is no triple."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no file {path}; give the folder of the ConceptNet-100k files as --config.data.dir or QUINTET_DATA")
    rows, labels = [], []
    for number, line in files.lines(path):
        if line.strip():
            row, label = _parse(line, labelled, f"{path} line {number}")
            rows.append(row)
            labels.append(label)
    if not rows:
        raise UserError(f"{path} is empty: no triples to read")
    if labelled and len(set(labels)) < 2:
        raise UserError(f"{path} has only {'true' if labels[0] else 'false'} triples; a threshold needs both classes")
    return Triples.of(rows, np.array(labels))


def _parse(line: str, labelled: bool, where: str) -> tuple[tuple[str, str, str], bool]:
    fields = [" ".join(field.split()) for field in line.split("\t")]
    if len(fields) not in ((4,) if labelled else (3, 4)):
        wanted = "relation, head, tail, label" if labelled else "relation, head, tail"
        raise UserError(f"{where} has {len(fields)} columns between tabs; it needs {wanted}")
    relation, head, tail = fields[0].lower(), fields[1].lower(), fields[2].lower()
    if relation not in RELATIONS:
        raise UserError(f"{where}: unknown relation {fields[0]!r}; known are {', '.join(RELATIONS.values())}")
    if not head or not tail:
        raise UserError(f"{where}: the {'tail' if head else 'head'} is empty; drop the line or fill it in")
    if labelled and fields[3] not in ("0", "1"):
        raise UserError(f"{where}: label {fields[3]!r} is not 0 or 1")
    return (relation, head, tail), not labelled or fields[3] == "1"


def find_directory(directory: str = "") -> Path | None:
    """The folder of the data: `directory`, else $QUINTET_DATA/conceptnet100k, else None for the embedded toy facts."""
    return files.data_directory(directory, "conceptnet100k")


def load_split(name: str, directory: str = "", *, seed: int = 0) -> Split:
    """One of the paper's splits. Without a data directory, toy facts stand in for the official files.

    Args:
      name: 'official' (Li et al. 2016's files); 'redrawn' (official positives, new negatives: `conceptnet_my`, the paper's
        "high quality" split); 'random' (all positives dealt again, new negatives: `conceptnet_my_random_100k`); 'cn82k'
        (training file of CN-82K, 2,400 of its valid and test positives with negatives).
      seed: of the negatives drawn here. The authors' own draw cannot be repeated (it depends on Python's hash order).
    """
    if name not in SPLITS:
        raise UserError(f"no split {name!r}; there are {', '.join(SPLITS)}")
    folder, rng = find_directory(directory), np.random.default_rng(seed)
    if name == "cn82k":
        train, valid, test = load_graph("cn82k", directory)
        dev = valid.take(rng.permutation(valid.size)[: min(1200, valid.size // 2 * 2)])
        half, test = dev.size // 2, test.take(rng.permutation(test.size)[:1200])
        parts = (dev.take(range(half)), dev.take(range(half, 2 * half)), test)
        return Split(train, *(with_negatives(part, rng) for part in parts))
    official = Split(**_read_official(folder)) if folder else Split(*map(_toy, toy.split()))
    if name == "official":
        return Split(official.train, *map(add_source, official[1:]))
    positives = [part.positives() for part in official[1:]]
    train = official.train
    if name == "random":
        dev1, dev2, test = positives
        pool = Triples.concatenate(train, test, dev1, dev2)  # the order of split_intrinsic_LiACL.py, and so its very split
        order = np.random.RandomState(RANDOM_SEED).permutation(pool.size)
        rows = np.split(order, np.cumsum([test.size, dev1.size, dev2.size]))
        test, dev1, dev2, train = map(pool.take, rows)
        positives = dev1, dev2, test
    return Split(train, *(with_negatives(part, rng) for part in positives))


def load_graph(name: str, directory: str = "") -> tuple[Triples, Triples, Triples]:
    """Positives of a graph for link prediction: (train, valid, test) of 'cn100k' (the official files) or 'cn82k'."""
    folder = find_directory(directory)
    if name == "cn82k" and folder:
        return tuple(read_triples(folder / "cn82k" / f"{part}.tsv", labelled=False) for part in ("train", "valid", "test"))
    if name not in ("cn100k", "cn82k"):
        raise UserError(f"no graph {name!r}; there are cn100k and cn82k")
    train, dev1, dev2, test = load_split("official", directory)
    return train, Triples.concatenate(dev1.positives(), dev2.positives()), test.positives()


def with_negatives(positives: Triples, rng: np.random.Generator) -> Triples:
    """The N positives, then N negatives, with `source`.

    As augment_with_negative_samples.py: each slot of each positive is replaced by that of a random row, which makes 3N
    corruptions; N of them are drawn, so that a positive has 0 to 3. Corruptions that are true are not filtered out.
    """
    n = positives.size
    keep = rng.permutation(3 * n)[:n]
    other = rng.integers(n, size=n)
    slot, row = np.divmod(keep, n)
    rows = list(map(list, positives.take(row).keys()))
    for key, column, j in zip(rows, slot, other, strict=True):
        key[column] = positives[column][j]
    triples = Triples.of(positives.keys() + [tuple(key) for key in rows], np.arange(2 * n) < n)
    return triples._replace(source=np.concatenate([np.arange(n), row]))


def add_source(triples: Triples) -> Triples:
    """`triples` with `source`, if they are n positives followed by one corruption of each, in order, of at most one slot.

    The official files have this form. Triples of another form come back unchanged.
    """
    n = triples.size // 2
    keys = triples.keys()
    fits = triples.size == 2 * n and triples.label[:n].all() and not triples.label[n:].any()
    if not fits or any(sum(a != b for a, b in zip(*pair, strict=True)) > 1 for pair in zip(keys[:n], keys[n:], strict=True)):
        return triples
    return triples._replace(source=np.tile(np.arange(n), 2))


def _read_official(folder: Path) -> dict[str, Triples]:
    return {part: read_triples(folder / file, labelled=part != "train") for part, file in FILES.items()}


def _toy(rows: list[tuple[str, str, str, bool]]) -> Triples:
    return Triples.of([row[:3] for row in rows], np.array([row[3] for row in rows]))


class Lexicon:
    """Numbers for words, phrases and relations.

    words           tuple: PADDING, UNKNOWN, then every word, training words first
    phrases         tuple: every distinct head and tail
    phrase_words    int32 [phrases, width]: words of each phrase, 0 = padding; longer phrases are cut (37 of 78,334 at width 8)
    seen            bool [words]: the word occurs in the training triples
    """

    def __init__(self, words: tuple[str, ...], seen: np.ndarray, phrases: tuple[str, ...], width: int):
        self.words, self.seen, self.phrases, self.width = words, seen, phrases, width
        self.relations = tuple(RELATIONS)
        self._word = {word: i for i, word in enumerate(words)}
        self._phrase = {phrase: i for i, phrase in enumerate(phrases)}
        self._relation = {relation: i for i, relation in enumerate(self.relations)}
        self.phrase_words = self.encode(phrases)

    @classmethod
    def build(cls, train: Triples, *others: Triples, width: int = 8) -> "Lexicon":
        """The lexicon of a training set and of other triples, numbered in the order in which they come."""
        train_phrases = list(dict.fromkeys([*train.head, *train.tail]))
        phrases = list(dict.fromkeys([*train_phrases, *(p for part in others for p in (*part.head, *part.tail))]))
        train_words = dict.fromkeys(word for phrase in train_phrases for word in phrase.split())
        words = dict.fromkeys([PADDING, UNKNOWN, *train_words, *(word for phrase in phrases for word in phrase.split())])
        return cls(tuple(words), np.array([word in train_words for word in words]), tuple(phrases), width)

    def to_json(self) -> str:
        """The lexicon as text, to be saved with a run, whose word table is numbered by it."""
        seen = np.flatnonzero(self.seen).tolist()
        return json.dumps({"words": self.words, "seen": seen, "phrases": self.phrases, "width": self.width}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Lexicon":
        """The lexicon that `to_json` has written."""
        saved = json.loads(text)
        seen = np.isin(np.arange(len(saved["words"])), saved["seen"])
        return cls(tuple(saved["words"]), seen, tuple(saved["phrases"]), saved["width"])

    def encode(self, phrases: Sequence[str]) -> np.ndarray:
        """Word numbers int32 [n, width] of any phrases; words without a number are UNKNOWN."""
        table = np.zeros((len(phrases), self.width), np.int32)
        for row, phrase in zip(table, phrases, strict=True):
            numbers = [self._word.get(word, 1) for word in phrase.split()[: self.width]]
            row[: len(numbers)] = numbers
        return table

    def ids(self, triples: Triples) -> np.ndarray:
        """Numbers int32 [n, 3] of head phrase, relation, tail phrase. Raises UserError for a phrase without a number."""
        try:
            head, tail = ([self._phrase[p] for p in column] for column in (triples.head, triples.tail))
        except KeyError as error:
            raise UserError(f"the phrase {error.args[0]!r} is not in the lexicon; build it with these triples") from None
        return np.stack([head, self.relation_ids(triples.relation), tail], 1).astype(np.int32)

    def unseen(self, triples: Triples) -> np.ndarray:
        """True, bool [n], where the head or the tail has a word that no training triple has."""
        words = self.phrase_words[self.ids(triples)[:, [0, 2]]]
        return ((words > 0) & ~self.seen[words]).any((1, 2))

    def relation_ids(self, relations: Sequence[str]) -> np.ndarray:
        return np.array([self._relation[r] for r in relations], np.int32)


def phrase_means(vectors: np.ndarray, phrase_words: np.ndarray) -> np.ndarray:
    """Mean word vector of each phrase, float32 [phrases, D], not normalised and without padding; 0 for an empty phrase."""
    mask = (phrase_words > 0)[..., None]
    total = np.zeros((len(phrase_words), vectors.shape[1]), np.float32)
    for column, use in zip(phrase_words.T, mask.swapaxes(0, 1), strict=True):
        total += vectors[column] * use
    return total / np.maximum(mask.sum(1, dtype=np.float32), 1)
