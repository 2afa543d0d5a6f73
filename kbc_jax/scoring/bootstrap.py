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
    """As observed, a percentile interval, and the share of draws that are not above 0."""

    mean: float
    low: float
    high: float
    not_positive: float


def estimate(values: np.ndarray, level: float = 0.95) -> Estimate:
    """Of values [D]. Draws without a value are left out; NaN where none has one."""
    drawn = values[1:][np.isfinite(values[1:])]
    if not len(drawn):
        return Estimate(float(values[0]), *[float("nan")] * 3)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values[0]), float(low), float(high), float(np.mean(drawn <= 0)))


def triple_weights(cluster: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """float32 [n, D]; cluster int [n]: triples of one number are taken together."""
    _, cluster = np.unique(cluster, return_inverse=True)
    return _weights(cluster.max() + 1, draws, np.random.default_rng(seed))[cluster]


def seed_weights(arm: str, seeds: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """float32 [S, D]; arms of other names draw on their own."""
    return _weights(seeds, draws, np.random.default_rng([seed, zlib.crc32(arm.encode())]))


def _weights(n: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    taken = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    counts = np.bincount(taken.ravel(), minlength=draws * n).reshape(draws, n)
    return np.concatenate([np.ones((1, n)), counts]).T.astype(np.float32)


class Draws:
    """Values of measures of some arms in the same draws: `draws(arm, metric, rows)` -> float64 [D], the mean over seeds.

    arms: {name: (scores [S, n], thresholds [S])}. labels: bool [n]. cluster: int [n].
    rows: {name: bool [n]}, the sets of triples to measure on.
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
        self._known: dict[tuple[str, str, str], np.ndarray] = {}

    def __call__(self, arm: str, metric: str, rows: str) -> np.ndarray:
        if (arm, metric, rows) not in self._known:
            (scores, thresholds), use = self._arms[arm], self._rows[rows]
            values = measure(metric, self._triples[rows], np.asarray(scores)[:, use], self._labels[use], thresholds)
            self._known[arm, metric, rows] = over_seeds(values, self._seeds[arm])
        return self._known[arm, metric, rows]


def over_seeds(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean [D] of values [S, D] over the seeds that each draw has."""
    return (values * weights).sum(0) / weights.sum(0)


def measure(metric: str, weights: np.ndarray, scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """One of METRICS of every seed in every draw: float64 [S, D]. weights [n, D], scores [S, n]; the rest as for `Draws`."""
    if metric in RANKED:
        return np.stack([_ranked(metric, weights, row, labels) for row in scores])
    if metric not in THRESHOLDED:
        raise UserError(f"no bootstrap of {metric!r}; there are {', '.join(METRICS)}")
    called = scores >= np.reshape(thresholds, (-1, 1))
    outcomes = (called & labels, called & ~labels, ~called & labels, ~called & ~labels)  # as the fields of Confusion
    return getattr(Confusion(*((x.astype(np.float32) @ weights).astype(float) for x in outcomes)), metric)()


def _ranked(metric: str, weights: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`metrics.auc` or `metrics.average_precision` [D] of one seed."""
    order, starts = _ties(scores)
    weights, labels = weights[order], labels[order, None]
    positives, negatives = weights * labels, weights * ~labels
    if len(starts) < len(order):
        positives, negatives = (np.add.reduceat(of, starts) for of in (positives, negatives))
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "auc":
            wins = (positives * (negatives.cumsum(0) - negatives / 2)).sum(0, dtype=float)
            return wins / (positives.sum(0, dtype=float) * negatives.sum(0, dtype=float))
        found = positives[::-1].cumsum(0)
        precision = found / np.maximum(found + negatives[::-1].cumsum(0), 1)
        return (positives[::-1] * precision).sum(0, dtype=float) / positives.sum(0, dtype=float)


def spearman(weights: np.ndarray, scores: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank correlation [S, D] of scores [S, n] with values [n]; equal ones share their mean rank."""
    y = _mid_ranks(values, weights)
    return np.stack([_correlation(_mid_ranks(row, weights), y, weights) for row in scores])


def _mid_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank [n, D] of each triple in each draw."""
    order, starts = _ties(values)
    total = np.add.reduceat(weights[order], starts)
    ranks = np.empty(weights.shape)
    ranks[order] = np.repeat(total.cumsum(0) - (total - 1) / 2, np.diff(np.append(starts, len(values))), axis=0)
    return ranks


def _correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    x, y = (v - (v * weights).sum(0) / weights.sum(0) for v in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y * weights).sum(0) / np.sqrt((x * x * weights).sum(0) * (y * y * weights).sum(0))


def top_mean(weights: np.ndarray, scores: np.ndarray, values: np.ndarray, top: int) -> np.ndarray:
    """Mean [S, D] of the values [n] of the `top` best scored triples; of equal scores the first in the file comes first."""
    means = []
    for row in scores:
        order = np.argsort(-row, kind="stable")
        drawn = weights[order]
        used = np.clip(top - (drawn.cumsum(0) - drawn), 0, drawn)
        means.append(np.asarray(values)[order] @ used / used.sum(0))
    return np.stack(means)


def _ties(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An order of rising scores, and where each run of equal ones begins in it."""
    order = np.argsort(scores, kind="stable")
    return order, np.flatnonzero(np.append(True, np.diff(np.asarray(scores)[order]) != 0))
