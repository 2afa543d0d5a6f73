"""Candidate triples from tagged text, and their files.

Extraction follows Li et al. 2016: an argument of relation r is an n-gram whose tag sequence is one of the 15 most frequent ones
of r's heads or tails in ConceptNet; two arguments of one sentence make a candidate, in either order.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kbc_jax.facts.data import RELATIONS, Triples
from kbc_jax.mining.tagging import PUNCTUATION, Tagger, Token, is_argument, normalise
from training import files
from training.errors import UserError

_MINED = "AtLocation CapableOf Causes HasA HasPrerequisite HasProperty HasSubevent IsA ReceivesAction UsedFor"
MINED = tuple(_MINED.lower().split())  # the relations of Li et al.
_ID_BITS = 26  # of a phrase number; two of them and a bit for each relation fit in an int64


class Sides(NamedTuple):
    """Counts of tag sequences (tuples of str) among the heads and among the tails of a relation."""

    head: Counter
    tail: Counter


Patterns = dict[str, Sides]  # relation -> its most frequent tag sequences


def learn_patterns(
    train: Triples, tagger: Tagger, *, relations: Sequence[str] = MINED, top: int = 15, max_words: int = 5
) -> Patterns:
    """The `top` most frequent tag sequences of the heads and of the tails of each relation, counted over triples.

    Phrases longer than `max_words` or with punctuation are left out; each distinct one is tagged once. Raises UserError for a
    relation without triples.
    """
    if missing := sorted(set(relations) - set(train.relation)):
        raise UserError(f"no triples of {', '.join(missing)} to learn patterns from; leave the relation out")
    keys = train.take([i for i, relation in enumerate(train.relation) if relation in relations]).keys()
    phrases = [p for p in dict.fromkeys(p for key in keys for p in key[1:]) if len(p.split()) <= max_words]
    tagged = tagger([phrase.split() for phrase in phrases])
    tags = {phrase: tuple(t.tag for t in tokens) for phrase, tokens in zip(phrases, tagged, strict=True)}
    counts = {relation: Sides(Counter(), Counter()) for relation in relations}
    for relation, *arguments in keys:
        for counter, phrase in zip(counts[relation], arguments, strict=True):
            if PUNCTUATION not in tags.get(phrase, PUNCTUATION):
                counter[tags[phrase]] += 1
    return {relation: Sides(*(Counter(dict(c.most_common(top))) for c in sides)) for relation, sides in counts.items()}


def save_patterns(patterns: Patterns, path: Path | str) -> None:
    """Write patterns as JSON: {relation: {"head": {"ADJ NOUN": count}, "tail": ...}}, the most frequent first."""
    table = {
        relation: {side: {" ".join(tags): n for tags, n in counter.most_common()} for side, counter in sides._asdict().items()}
        for relation, sides in patterns.items()
    }
    files.write(path, [json.dumps(table, indent=1)])


def load_patterns(path: Path | str) -> Patterns:
    """Read the patterns that `save_patterns` has written. Raises UserError for another file."""
    try:
        table = json.loads(files.text(path))
        patterns = {relation: Sides(_counter(sides["head"]), _counter(sides["tail"])) for relation, sides in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is no pattern file; make one with python -m kbc_jax.mine patterns") from None
    if unknown := set(patterns) - set(RELATIONS):
        raise UserError(f"{path}: unknown relation {min(unknown)!r}")
    return patterns


def _counter(counts: dict[str, int]) -> Counter:
    return Counter({tuple(tags.split()): int(count) for tags, count in counts.items()})


def candidates(
    sentences: Iterable[Sequence[Token]],
    patterns: Patterns,
    *,
    known: Triples | None = None,
    window: int = 10,
    minimum: int = 1,
    max_words: int = 5,
) -> Counter:
    """Candidate triples with the number of sentences each is in, Counter {(relation, head, tail): count}.

    Args:
      sentences: tagged sentences, read once; of each only its arguments are kept.
      known: triples to leave out (ConceptNet).
      window: most words between the two arguments; the number of pairs grows in proportion to it.
      minimum: least count. Phrases in fewer sentences than this are dropped before pairs are formed, so that a higher minimum
        saves time and memory; at 1 every pair of phrases is made a triple of strings.
      max_words: longest n-gram.

    Raises UserError for options out of range, too many relations or too many phrases.
    """
    if min(window + 1, minimum, max_words) < 1:
        raise UserError("candidates need window >= 0, minimum >= 1 and max_words >= 1")
    if len(patterns) + 2 * _ID_BITS > 63:
        raise UserError(f"patterns of {len(patterns)} relations are too many at once: at most {63 - 2 * _ID_BITS}")
    pairs, phrases = _find_pairs(sentences, patterns, window, minimum, max_words)
    excluded = set(known.keys()) if known else set()
    counted = Counter()
    for relation, rows, counts in _count(pairs, list(patterns), minimum):
        for pair, count in zip(rows.tolist(), counts.tolist(), strict=True):
            key = (relation, phrases[pair >> _ID_BITS], phrases[pair & (1 << _ID_BITS) - 1])
            if key not in excluded:
                counted[key] = count
    return counted


def _find_pairs(sentences, patterns: Patterns, window: int, minimum: int, max_words: int) -> tuple[np.ndarray, list[str]]:
    """(pairs of all sentences, sorted, as `_pairs` makes them; phrases, by number)."""
    ids: dict[str, int] = {}
    masks = _pattern_masks(patterns)
    tables = [a for s in sentences if len(a := _arguments(s, masks, ids, max_words)) > 1]
    if len(ids) >> _ID_BITS:
        raise UserError(f"more than {1 << _ID_BITS:,} distinct phrases: extract from less text at once")
    if not tables:
        return np.zeros(0, np.int64), []
    frequency = np.bincount(np.concatenate([np.unique(a[:, 0]) for a in tables]), minlength=len(ids))
    pairs = np.concatenate([_pairs(a[frequency[a[:, 0]] >= minimum], window, len(patterns)) for a in tables])
    pairs.sort()
    return pairs, list(ids)


def _pattern_masks(patterns: Patterns) -> dict[tuple[str, ...], list[int]]:
    """{tag sequence: [relations whose heads it fits, relations whose tails it fits]}, a bit for each relation."""
    masks: dict[tuple[str, ...], list[int]] = {}
    for bit, sides in enumerate(patterns.values()):
        for side, counter in enumerate(sides):
            for tags in counter:
                masks.setdefault(tags, [0, 0])[side] |= 1 << bit
    return masks


def _arguments(sentence: Sequence[Token], masks, ids: dict[str, int], max_words: int) -> np.ndarray:
    """Arguments of a sentence, int64 [m, 5]: phrase, first word, end, relations it fits as head, as tail.

    `ids` numbers phrases, and gets the new ones. Relations are bits, as in `_pattern_masks`.
    """
    tags, rows = tuple(token.tag for token in sentence), []
    for begin in range(len(tags)):
        for end in range(begin + 1, min(begin + max_words, len(tags)) + 1):
            mask = masks.get(tags[begin:end])
            if mask and is_argument(phrase := normalise(sentence[begin:end])):
                rows.append((ids.setdefault(phrase, len(ids)), begin, end, *mask))
    return np.array(rows, np.int64).reshape(-1, 5)


def _pairs(arguments: np.ndarray, window: int, relations: int) -> np.ndarray:
    """Pairs of one sentence, int64 [p]: head number, tail number, relations, from the high bits down.

    Each (head, tail) comes once, so that a place in the text that is both 'the dog' and 'dog' is not counted twice.
    """
    phrase, begin, end, head_of, tail_of = arguments.T
    gap = begin[None, :] - end[:, None]
    before, after = np.nonzero((gap >= 0) & (gap <= window))
    head, tail = np.concatenate([before, after]), np.concatenate([after, before])
    fits = head_of[head] & tail_of[tail]
    keep = (fits > 0) & (phrase[head] != phrase[tail])
    pair, fits = (phrase[head] << _ID_BITS | phrase[tail])[keep], fits[keep]
    if not len(pair):
        return pair
    order = np.argsort(pair)
    starts = _starts(pair[order])
    return pair[order][starts] << relations | np.bitwise_or.reduceat(fits[order], starts)


def _starts(values: np.ndarray) -> np.ndarray:
    """Starts of the runs of equal values."""
    return np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])


def _count(pairs: np.ndarray, relations: Sequence[str], minimum: int):
    """Yield (relation, pairs int64 [k], counts [k] >= minimum) for each relation, from the sorted output of `_pairs`."""
    starts = _starts(pairs >> len(relations))
    lengths = np.diff(np.append(starts, len(pairs)))
    pairs = pairs[np.repeat(lengths >= minimum, lengths)]
    starts = _starts(pairs >> len(relations))
    for bit, relation in enumerate(relations):
        counts = np.add.reduceat(pairs >> bit & 1, starts) if len(starts) else starts
        frequent = counts >= minimum
        yield relation, pairs[starts[frequent]] >> len(relations), counts[frequent]


def as_triples(counted: Counter) -> tuple[Triples, np.ndarray]:
    """(triples, counts int64 [n]) of `candidates`, the most frequent first, then by the alphabet."""
    ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    columns = zip(*(key for key, _ in ordered), strict=True) if ordered else ((), (), ())
    return Triples(*columns, np.ones(len(ordered), bool)), np.array([n for _, n in ordered], np.int64)


def write_mined(path: Path | str, triples: Triples, **columns: Iterable[float]) -> None:
    """Write triples with columns of numbers [n], tab-separated under the header rel, head, tail, and the columns' names."""
    rows = zip((RELATIONS[r] for r in triples.relation), triples.head, triples.tail, *columns.values(), strict=True)
    files.write(path, ("\t".join(map(str, row)) for row in itertools.chain([("rel", "head", "tail", *columns)], rows)))


def read_mined(path: Path | str) -> tuple[Triples, dict[str, np.ndarray]]:
    """(mined triples, {column: numbers float64 [n]}) of a file; the column `sheet`, which holds names, is left out.

    The header is rel, head, tail and names of columns (`novel3000.tsv`, `human_scored_466.tsv` and what `write_mined` makes).
    Raises UserError, with file and line, for anything else.
    """
    rows = ((number, line.split("\t")) for number, line in files.lines(path) if line)
    _, header = next(rows, (1, []))
    if header[:3] != ["rel", "head", "tail"]:
        raise UserError(f"{path} line 1: the header must begin with rel, head, tail between tabs")
    if len(set(header)) < len(header):
        raise UserError(f"{path} line 1: two columns have one name; rename or drop one")
    names = [name for name in header[3:] if name != "sheet"]
    keys, numbers = [], []
    for number, fields in rows:
        key, values = _mined_row(header, names, fields, f"{path} line {number}")
        keys.append(key)
        numbers.append(values)
    if not keys:
        raise UserError(f"{path} has no triples below its header")
    table = np.array(numbers, float).reshape(len(keys), len(names))
    return Triples.of(keys), dict(zip(names, table.T, strict=True))


def _mined_row(header: list[str], names: list[str], fields: list[str], where: str) -> tuple[tuple[str, str, str], list[float]]:
    if len(fields) != len(header):
        raise UserError(f"{where} has {len(fields)} columns between tabs; the header has {len(header)}")
    row = dict(zip(header, fields, strict=True))
    key = tuple(" ".join(row[name].lower().split()) for name in ("rel", "head", "tail"))
    if key[0] not in RELATIONS or not all(key):
        raise UserError(f"{where}: unknown relation {row['rel']!r}, or an empty phrase")
    try:
        values = [float(row[name]) for name in names]
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if not np.isfinite(values).all():
        raise UserError(f"{where} has a number that is not finite")
    return key, values
