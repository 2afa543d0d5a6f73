"""Runs that differ only in their seed form an arm; an arm has one curve and one final value per metric."""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.report.data import ShownRun
from launch.report.markup import as_float, config_text
from training.statistics import half_interval

SEED_KEYS = frozenset({"seed", "seeds", "population", "workdir"})
PATH_ENDINGS = ("_dir", "_path", "_root")
NAMED_KEYS = 3  # an arm's name spells out at most so many differing keys
SMOOTH_POINTS = 40  # a smoothed curve keeps about this many independent points


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs of one configuration. `name` is unique in the report; `differs` has its values of the keys that set arms apart."""

    name: str
    runs: tuple[ShownRun, ...]
    differs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric of an arm at `steps`: mean, least and greatest value of the `count` seeds that have a finite one there.

    All are [n]; NaN where no seed has a finite value. `raw` is the mean before smoothing, None for a curve that has none;
    `seeds` and `not_finite` are the numbers of seeds, and of values that are not finite, in the whole curve.
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray
    seeds: int
    raw: np.ndarray | None
    not_finite: int


@dataclasses.dataclass(frozen=True)
class Final:
    """The last values of an arm's seeds: mean, least, greatest. `half` is half of the 95 % t-interval, None below three seeds.

    `finite` of the `seeds` have a finite last value, and only these count.
    """

    mean: float
    low: float
    high: float
    half: float | None
    finite: int
    seeds: int


def group_arms(runs: Sequence[ShownRun]) -> list[Arm]:
    """The arms of the runs, in the order of their first run. A run without a config is an arm of its own."""
    groups: dict[str, list[ShownRun]] = {}
    for run in runs:
        identity = json.dumps(arm_config(run), sort_keys=True) if run.config else f"no config: {run.path}"
        groups.setdefault(identity, []).append(run)
    members = [tuple(group) for group in groups.values()]
    configs = [arm_config(group[0]) for group in members]
    keys = differing_keys([config for config in configs if config])
    differs = [{key: config[key] for key in keys if key in config} for config in configs]
    names = arm_names(members, differs)
    return [Arm(name, group, own) for name, group, own in zip(names, members, differs, strict=True)]


def arm_config(run: ShownRun) -> dict[str, Any]:
    """The config without what may differ inside an arm: seeds and places on disk.

    The sources of a run do set arms apart (from scratch or not, from this or that pretraining), but not by a seed in their
    path: 'pretrain/seed0' and 'pretrain/seed1' are one place.
    """
    kept = {}
    for key, value in run.config.items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf in SEED_KEYS or leaf in ("path", "paths", "dir", "root") or leaf.endswith(PATH_ENDINGS):
            continue
        if key.startswith("sources.") and isinstance(value, str):
            value = without_seed(value, run.config.get("seed"))
        kept[key] = value
    return kept


def without_seed(path: str, seed: Any) -> str:
    """The path with '*' for a seed in it: a number after 's' or 'seed', and the number `seed` itself."""
    path = re.sub(r"(?<![a-zA-Z])(s|seed)([-_=]?)\d+(?![a-zA-Z0-9])", r"\1\2*", path)
    return path if seed is None else re.sub(rf"(?<![a-zA-Z0-9.]){re.escape(str(seed))}(?![a-zA-Z0-9.])", "*", path)


def differing_keys(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Keys that are missing in some of the configs or have different values, in order of appearance."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({config_text(config[key]) if key in config else None for config in configs}) > 1]


def arm_names(groups: Sequence[tuple[ShownRun, ...]], differs: Sequence[dict[str, Any]]) -> list[str]:
    """Names of arms: their values of the differing keys if these are few, else their directories; equal names get numbers."""
    keys = list(dict.fromkeys(key for own in differs for key in own))
    shown = {key: key.rsplit(".", 1)[-1] for key in keys}
    clashes = Counter(shown.values())
    shown = {key: key if clashes[leaf] > 1 else leaf for key, leaf in shown.items()}
    if 0 < len(keys) <= NAMED_KEYS and all(group[0].config for group in groups):
        names = [
            ", ".join(f"{shown[key]}={config_text(own[key])}" for key in keys if key in own) or "default" for own in differs
        ]
    else:
        names = [directory_name(group) for group in groups]
    seen = Counter(names)
    used: Counter[str] = Counter()
    for index, name in enumerate(names):
        if seen[name] > 1:
            used[name] += 1
            names[index] = f"{name} ({used[name]})"
    return names


def directory_name(group: tuple[ShownRun, ...]) -> str:
    """The common part of the labels of an arm's runs, without the seed: 'pong' for 'pong/seed0' and 'pong/seed1'."""
    if len(group) == 1:
        return group[0].label
    alike = {without_seed(run.label, run.config.get("seed")) for run in group}
    common = re.sub(r"[-_/]?(s|seed)?[-_=]?\*", "", alike.pop()) if len(alike) == 1 else os.path.commonpath(alike)
    return common or str(group[0].config.get("method") or f"{len(group)} runs")


def metric_names(runs: Sequence[ShownRun]) -> list[str]:
    """Names of all metrics: eval first, then train, the others, and time last; in order of appearance within each group."""
    order = {"eval": 0, "train": 1, "time": 3}
    names = dict.fromkeys(name for run in runs for name in run.series)
    prefixes = list(dict.fromkeys(prefix(name) for name in names))
    return sorted(names, key=lambda name: (order.get(prefix(name), 2), prefixes.index(prefix(name))))


def is_evaluation(name: str) -> bool:
    """Whether an Eval wrote the metric: the loop itself writes only train/* and time/*."""
    return prefix(name) not in ("train", "time", "other")


def prefix(name: str) -> str:
    """The group of a metric: the part before the first slash, 'other' where there is none."""
    return name.split("/", 1)[0] if "/" in name else "other"


def members(runs: Sequence[ShownRun], name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(steps [n], values [n]) of every seed: one per run, or one per column of a population."""
    series = [run.series[name] for run in runs if name in run.series]
    return [(each.steps, column) for each in series for column in each.values.T]


def curve(arm: Arm, name: str) -> Curve | None:
    """The arm's curve of a metric; None where the arm has no such metric.

    Seeds are interpolated to the union of their steps, but not beyond their own first and last step. Noisy train/* metrics are
    smoothed by a moving mean, each seed by itself.
    """
    seeds = members(arm.runs, name)
    if not seeds:
        return None
    steps = np.unique(np.concatenate([own for own, _ in seeds]))
    clean = [(own, np.where(np.isfinite(values), values, np.nan)) for own, values in seeds]
    rough = np.stack([np.interp(steps, own, values, left=np.nan, right=np.nan) for own, values in clean])
    window = smoothing_window(len(steps)) if prefix(name) == "train" and is_noisy(rough) else 1
    values = np.stack([moving_mean(row, window) for row in rough]) if window > 1 else rough
    mean, low, high, count = over_seeds(values)
    return Curve(
        steps=steps,
        mean=mean,
        low=low,
        high=high,
        count=count,
        seeds=len(seeds),
        raw=over_seeds(rough)[0] if window > 1 else None,
        not_finite=sum(int((~np.isfinite(values)).sum()) for _, values in seeds),
    )


def over_seeds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(mean, least, greatest, number) of the finite values in each column of [seeds, n]: four arrays [n], NaN where none is."""
    finite = np.isfinite(values)
    count = finite.sum(0)
    empty = count == 0
    mean = np.where(finite, values, 0).sum(0) / np.maximum(count, 1)
    low, high = np.where(finite, values, np.inf).min(0), np.where(finite, values, -np.inf).max(0)
    return *(np.where(empty, np.nan, row) for row in (mean, low, high)), count


def smoothing_window(points: int) -> int:
    """Width of the moving mean for a curve of so many points: odd, and 1 (no smoothing) for short curves."""
    return 2 * (points // (2 * SMOOTH_POINTS)) + 1


def is_noisy(values: np.ndarray) -> bool:
    """True if the rows [seeds, n] turn at more than a tenth of their points: noise turns at two of three, a schedule hardly."""
    direction = np.sign(np.diff(values, axis=1))
    return bool((direction[:, 1:] * direction[:, :-1] < 0).mean() > 0.1) if values.shape[1] > 2 else False


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the finite values among the `window` points around each: [n] -> [n]. NaN stays NaN."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(finite, values, 0), kernel, mode="same")
    return np.where(finite, total / np.maximum(np.convolve(finite, kernel, mode="same"), 1), np.nan)


def final(arm: Arm, name: str) -> Final | None:
    """The last values of an arm's seeds; None where the arm has no such metric."""
    last = np.array([values[-1] for _, values in members(arm.runs, name)])
    if not last.size:
        return None
    finite = last[np.isfinite(last)]
    if not finite.size:
        return Final(float(last[0]), float("nan"), float("nan"), None, 0, last.size)
    n = finite.size
    half = float(half_interval(finite)) if n >= 3 else None
    return Final(float(finite.mean()), float(finite.min()), float(finite.max()), half, n, last.size)


def steps_per_second(run: ShownRun) -> float | None:
    """Median of the later half of time/steps_per_second (the first half has compilation), else steps by wall time, or None."""
    if "time/steps_per_second" in run.series:
        values = run.series["time/steps_per_second"].values[:, 0]
        later = values[len(values) // 2 :]
        if np.isfinite(later).any():
            return float(np.median(later[np.isfinite(later)]))
    seconds = as_float(run.info.get("seconds"))
    return run.last_step / seconds if run.last_step and seconds else None


def short_name(name: str) -> str:
    """A metric's name in tables: without 'eval/'."""
    return name.removeprefix("eval/")
