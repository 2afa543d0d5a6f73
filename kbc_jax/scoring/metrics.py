"""Threshold, accuracy, F1 and ranking measures of a triple classifier, by novelty and by relation.

Scores are float [n], labels bool [n]; a triple is called true where `score >= threshold`. Measures that a set does not define
(AUC without negatives, balanced accuracy without positives) are NaN.

F1 of the positive class falls with the share of positives even at constant skill, and the novel thirds hold fewer positives.
So the bucket table carries beside F1 what calling everything true would get, and `balanced_f1`, where both classes weigh 1/2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from training.errors import UserError


def best_threshold(scores, labels) -> tuple[float, float]:
    """(threshold, accuracy) of the best threshold; every score is a candidate, and of several the lowest wins.

    The rule of the authors' code and of Li et al. (callbacks.py, evaluate.py: they walk up the sorted scores), in O(n log n)
    and exact: hits are counted in whole numbers. Raises UserError without scores, or if one is not finite.
    """
    scores = np.asarray(scores)
    if not len(scores) or not np.isfinite(scores).all():
        raise UserError("no threshold without finite scores: the file is empty or the model diverged (lower its learning rate)")
    positives, negatives, level = _levels(scores, labels)
    hits = positives[::-1].cumsum()[::-1] + negatives.cumsum() - negatives
    best = hits.argmax()
    return float(scores[level == best][0]), float(hits[best] / len(scores))


def best_threshold_device(scores, labels):
    """`best_threshold` in jax.numpy, for jit and vmap: scores [n], labels [n] -> scalars (threshold, accuracy float32)."""
    labels = labels.astype(jnp.int32)
    order = jnp.argsort(scores)
    scores, labels = scores[order], labels[order]
    below = jnp.searchsorted(scores, scores, side="left")  # [n], how many scores lie under this one
    positives_below = jnp.pad(jnp.cumsum(labels), (1, 0))[below]
    hits = labels.sum() - positives_below + (below - positives_below)
    best = jnp.argmax(hits)
    return scores[best], hits[best] / len(scores)


class Confusion(NamedTuple):
    """Numbers (or total weights) of true and false positives and negatives; arrays of one shape, or scalars."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    def accuracy(self):
        """Share of triples that are classified correctly."""
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    def f1(self):
        """F1 of the positive class; 0 where there is neither a true nor a predicted positive."""
        return 2 * self.tp / np.maximum(2 * self.tp + self.fp + self.fn, 1)

    def balanced_accuracy(self):
        """Mean of the accuracies on positives and on negatives."""
        return (self._true_rate() + 1 - self._false_rate()) / 2

    def balanced_f1(self):
        """F1 after weighting both classes to 1/2: 2 TPR / (1 + TPR + FPR). Calling everything true gets 2/3."""
        return 2 * self._true_rate() / (1 + self._true_rate() + self._false_rate())

    def _true_rate(self):
        return _ratio(self.tp, self.tp + self.fn)

    def _false_rate(self):
        return _ratio(self.fp, self.fp + self.tn)


def confusion(scores, labels, threshold) -> Confusion:
    """Counts of `score >= threshold` against the labels."""
    called, labels = np.asarray(scores) >= threshold, np.asarray(labels, bool)
    return Confusion(*(np.sum(x) for x in (called & labels, called & ~labels, ~called & labels, ~called & ~labels)))


def accuracy(scores, labels, threshold) -> float:
    """Share of triples on the right side of the threshold."""
    return float(confusion(scores, labels, threshold).accuracy())


def f1(scores, labels, threshold) -> float:
    """F1 of the positive class."""
    return float(confusion(scores, labels, threshold).f1())


def balanced_accuracy(scores, labels, threshold) -> float:
    """Mean of the accuracies on positives and on negatives."""
    return float(confusion(scores, labels, threshold).balanced_accuracy())


def balanced_f1(scores, labels, threshold) -> float:
    """F1 with both classes weighted to 1/2."""
    return float(confusion(scores, labels, threshold).balanced_f1())


def all_positive_f1(rate: float) -> float:
    """F1 of calling everything true where `rate` of the triples are: 2 rate / (1 + rate)."""
    return 2 * rate / (1 + rate)


def auc(scores, labels) -> float:
    """Probability that a random positive scores above a random negative; ties count half."""
    positives, negatives, _ = _levels(scores, labels)
    wins = positives @ (negatives.cumsum() - negatives / 2)
    return float(_ratio(wins, positives.sum() * negatives.sum()))


def average_precision(scores, labels) -> float:
    """Area under precision and recall: the sum over distinct scores, from the top, of precision times the recall gained."""
    positives, negatives, _ = _levels(scores, labels)
    hits = positives[::-1].cumsum()
    precision = hits / (hits + negatives[::-1].cumsum())
    return float(_ratio(positives[::-1] @ precision, positives.sum()))


def summary(scores, labels, threshold) -> dict[str, float]:
    """Every measure by name: n, positives (their share), accuracy, f1, all_positive_f1, balanced_*, auc, ap."""
    counts, rate = confusion(scores, labels, threshold), float(np.mean(labels))
    return {
        "n": len(scores),
        "positives": rate,
        "accuracy": float(counts.accuracy()),
        "f1": float(counts.f1()),
        "all_positive_f1": all_positive_f1(rate),
        "balanced_accuracy": float(counts.balanced_accuracy()),
        "balanced_f1": float(counts.balanced_f1()),
        "auc": auc(scores, labels),
        "ap": average_precision(scores, labels),
    }


def thirds(novelty) -> np.ndarray:
    """Third of each triple by rank of novelty, int [n]: 0 the least to 2 the most novel, n // 3 triples each (report.py).

    The one or two most novel triples that are left over get -1. Equal novelties keep their order in the file.
    """
    order, size = np.argsort(novelty, kind="stable"), len(novelty) // 3
    bucket = np.full(len(novelty), -1)
    bucket[order[: 3 * size]] = np.repeat([0, 1, 2], size)
    return bucket


def paired_thirds(novelty, labels, source) -> np.ndarray:
    """Third of each triple, int [n]: positives by `thirds` among themselves, each negative with the positive it corrupts.

    source: int [n], the row that a negative was made from (`data.Triples.source`). In the official files every bucket then
    holds as many negatives as positives, where negatives are drawn anew nearly as many.
    """
    labels, bucket = np.asarray(labels, bool), np.full(len(labels), -1)
    bucket[labels] = thirds(np.asarray(novelty)[labels])
    return bucket[source]


def by_bucket(scores, labels, threshold, bucket) -> list[dict]:
    """`summary` of each bucket with triples, in order, and its number as `bucket`. Bucket -1 is left out."""
    scores, labels, bucket = np.asarray(scores), np.asarray(labels, bool), np.asarray(bucket)
    numbers = np.unique(bucket[bucket >= 0])
    return [{"bucket": int(b), **summary(scores[bucket == b], labels[bucket == b], threshold)} for b in numbers]


def by_relation(scores, labels, threshold, relations: Sequence[str]) -> list[dict]:
    """A row for each relation, the most frequent first: {relation, n, accuracy, auc}."""
    scores, labels, relations = np.asarray(scores), np.asarray(labels, bool), np.asarray(relations)
    names, counts = np.unique(relations, return_counts=True)
    rows = []
    for name in names[np.argsort(-counts, kind="stable")]:
        member = relations == name
        part = scores[member], labels[member]
        rows.append({"relation": str(name), "n": int(member.sum()), "accuracy": accuracy(*part, threshold), "auc": auc(*part)})
    return rows


def mean_sd(values) -> tuple[float, float]:
    """(mean, sample standard deviation with n - 1); the deviation of a single value is NaN."""
    values = np.asarray(values, float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _levels(scores, labels):
    """(positives, negatives) at each distinct score, int [levels] from the lowest up, and each triple's level, int [n]."""
    _, level = np.unique(scores, return_inverse=True)
    total, positives = np.bincount(level), np.bincount(level[np.asarray(labels, bool)], minlength=level.max(initial=-1) + 1)
    return positives, total - positives, level


def _ratio(part, whole):
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)  # 0 / 0 is NaN
