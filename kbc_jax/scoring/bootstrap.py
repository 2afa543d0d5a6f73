"""Bootstrap over test triples and training seeds, with everything that is compared measured on the same draws.

A draw takes clusters of triples with replacement (a true triple and the false ones made from it share words, so they come and
go together), and of each arm the training seeds, with replacement and for itself. Thresholds stay: dev is not drawn again.
Since all values of a draw belong together, differences, and differences of differences, are taken draw by draw.

Shapes: n triples, S seeds, D the observed set (always the first) and the draws after it. A weight says how often a draw has a
triple. Measures that a draw does not define (no positives, say) are NaN.
"""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from kbc_jax.scoring.metrics import Confusion
from training.errors import UserError

THRESHOLDED = ("accuracy", "f1", "balanced_accuracy", "balanced_f1")
RANKED = ("auc", "ap")
METRICS = (*THRESHOLDED, *RANKED)
DRAWS = 2000


class Estimate(NamedTuple):
    """Observed value, percentile interval, and the share of draws that are not above 0."""

    mean: float
    low: float
    high: float
    not_positive: float


def estimate(values: np.ndarray, level: float = 0.95) -> Estimate:
    """Estimate from values [D]: values[0] is observed, values[1:] are draws.

    NaN draws are ignored; if all are NaN, so are the interval and the share. `level`: coverage of the interval.
    """
    draws = values[1:][np.isfinite(values[1:])]
    if not len(draws):
        return Estimate(float(values[0]), *[float("nan")] * 3)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values[0]), float(low), float(high), float(np.mean(draws <= 0)))


def triple_weights(cluster: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Weights of the triples in the draws, float32 [n, D]. Triples of one `cluster` int [n] are drawn together."""
    _, cluster = np.unique(cluster, return_inverse=True)
    return _weights(cluster.max() + 1, draws, np.random.default_rng(seed))[cluster]


def seed_weights(arm: str, seeds: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Weights of the `seeds` = S runs of an arm in the draws, float32 [S, D]; arms draw independently, by their names."""
    return _weights(seeds, draws, np.random.default_rng([seed, zlib.crc32(arm.encode())]))


def _weights(n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n things is drawn, float32 [n, D]; once in the observed set."""
    items = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    counts = np.bincount(items.ravel(), minlength=draws * n).reshape(draws, n)
    return np.concatenate([np.ones((1, n)), counts]).T.astype(np.float32)


class Draws:
    """Measures of several arms on the same draws: `draws(arm, metric, rows)` -> float64 [D], the mean over seeds.

    Args:
      arms: {name: (scores [S, n], thresholds [S])}.
      labels: bool [n].
      cluster: int [n], as for `triple_weights`.
      rows: {name: bool [n]}, the sets of triples to measure on.
      draws: number of draws.
    """

    def __init__(
        self,
        arms: Mapping[str, tuple[np.ndarray, np.ndarray]],
        labels: np.ndarray,
        cluster: np.ndarray,
        rows: Mapping[str, np.ndarray],
        draws: int = DRAWS,
    ):
        self._arms, self._labels, self._rows = arms, np.asarray(labels, bool), rows
        triples = triple_weights(cluster, draws)
        self._triples = {name: triples[use] for name, use in rows.items()}
        self._seeds = {name: seed_weights(name, len(scores), draws) for name, (scores, _) in arms.items()}
        self._cache: dict[tuple[str, str, str], np.ndarray] = {}

    def __call__(self, arm: str, metric: str, rows: str) -> np.ndarray:
        if (arm, metric, rows) not in self._cache:
            (scores, thresholds), use = self._arms[arm], self._rows[rows]
            values = measure(metric, self._triples[rows], np.asarray(scores)[:, use], self._labels[use], thresholds)
            self._cache[arm, metric, rows] = over_seeds(values, self._seeds[arm])
        return self._cache[arm, metric, rows]


def over_seeds(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean [D] of values [S, D] over seeds with weights [S, D]."""
    return (values * weights).sum(0) / weights.sum(0)


def measure(metric: str, weights: np.ndarray, scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """One of METRICS for every seed in every draw, float64 [S, D].

    Args: weights [n, D] of the triples, scores [S, n], labels bool [n], thresholds [S]. Raises UserError for another metric.
    """
    if metric in RANKED:
        return np.stack([_rank_measure(metric, weights, row, labels) for row in scores])
    if metric not in THRESHOLDED:
        raise UserError(f"no bootstrap of {metric!r}; there are {', '.join(METRICS)}")
    called = scores >= np.reshape(thresholds, (-1, 1))
    outcomes = (called & labels, called & ~labels, ~called & labels, ~called & ~labels)  # as the fields of Confusion
    return getattr(Confusion(*((x.astype(np.float32) @ weights).astype(float) for x in outcomes)), metric)()


def _rank_measure(metric: str, weights: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`metrics.auc` or `metrics.average_precision` of one seed in every draw, [D]."""
    order, starts = _ties(scores)
    weights, labels = weights[order], labels[order, None]
    positives, negatives = weights * labels, weights * ~labels
    if len(starts) < len(order):
        positives, negatives = (np.add.reduceat(weight, starts) for weight in (positives, negatives))
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "auc":
            wins = (positives * (negatives.cumsum(0) - negatives / 2)).sum(0, dtype=float)
            return wins / (positives.sum(0, dtype=float) * negatives.sum(0, dtype=float))
        hits = positives[::-1].cumsum(0)
        precision = hits / np.maximum(hits + negatives[::-1].cumsum(0), 1)
        return (positives[::-1] * precision).sum(0, dtype=float) / positives.sum(0, dtype=float)


def spearman(weights: np.ndarray, scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank correlation [S, D] of scores [S, n] with values [n], by weights [n, D]; ties share their mean rank."""
    y = _mid_ranks(values, weights)
    return np.stack([_correlation(_mid_ranks(row, weights), y, weights) for row in scores])


def _mid_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks [n, D] of the values [n] in each draw; ties share their mean rank."""
    order, starts = _ties(values)
    total = np.add.reduceat(weights[order], starts)
    ranks = np.empty(weights.shape)
    ranks[order] = np.repeat(total.cumsum(0) - (total - 1) / 2, np.diff(np.append(starts, len(values))), axis=0)
    return ranks


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted correlation [D] of x and y [n, D]."""
    x, y = (v - (v * weights).sum(0) / weights.sum(0) for v in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y * weights).sum(0) / np.sqrt((x * x * weights).sum(0) * (y * y * weights).sum(0))


def top_mean(weights: np.ndarray, scores: np.ndarray, values: np.ndarray, top: int) -> np.ndarray:
    """Mean [S, D] of the values [n] of the `top` triples with the best scores [S, n]; ties in the order of the file."""
    means = []
    for row in scores:
        order = np.argsort(-row, kind="stable")
        counts = weights[order]
        share = np.clip(top - (counts.cumsum(0) - counts), 0, counts)
        means.append(np.asarray(values)[order] @ share / share.sum(0))
    return np.stack(means)


def _ties(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order int [n] of rising scores, starts of the runs of equal scores in it)."""
    order = np.argsort(scores, kind="stable")
    return order, np.flatnonzero(np.append(True, np.diff(np.asarray(scores)[order]) != 0))
