"""Finished runs side by side: tables for launch.report, and plots (tradeoff.py has the definitions).

    python -m rlhf_jax.study RUNS --out results/rlhf/e1 [--free ppo] [--reward eval/score] [--drifts eval/kl=20 ...]
    python -m rlhf_jax.study RUNS --out results/rlhf/e5 --finals eval/exact eval/kl ...

RUNS holds workdirs <arm>/<seed>. The first form draws reward against drift, for runs of rlhf_jax.rl. Its scale is fixed by the
arm `free` (PPO without a KL term): its best mean reward is 1, its final mean drift is the largest that counts, unless one is
given after '='. Every curve begins at the weights all runs started from. The second form is a table of last evaluations.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.rollouts import tradeoff
from rlhf_jax.rollouts.tradeoff import Estimate, Points, over_seeds
from training import runs
from training.cli import guarded
from training.errors import UserError
from training.runs import Run

DRIFTS = ("eval/kl", "eval/nll_human", "eval/nll_start")
SHARES = (0.25, 0.5, 0.75)  # drift budgets, of the largest drift
LABELS = {
    "eval/kl": "KL to the start, nats a response",
    "eval/nll_human": "loss on human text over the start's, nats a token",
    "eval/nll_start": "loss of samples under the start over its own, nats a token",
}


def finished(folder: Path) -> dict[str, list[Run]]:
    """The finished runs of each arm, by seed. Raises UserError if there are none."""
    arms: dict[str, list[Run]] = {}
    for run in runs.find(folder):
        if run.path.parent.parent != folder:
            continue
        if run.finished:
            arms.setdefault(run.path.parent.name, []).append(run)
        else:
            print(f"left out: {run.path} is not finished")
    if not arms:
        raise UserError(f"{folder} holds no finished run in <arm>/<seed>: train some first")
    return arms


def curve(run: Run, reward: str, drift: str) -> tuple[Points, tuple[float, float]]:
    """(the run's evaluations with the start in front, the start's (drift, reward))."""
    rows = run.rows()
    first = next((row for row in rows if f"{reward}_at_start" in row), None)
    if first is None:
        raise UserError(f"{run.path} has no {reward}_at_start: it is not a run of rlhf_jax.rl, or has no evaluation yet")
    start = first[f"{drift}_at_start"], first[f"{reward}_at_start"]
    here = {"step": 0, drift: start[0], reward: start[1]}
    return tradeoff.points([here, *rows], reward, drift), start


def join(clouds: Sequence[Points]) -> Points:
    """The evaluations of several runs as one cloud."""
    return Points(*(np.concatenate(x) for x in zip(*clouds, strict=True)))


def compare(
    arms: dict[str, list[Run]], free: str, reward: str, drift: str, d_max: float = 0.0, pool: str = ""
) -> dict[str, Any]:
    """{'top', 'd_max', 'arms': {arm: {measure: Estimate}}, 'curves'} for one kind of drift, over the start's up to `d_max`.

    pool: beginning of the names of arms that also count together, seed by seed (KL penalties of several weights).
    """
    if free not in arms:
        raise UserError(f"no finished run of {free!r}, which sets the scale; the arms are {', '.join(arms)}")
    raw = {arm: [curve(run, reward, drift) for run in runs] for arm, runs in arms.items()}
    top = float(np.mean([points.reward.max() for points, _ in raw[free]]))
    d_max = d_max or float(np.mean([points.drift[-1] - start[0] for points, start in raw[free]]))
    scaled = {arm: [tradeoff.normalise(points, start=start, top=top) for points, start in each] for arm, each in raw.items()}
    if pooled := [each for arm, each in scaled.items() if pool and arm.startswith(pool)]:
        scaled[f"{pool}*"] = [join(seeds) for seeds in zip(*pooled, strict=False)]
    budgets = [share * d_max for share in SHARES]
    return {
        "top": top, "d_max": d_max, "budgets": budgets, "arms": tradeoff.compare(scaled, d_max, budgets),
        "curves": tradeoff.curves(scaled, d_max),
    }  # fmt: skip


def table(comparison: dict[str, Any], reward: str, drift: str) -> dict[str, Any]:
    """The table of a comparison for launch.report: one row an arm, best area first."""
    arms = comparison["arms"]
    measures = list(next(iter(arms.values())))
    order = sorted(arms, key=lambda arm: -arms[arm]["area"].mean)
    rows = [[arm, arms[arm]["area"].seeds, *(show(arms[arm][m]) for m in measures)] for arm in order]
    caption = (
        f"Rewards: 0 is the start, 1 is {comparison['top']:.3f}. Area: mean of the best reward at or below each drift up to "
        f"{comparison['d_max']:.3f} ({LABELS.get(drift, drift)}). Mean ± standard error over seeds."
    )
    return {"title": f"{reward} against {drift}", "caption": caption, "columns": ["arm", "seeds", *measures], "rows": rows}


def show(value: Estimate) -> str:
    """'mean ± standard error'; the mean alone for one seed."""
    return f"{value.mean:.3f}" + (f" ± {value.sem:.3f}" if np.isfinite(value.sem) else "")


def plot(comparisons: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw a panel for each drift: the envelope's mean over seeds, its standard error, and the runs' own evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(comparisons), figsize=(5 * len(comparisons), 4.2), squeeze=False, layout="constrained")
    for axis, (drift, each) in zip(axes[0], comparisons.items(), strict=True):
        for number, (arm, line) in enumerate(sorted(each["curves"].items())):
            colour = f"C{number}"
            axis.plot(line.drift, line.mean, color=colour, label=arm)
            axis.fill_between(line.drift, line.mean - line.sem, line.mean + line.sem, color=colour, alpha=0.15, lw=0)
            for run in line.runs:
                axis.plot(run.drift, run.reward, ".", color=colour, alpha=0.35, ms=4)
        axis.set(
            xlabel=LABELS.get(drift, drift), ylabel="reward (start 0, free PPO 1)", xlim=(-0.02 * each["d_max"], each["d_max"])
        )
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(folder: Path, out: Path, free: str, reward: str, drifts: Sequence[str], pool: str = "") -> None:
    """Write tables and a plot of all drifts ('name' or 'name=largest') into `out`."""
    arms = finished(folder)
    named = [drift.partition("=") for drift in drifts]
    comparisons = {drift: compare(arms, free, reward, drift, float(largest or 0), pool) for drift, _, largest in named}
    out.mkdir(parents=True, exist_ok=True)
    for drift, each in comparisons.items():
        save(table(each, reward, drift), out / f"tradeoff-{drift.replace('/', '-')}.table.json")
    plot(comparisons, out / "tradeoff.png")
    print(f"{sum(map(len, arms.values()))} runs of {len(arms)} arms: tables and plot in {out}")


def last(arms: dict[str, list[Run]], metrics: Sequence[str]) -> dict[str, Any]:
    """A table for launch.report: the last value of each metric, mean ± standard error over seeds; the start first."""
    rows = {arm: [_last_row(run, metrics) for run in runs] for arm, runs in arms.items()}
    lines = [[arm, len(each), *(show(over_seeds([row[m] for row in each])) for m in metrics)] for arm, each in rows.items()]
    whole = [row for each in rows.values() for row in each]
    starts = [
        over_seeds(known) if (known := [row[s] for row in whole if (s := f"{m}_at_start") in row]) else None for m in metrics
    ]
    if any(starts):
        lines.insert(0, ["start", "", *(f"{start.mean:.3f}" if start else "" for start in starts)])
    caption = "Last evaluation. Mean ± standard error over seeds."
    return {"title": "Last evaluation", "caption": caption, "columns": ["arm", "seeds", *metrics], "rows": lines}


def _last_row(run: Run, metrics: Sequence[str]) -> dict[str, float]:
    """The last value of everything that a run has measured. Raises UserError if a metric is missing."""
    row = {name: value for row in run.rows() for name, value in row.items()}
    if missing := [name for name in metrics if name not in row]:
        raise UserError(f"{run.path} has no {missing[0]}; it has {', '.join(sorted(row))}")
    return row


def save(content: dict[str, Any], path: Path) -> None:
    """Write a table as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.study", description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--free", default="ppo", help="arm without a penalty, which sets the scale")
    parser.add_argument("--reward", default="eval/score")
    parser.add_argument("--drifts", nargs="+", default=list(DRIFTS), metavar="DRIFT[=LARGEST]")
    parser.add_argument("--pool", default="", help="arms whose names begin so also count together")
    parser.add_argument("--finals", nargs="+", metavar="METRIC", help="a table of last values instead of the trade-off")
    args = parser.parse_args(argv)
    if args.finals:
        save(last(finished(args.runs), args.finals), args.out / "finals.table.json")
    else:
        write(args.runs, args.out, args.free, args.reward, args.drifts, args.pool)


if __name__ == "__main__":
    guarded(main)
