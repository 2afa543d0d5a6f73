"""Comparison of a study's arms on the test triples of a split, whole and by novelty: estimates with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kbc_jax.scoring.bootstrap import DRAWS, METRICS, Draws, estimate

PAIRS = (
    ("factorized", "dnn"), ("factorized", "prototypical"), ("dnn", "prototypical"), ("fusion", "factorized"),
    ("factorized_dense", "factorized"), ("dnn_dense", "dnn"), ("factorized_static_dense", "factorized_static"),
    ("factorized_static", "factorized"),
)  # fmt: skip
THIRDS = ("third", "paired third")  # of all triples; of the true ones, each with the false ones that were made from it
ALL, UNSEEN = "all", "unseen words"

Level = dict[str, int]  # a sum of measures: {set of triples: its factor}

LEVELS: dict[str, Level] = {
    ALL: {ALL: 1},
    UNSEEN: {UNSEEN: 1},
    **{f"{kind} {k}": {f"{kind} {k}": 1} for kind in THIRDS for k in (1, 2, 3)},
    **{f"{kind} 1 - 3": {f"{kind} 1": 1, f"{kind} 3": -1} for kind in THIRDS},
    **{f"all - {kind} 1": {ALL: 1, f"{kind} 1": -1} for kind in THIRDS},
}


def row_sets(unseen: np.ndarray, thirds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sets of triples, {set: bool [n]}, without empty ones. `thirds`: {one of THIRDS: int [n], 0, 1, 2, or -1 for none}."""
    sets = {ALL: np.ones(len(unseen), bool), UNSEEN: unseen}
    sets |= {f"{kind} {k + 1}": bucket == k for kind, bucket in thirds.items() for k in range(3)}
    return {name: rows for name, rows in sets.items() if rows.any()}


def compare(
    arms: Mapping[str, tuple[np.ndarray, np.ndarray]],
    labels: np.ndarray,
    cluster: np.ndarray,
    sets: Mapping[str, np.ndarray],
    *,
    metrics: Sequence[str] = METRICS,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    draws: int = DRAWS,
) -> dict[str, dict[str, Any]]:
    """Estimates of every arm and pair on the same draws: {arm or 'a - b': {metric: {level: Estimate as a dict}}}.

    Levels whose sets are missing are left out, and so are pairs with an arm missing.

    Args: arms, labels, cluster and draws are those of `bootstrap.Draws`, sets that of `row_sets`.
    """
    value = Draws(arms, labels, cluster, sets, draws)
    levels = {name: level for name, level in LEVELS.items() if level.keys() <= sets.keys()}
    estimates = {}
    for name, signs in contrasts(arms, pairs).items():
        estimates[name] = {
            metric: {
                level: estimate(
                    sum(sign * count * value(arm, metric, rows) for arm, sign in signs.items() for rows, count in parts.items())
                )._asdict()
                for level, parts in levels.items()
            }
            for metric in metrics
        }
    return estimates


def contrasts(arms: Mapping[str, Any], pairs: Sequence[tuple[str, str]] = PAIRS) -> dict[str, dict[str, int]]:
    """Each arm by itself and each pair whose arms are there, as signed sums: {arm or 'a - b': {arm: sign}}."""
    present = [pair for pair in pairs if set(pair) <= arms.keys()]
    return {name: {name: 1} for name in arms} | {f"{a} - {b}": {a: 1, b: -1} for a, b in present}
