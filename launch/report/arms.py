"""Runs that differ only in their seed form an arm; an arm has one curve and one final value per metric."""

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.report.data import Run
from launch.report.markup import real
from training.statistics import half_interval

SEED_KEYS = frozenset({"seed", "seeds", "population", "workdir"})
PATH_ENDINGS = ("_dir", "_path", "_root")
NAMED_KEYS = 3  # an arm's name spells out at most so many differing keys
SMOOTH_POINTS = 40  # a smoothed curve keeps about this many independent points


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs of one configuration; `name` is unique in the report. `differs`: the keys, with values, that set arms apart."""

    name: str
    runs: tuple[Run, ...]
    differs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric of an arm over `steps` [n]: mean, least and greatest over the `count` [n] seeds that have reached the step.

    All [n] float64, NaN where a value is not finite. `raw` is the unsmoothed mean, or None where nothing was smoothed.
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
    """Last values over the seeds of an arm. `half` is half of the 95 % t-interval of the mean, None below three seeds."""

    mean: float
    low: float
    high: float
    half: float | None
    finite: int
    seeds: int


def group_arms(runs: Sequence[Run]) -> list[Arm]:
    """Arms in the order of their first run. A run without a config is an arm of its own."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        identity = json.dumps(arm_config(run), sort_keys=True) if run.config else f"no config: {run.path}"
        groups.setdefault(identity, []).append(run)
    members = [tuple(group) for group in groups.values()]
    configs = [arm_config(group[0]) for group in members]
    keys = differing_keys([config for config in configs if config])
    differs = [{key: config[key] for key in keys if key in config} for config in configs]
    names = arm_names(members, differs)
    return [Arm(name, group, own) for name, group, own in zip(names, members, differs, strict=True)]


def arm_config(run: Run) -> dict[str, Any]:
    """The config without what may differ inside an arm: seeds and places on disk.

    Where a run was initialised from does set arms apart (from scratch or not, from this or that pretraining), once the run's
    own seed is taken out of the path: 'pretrain/seed0' and 'pretrain/seed1' are one place.
    """
    kept = {}
    for key, value in run.config.items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf in SEED_KEYS or leaf in ("path", "paths", "dir", "root") or leaf.endswith(PATH_ENDINGS):
            continue
        kept[key] = seedless(value, run.config.get("seed")) if leaf.endswith("init_from") and isinstance(value, str) else value
    return kept


def seedless(path: str, seed: Any) -> str:
    path = re.sub(r"(?<![a-zA-Z])(s|seed)([-_=]?)\d+(?![a-zA-Z0-9])", r"\1\2*", path)
    return path if seed is None else re.sub(rf"(?<![a-zA-Z0-9.]){re.escape(str(seed))}(?![a-zA-Z0-9.])", "*", path)


def differing_keys(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Keys, in order of appearance, whose values (or presence) are not the same in all configs."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if len({plain(config[key]) if key in config else None for config in configs}) > 1]


def arm_names(groups: Sequence[tuple[Run, ...]], differs: Sequence[dict[str, Any]]) -> list[str]:
    """By the differing config keys where these are few, else by directory; numbered if that leaves two alike."""
    keys = list(dict.fromkeys(key for own in differs for key in own))
    shown = {key: key.rsplit(".", 1)[-1] for key in keys}
    clashes = Counter(shown.values())
    shown = {key: key if clashes[leaf] > 1 else leaf for key, leaf in shown.items()}
    if 0 < len(keys) <= NAMED_KEYS and all(group[0].config for group in groups):
        names = [", ".join(f"{shown[key]}={plain(own[key])}" for key in keys if key in own) or "default" for own in differs]
    else:
        names = [directory_name(group) for group in groups]
    seen = Counter(names)
    used: Counter[str] = Counter()
    for index, name in enumerate(names):
        if seen[name] > 1:
            used[name] += 1
            names[index] = f"{name} ({used[name]})"
    return names


def directory_name(group: tuple[Run, ...]) -> str:
    """What the labels of the runs have in common, the seed left out: 'pong/seed0' and 'pong/seed1' are 'pong'."""
    if len(group) == 1:
        return group[0].label
    alike = {seedless(run.label, run.config.get("seed")) for run in group}
    common = re.sub(r"[-_/]?(s|seed)?[-_=]?\*", "", alike.pop()) if len(alike) == 1 else os.path.commonpath(alike)
    return common or str(group[0].config.get("method") or f"{len(group)} runs")


def plain(value: Any) -> str:
    """A config value as the user wrote it, strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def metric_names(runs: Sequence[Run]) -> list[str]:
    """All metrics: eval first, then train, the others, and time last; in order of appearance inside each group."""
    order = {"eval": 0, "train": 1, "time": 3}
    names = dict.fromkeys(name for run in runs for name in run.series)
    prefixes = list(dict.fromkeys(prefix(name) for name in names))
    return sorted(names, key=lambda name: (order.get(prefix(name), 2), prefixes.index(prefix(name))))


def is_evaluation(name: str) -> bool:
    """Whether an Eval wrote the metric: the loop itself writes only train/* and time/*."""
    return prefix(name) not in ("train", "time", "other")


def prefix(name: str) -> str:
    return name.split("/", 1)[0] if "/" in name else "other"


def members(runs: Sequence[Run], name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(steps [n], values [n]) of every seed: one per run, or one per column of a population."""
    found = [run.series[name] for run in runs if name in run.series]
    return [(series.steps, column) for series in found for column in series.values.T]


def curve(arm: Arm, name: str) -> Curve | None:
    """The arm's mean, least and greatest over its seeds, interpolated to the union of their steps (never beyond a seed's own).

    train/* is lightly smoothed where noisy, each seed by itself, before the mean is taken. None when the arm lacks the metric.
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
    """[seeds, n] with NaN for missing -> mean, min, max and number of the finite ones, each [n]; NaN where there is none."""
    finite = np.isfinite(values)
    count = finite.sum(0)
    empty = count == 0
    mean = np.where(finite, values, 0).sum(0) / np.maximum(count, 1)
    low, high = np.where(finite, values, np.inf).min(0), np.where(finite, values, -np.inf).max(0)
    return *(np.where(empty, np.nan, row) for row in (mean, low, high)), count


def smoothing_window(points: int) -> int:
    """Odd width of the moving mean, 1 for short curves."""
    return 2 * (points // (2 * SMOOTH_POINTS)) + 1


def is_noisy(values: np.ndarray) -> bool:
    """Whether the rows [seeds, n] often turn round: noise does at two of three points, a learning-rate schedule hardly ever."""
    direction = np.sign(np.diff(values, axis=1))
    return bool((direction[:, 1:] * direction[:, :-1] < 0).mean() > 0.1) if values.shape[1] > 2 else False


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` points, fewer at the ends and beside gaps: [n] -> [n]. NaN stays NaN."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(finite, values, 0), kernel, mode="same")
    return np.where(finite, total / np.maximum(np.convolve(finite, kernel, mode="same"), 1), np.nan)


def final(arm: Arm, name: str) -> Final | None:
    """The last value of every seed, summed up; None when the arm lacks the metric."""
    last = np.array([values[-1] for _, values in members(arm.runs, name)])
    if not last.size:
        return None
    finite = last[np.isfinite(last)]
    if not finite.size:
        return Final(float(last[0]), float("nan"), float("nan"), None, 0, last.size)
    n = finite.size
    half = float(half_interval(finite)) if n >= 3 else None
    return Final(float(finite.mean()), float(finite.min()), float(finite.max()), half, n, last.size)


def steps_per_second(run: Run) -> float | None:
    """Median of the later half of time/steps_per_second (compilation and warm-up left out), else steps over wall time."""
    if "time/steps_per_second" in run.series:
        values = run.series["time/steps_per_second"].values[:, 0]
        later = values[len(values) // 2 :]
        if np.isfinite(later).any():
            return float(np.median(later[np.isfinite(later)]))
    seconds = real(run.info.get("seconds"))
    return run.last_step / seconds if run.last_step and seconds else None


def short_name(name: str) -> str:
    return name.removeprefix("eval/")
