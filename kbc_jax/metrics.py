"""Threshold, accuracy, F1 and ranking measures of a triple classifier, by novelty and by relation, with paired bootstrap.

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

THRESHOLDED = ("accuracy", "f1", "balanced_accuracy", "balanced_f1")
WIKI_CUTS = (3.22, 4.31)  # thirds of Li et al.'s Wikipedia candidates under OMCS vectors (create_buckets_wiki_models.sh)


def best_threshold(scores, labels) -> tuple[float, float]:
    """(threshold, accuracy): every score is a candidate, the lowest with the best accuracy wins.

    The rule of the authors' code and of Li et al. (callbacks.py, evaluate.py: they walk up the sorted scores), in O(n log n)
    and exact: hits are counted in whole numbers.
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
        """Share of right answers."""
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    def f1(self):
        """F1 of the positive class; 0 where there is neither a true nor a predicted positive."""
        return 2 * self.tp / np.maximum(2 * self.tp + self.fp + self.fn, 1)

    def balanced_accuracy(self):
        """Mean of the shares of positives and of negatives that are right."""
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
    """F1 as it would be if both classes weighed 1/2."""
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
    """Sum over distinct scores, from the top, of precision at that score times the recall gained there."""
    positives, negatives, _ = _levels(scores, labels)
    found = positives[::-1].cumsum()
    precision = found / (found + negatives[::-1].cumsum())
    return float(_ratio(positives[::-1] @ precision, positives.sum()))


def summary(scores, labels, threshold) -> dict[str, float]:
    """n, positives (their share), accuracy, f1, all_positive_f1, balanced_accuracy, balanced_f1, auc, ap."""
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
    """int [n]: 0, 1, 2 for the least to the most novel third by rank, n // 3 triples each; -1 for the rest (report.py).

    The one or two triples that are left over are the most novel ones. Equal novelties keep their order in the file.
    """
    order, size = np.argsort(novelty, kind="stable"), len(novelty) // 3
    bucket = np.full(len(novelty), -1)
    bucket[order[: 3 * size]] = np.repeat([0, 1, 2], size)
    return bucket


def paired_thirds(novelty, labels) -> np.ndarray:
    """int [n]: thirds of the positives by rank; each negative goes where the positive goes that it corrupts. -1 for the rest.

    For files like the official ones, where row n / 2 + i corrupts row i. Every bucket holds as many negatives as positives.
    """
    labels, half = np.asarray(labels, bool), len(labels) // 2
    if len(labels) % 2 or not labels[:half].all() or labels[half:].any():
        raise UserError("paired thirds need a file of n positives, then their n negatives in the same order")
    return np.tile(thirds(novelty[:half]), 2)


def buckets(novelty, cuts: Sequence[float] = WIKI_CUTS) -> np.ndarray:
    """int [n]: the number of cuts that a novelty reaches."""
    return np.searchsorted(cuts, novelty, side="right")


def by_bucket(scores, labels, threshold, bucket) -> list[dict]:
    """`summary` of each bucket that holds triples, with its number as `bucket`, in order. Triples in bucket -1 are left out."""
    scores, labels, bucket = np.asarray(scores), np.asarray(labels, bool), np.asarray(bucket)
    numbers = np.unique(bucket[bucket >= 0])
    return [{"bucket": int(b), **summary(scores[bucket == b], labels[bucket == b], threshold)} for b in numbers]


def by_relation(scores, labels, threshold, relations: Sequence[str]) -> list[dict]:
    """relation, n, accuracy and auc of each relation, the most frequent first."""
    scores, labels, relations = np.asarray(scores), np.asarray(labels, bool), np.asarray(relations)
    names, counts = np.unique(relations, return_counts=True)
    rows = []
    for name in names[np.argsort(-counts, kind="stable")]:
        its = relations == name
        part = scores[its], labels[its]
        rows.append({"relation": str(name), "n": int(its.sum()), "accuracy": accuracy(*part, threshold), "auc": auc(*part)})
    return rows


class Difference(NamedTuple):
    """a - b: as observed, its percentile interval, and the share of draws in which it is not positive."""

    mean: float
    low: float
    high: float
    not_positive: float


def paired_bootstrap(
    metric: str,
    scores_a,
    scores_b,
    labels,
    thresholds_a,
    thresholds_b,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Bootstrap of the difference between two models of a metric's mean over training seeds.

    Args:
      metric: one of THRESHOLDED.
      scores_a, scores_b: float [seeds, n], a row for each training seed; the arms may differ in their number of seeds.
      labels: bool [n], of the same triples for both.
      thresholds_a, thresholds_b: float [seeds]. They stay as they are: the dev set is not drawn again.

    A draw takes n triples with replacement, the same for both arms, and each arm's seeds with replacement on their own.
    """
    if metric not in THRESHOLDED:
        raise UserError(f"no bootstrap of {metric!r}; there are {', '.join(THRESHOLDED)}")
    rng = np.random.default_rng(seed)
    arms = [_outcomes(*arm, np.asarray(labels, bool)) for arm in ((scores_a, thresholds_a), (scores_b, thresholds_b))]
    ones = np.ones((1, len(labels)), np.float32)
    observed = [_measure(metric, ones, arm).mean() for arm in arms]
    weights = _resampled(rng, draws, len(labels))
    a, b = ((_measure(metric, weights, arm) * _resampled(rng, draws, arm.shape[1])).mean(1) for arm in arms)
    low, high = np.quantile(a - b, [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(observed[0] - observed[1]), float(low), float(high), float(np.mean(a <= b)))


def mean_sd(values) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); NaN for the deviation of a single value."""
    values = np.asarray(values, float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _levels(scores, labels):
    """Positives and negatives at each distinct score, int [levels] from the lowest up; each triple's level, int [n]."""
    _, level = np.unique(scores, return_inverse=True)
    total, positives = np.bincount(level), np.bincount(level[np.asarray(labels, bool)], minlength=level.max(initial=-1) + 1)
    return positives, total - positives, level


def _ratio(part, whole):
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)  # 0 / 0 is NaN


def _outcomes(scores, thresholds, labels):
    """float32 [4, seeds, n]: 1 where a triple is a true positive, false positive, false negative, true negative."""
    called = np.atleast_2d(scores) >= np.reshape(thresholds, (-1, 1))
    return np.stack([called & labels, called & ~labels, ~called & labels, ~called & ~labels]).astype(np.float32)


def _measure(metric, weights, outcomes):
    """[draws, seeds]: the metric over triples that count `weights` [draws, n] times."""
    return getattr(Confusion(*((weights @ outcome.T).astype(float) for outcome in outcomes)), metric)()


def _resampled(rng, draws, n):
    """float32 [draws, n]: how often each of n things is taken in n draws with replacement."""
    taken = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(taken.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float32)
