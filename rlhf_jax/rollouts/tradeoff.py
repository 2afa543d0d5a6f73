"""Reward against drift: which method gets more reward for the same drift? On the host, in NumPy.

A run is a cloud of evaluations (drift d, reward R), scaled so that the start is (0, 0) and `top` has reward 1. Its envelope at
d is the best reward of all its checkpoints with at most that drift, and never below 0, since one can always keep the start. The
mean of the envelope over [0, d_max] is the run's area (AUC). Fix `start`, `top` and d_max beforehand, the same for all methods:
d_max could be the final drift of PPO without a KL term. The Elastic Reset paper plots such curves; the area is this project's.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from training.errors import UserError


class Points(NamedTuple):
    """Evaluations of one run in order of time: steps int [n], drift and reward float [n]."""

    steps: np.ndarray
    drift: np.ndarray
    reward: np.ndarray


class Estimate(NamedTuple):
    """Mean over seeds, its standard error (NaN for one seed) and the number of seeds."""

    mean: float
    sem: float
    seeds: int


def points(rows: Sequence[Mapping[str, Any]], reward: str, drift: str) -> Points:
    """The rows of a metrics.jsonl that hold both metrics. Raises UserError for none, and for a value that is not finite."""
    known = [(row["step"], row[drift], row[reward]) for row in rows if reward in row and drift in row]
    if not known:
        names = sorted({name for row in rows for name in row if name not in ("step", "seconds")})
        raise UserError(f"no row holds both {reward!r} and {drift!r}; the metrics are {', '.join(names) or 'none'}")
    for step, *values in known:
        for name, value in zip((drift, reward), values, strict=True):
            if not isinstance(value, Real) or not np.isfinite(value):
                raise UserError(f"{name} at step {step} is {value!r}, not a finite number: drop that run, or end it before")
    steps, drifts, rewards = zip(*known, strict=True)
    return Points(np.array(steps), np.array(drifts, float), np.array(rewards, float))


def normalise(run: Points, *, start: tuple[float, float], top: float) -> Points:
    """Drift and reward of a run, less those of the start (drift, reward), and reward 1 at `top`."""
    _check(run)
    if not top > start[1]:
        raise UserError(f"the top reward {top} must be above the start's {start[1]}: nothing was gained, nothing to trade")
    return Points(run.steps, run.drift - start[0], (run.reward - start[1]) / (top - start[1]))


def envelope(run: Points, at) -> np.ndarray:
    """Best reward of a normalised run with drift <= d, for each d in `at` [m] -> [m]; 0 where nothing beats the start."""
    _check(run)
    order = np.argsort(run.drift, kind="stable")
    best = np.maximum.accumulate(np.concatenate([[0.0], run.reward[order]]))
    return best[np.searchsorted(run.drift[order], np.asarray(at, float), side="right")]


def area(run: Points, d_max: float) -> float:
    """Mean of the envelope over [0, d_max], exact (the envelope is a staircase)."""
    if not d_max > 0:
        raise UserError(f"the area needs a largest drift above 0, got {d_max}")
    edges = np.unique(np.concatenate([[0.0, d_max], np.clip(run.drift, 0, d_max)]))
    return float(envelope(run, edges[:-1]) @ np.diff(edges) / d_max)


def summary(run: Points, d_max: float, budgets: Sequence[float] = ()) -> dict[str, float]:
    """Numbers of a normalised run: area, reward_at_{budget}, final_reward, final_drift, best_reward, best_drift (its drift)."""
    _check(run)
    best = int(run.reward.argmax())
    return {
        "area": area(run, d_max),
        **{f"reward_at_{budget:g}": float(value) for budget, value in zip(budgets, envelope(run, budgets), strict=True)},
        "final_reward": float(run.reward[-1]),
        "final_drift": float(run.drift[-1]),
        "best_reward": float(run.reward[best]),
        "best_drift": float(run.drift[best]),
    }


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and standard error (Bessel) of one number of each seed."""
    values = np.asarray(values, float)
    if not values.size or not np.isfinite(values).all():
        raise UserError("no mean over seeds: every seed must have given a finite number")
    sem = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
    return Estimate(float(values.mean()), float(sem), values.size)


def compare(
    arms: Mapping[str, Sequence[Points]], d_max: float, budgets: Sequence[float] = ()
) -> dict[str, dict[str, Estimate]]:
    """{arm: normalised runs, one a seed} -> {arm: {measure of `summary`: Estimate}}."""
    summaries = {arm: [summary(run, d_max, budgets) for run in runs] for arm, runs in _filled(arms).items()}
    return {arm: {name: over_seeds([s[name] for s in seeds]) for name in seeds[0]} for arm, seeds in summaries.items()}


class Curve(NamedTuple):
    """What to draw for one arm: the runs' own points, and the envelope's mean and standard error over seeds on a grid [m]."""

    runs: list[Points]
    drift: np.ndarray
    mean: np.ndarray
    sem: np.ndarray


def curves(arms: Mapping[str, Sequence[Points]], d_max: float, grid: int = 201) -> dict[str, Curve]:
    """{arm: normalised runs, one a seed} -> {arm: Curve} over [0, d_max]; sem is NaN with one seed."""
    at = np.linspace(0, d_max, grid)
    drawn = {}
    for arm, runs in _filled(arms).items():
        values = np.stack([envelope(run, at) for run in runs])
        sem = values.std(0, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else np.full(grid, np.nan)
        drawn[arm] = Curve(list(runs), at, values.mean(0), sem)
    return drawn


def _filled(arms):
    empty = [arm for arm, runs in arms.items() if not runs]
    if empty or not arms:
        raise UserError(f"no runs to compare{' in ' + ', '.join(empty) if empty else ''}: every arm needs at least one")
    return arms


def _check(run):
    if not run.drift.size or run.drift.shape != run.reward.shape:
        raise UserError("a run without evaluations has no trade-off: it needs as many drifts as rewards, and at least one")
    if not (np.isfinite(run.drift).all() and np.isfinite(run.reward).all()):
        raise UserError("a reward or a drift is not finite: the run diverged; drop it, or end it before")
