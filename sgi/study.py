"""Fine-tuning runs put together over games, beside published numbers: tables for launch.report, learning curves, profiles.

    python -m sgi.study RUNS --out results/sgi/atari100k [--metric eval/score]

RUNS holds workdirs <arm>/<anything>: the game and the seed come from their configs. An arm needs as many finished runs of each
of its games. Statistics and their 95 % stratified bootstrap intervals are rliable's (Agarwal et al. 2021): runs are drawn again
within each game, so an interval speaks of other seeds of these games, not of other games.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rliable import library, metrics

from sgi.atari.emulator import display_name
from sgi.atari.scores import SCORES, iqm, load_published, normalise_score
from training.cli import guarded
from training.errors import UserError
from training.runs import find as find_runs
from training.statistics import half_interval

# human-normalised scores [runs, games] -> number
STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "median": metrics.aggregate_median,  # over games, of the mean over runs
    "mean": metrics.aggregate_mean,
    "iqm_runs": metrics.aggregate_iqm,  # over all runs of all games
    "iqm_games": lambda x: iqm(x.mean(0)),  # over games, of the mean over runs: the other thing that tables call IQM
    "optimality_gap": metrics.aggregate_optimality_gap,  # mean shortfall below a human, 0 where better
}
AS_PRINTED = "iqm_as_printed"  # published rows whose source does not say which of the two it is
COUNTS = {"above_human": 1.0, "above_random": 0.0}  # numbers of games with a mean above
DRAWS, PAIR_DRAWS = 2000, 1000

Histories = dict[str, dict[str, dict[int, dict[int, float]]]]  # arm -> game -> seed -> step -> score
Arms = dict[str, dict[str, list[float]]]  # arm -> game -> scores by seed


def gather(runs: Path, metric: str) -> Histories:
    """All values of `metric` of every finished run below `runs`/<arm>; a population counts as its members.

    Raises UserError where there is none, or the same seed twice.
    """
    histories: Histories = {}
    for run in find_runs(runs):
        arm, workdir = run.path.relative_to(runs).parts[0], run.path
        if not run.finished:
            print(f"left out: {workdir} is not finished ({run.status})")
            continue
        rows = {row["step"]: np.atleast_1d(row[metric]) for row in run.rows() if metric in row}
        config = run.config
        if not rows or "env" not in config:
            raise UserError(f"{workdir} has no {metric}: only fine-tuning runs with an evaluation can be put together")
        seeds = histories.setdefault(arm, {}).setdefault(display_name(config.env.game), {})
        for member in range(len(next(iter(rows.values())))):
            if (seed := config.seed + member) in seeds:
                raise UserError(f"{workdir}: seed {seed} of this game and arm is there twice; keep one")
            seeds[seed] = {step: float(values[member]) for step, values in rows.items()}
    if not histories:
        raise UserError(f"{runs} holds no finished run in <arm>/...: train some first")
    return histories


def last(histories: Histories) -> Arms:
    """The last value of each run."""
    return {
        arm: {game: [runs[seed][max(runs[seed])] for seed in sorted(runs)] for game, runs in sorted(games.items())}
        for arm, games in histories.items()
    }


def matrix(arm: str, games: Mapping[str, list[float]]) -> np.ndarray:
    """Human-normalised scores [runs, games]. Raises UserError unless every game has as many runs."""
    counts = {game: len(scores) for game, scores in games.items()}
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=counts.get), max(counts, key=counts.get)
        raise UserError(f"arm {arm} has {counts[few]} runs of {few} and {counts[many]} of {many}: finish the missing ones")
    return np.stack([normalise_score(game, np.array(scores, float)) for game, scores in games.items()], 1)


def aggregates(arms: Mapping[str, np.ndarray], draws: int = DRAWS) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Statistics with intervals: arm -> statistic -> (value, low, high). Single runs have intervals without width."""
    together = lambda x: np.array([statistic(x) for statistic in STATISTICS.values()])  # noqa: E731
    np.random.seed(0)  # rliable draws from numpy's global generator
    points, intervals = library.get_interval_estimates(dict(arms), together, reps=draws)
    return {
        arm: {name: tuple(map(float, (points[arm][i], *intervals[arm][:, i]))) for i, name in enumerate(STATISTICS)}
        for arm in arms
    }


def improvement(arms: Mapping[str, np.ndarray], draws: int = PAIR_DRAWS) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Probability that a run of a beats one of b on a random game: (a, b) -> (value, low, high). Same games only."""
    pairs = {f"{a}\n{b}": (arms[a], arms[b]) for a, b in itertools.combinations(arms, 2)}
    if not pairs:
        return {}
    np.random.seed(0)
    points, intervals = library.get_interval_estimates(pairs, metrics.probability_of_improvement, reps=draws)
    return {tuple(k.split("\n")): tuple(map(float, (points[k], *np.ravel(intervals[k])))) for k in pairs}


def aggregate_table(arms: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The table of `aggregates`, ours with intervals, then the published ones."""
    names = [*STATISTICS, AS_PRINTED, *COUNTS]
    rows = []
    for arm, values in aggregates(arms).items():
        means = arms[arm].mean(0)
        counts = [int((means > least).sum()) for least in COUNTS.values()]
        rows.append([arm, "{} x {}".format(*arms[arm].shape), *(show(values[s]) for s in STATISTICS), "", *counts, "ours"])
    for row in load_published()["aggregates"]:
        rows.append([row["method"], "26 games", *(row.get(name, "") for name in names), row["source"]])
    caption = (
        "Human-normalised, with 95 % stratified bootstrap intervals. Published rows are of all 26 games, most at 100k steps."
    )
    return {"title": "Atari 100k", "caption": caption, "columns": ["arm", "runs x games", *names, "source"], "rows": rows}


def game_table(arms: Arms) -> dict[str, Any]:
    """The table of raw scores of each game, mean ± standard deviation over runs."""
    others = load_published()["games"]
    games = sorted({game for scores in arms.values() for game in scores})
    spread = lambda x: f"{np.mean(x):.1f}" + (f" ± {np.std(x, ddof=1):.1f}" if len(x) > 1 else "")  # noqa: E731
    rows = []
    for game in games:
        ours = [spread(scores[game]) if game in scores else "" for scores in arms.values()]
        theirs = ["{} ± {}".format(*method["scores"][game]) if game in method["scores"] else "" for method in others.values()]
        rows.append([game, *ours, *theirs])
    caption = "; ".join(f"{name}: {method['source']}" for name, method in others.items())
    return {"title": "Scores by game", "caption": f"Mean ± sd. {caption}.", "columns": ["game", *arms, *others], "rows": rows}


def improvement_table(probabilities: Mapping[tuple[str, str], tuple[float, float, float]]) -> dict[str, Any]:
    """The table of `improvement`."""
    rows = [[a, b, show(values)] for (a, b), values in probabilities.items()]
    caption = (
        "Probability that a run of the first beats a run of the second on a game drawn at random; 95 % bootstrap interval, "
        "which means little for a handful of runs."
    )
    return {"title": "Probability of improvement", "caption": caption, "columns": ["arm", "over", "P"], "rows": rows}


def profile(arms: Mapping[str, np.ndarray], path: Path) -> None:
    """Plot the share of runs with a human-normalised score above tau, for each tau (a performance profile), with 95 % bands."""
    plt = pyplot()
    top = max(2.0, *(float(np.quantile(x, 0.95)) for x in arms.values()))
    taus = np.linspace(0, top, 81)
    np.random.seed(0)
    shares, bands = library.create_performance_profile(dict(arms), taus, reps=DRAWS)
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for arm in arms:
        (line,) = axis.plot(taus, shares[arm], label=arm)
        axis.fill_between(taus, *bands[arm], color=line.get_color(), alpha=0.15, lw=0)
    axis.set(xlabel="human-normalised score τ", ylabel="share of runs above τ", ylim=(0, 1), xlim=(0, top))
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curves(histories: Histories, path: Path) -> None:
    """Plot scores over training, a panel a game: means over runs with 95 % t intervals, at the steps that all runs share."""
    plt = pyplot()
    games = sorted({game for games in histories.values() for game in games})
    columns = min(len(games), 4)
    shape = -(-len(games) // columns), columns
    figure, axes = plt.subplots(*shape, figsize=(4 * columns, 3 * shape[0]), layout="constrained", squeeze=False)
    for axis in axes.flat[len(games) :]:
        axis.set_visible(False)
    for game, axis in zip(games, axes.flat, strict=False):
        for arm, seeds in histories.items():
            if game not in seeds:
                continue
            runs = list(seeds[game].values())
            steps = sorted(set.intersection(*(set(run) for run in runs)))
            values = np.array([[run[step] for step in steps] for run in runs])
            (line,) = axis.plot(steps, values.mean(0), marker=".", label=f"{arm} ({len(runs)})")
            if len(runs) > 1:
                half = half_interval(values)
                low, high = values.mean(0) - half, values.mean(0) + half
                axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, lw=0)
        if game in SCORES:
            axis.axhline(SCORES[game][0], color="grey", ls=":", label="random")
        axis.set(title=game, xlabel="steps", ylabel="score")
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def pyplot() -> ModuleType:
    """Matplotlib without a display."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def show(value: tuple[float, float, float]) -> str:
    """A value and its interval as text."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*value)


def write(runs: Path, out: Path, metric: str) -> None:
    """Write all tables and figures into `out`. Pairs of arms are compared if they have the same games."""
    histories = gather(runs, metric)
    arms = last(histories)
    values = {arm: matrix(arm, games) for arm, games in arms.items()}
    tables = {"1-aggregates": aggregate_table(values), "2-games": game_table(arms)}
    if len({tuple(games) for games in arms.values()}) == 1 and len(arms) > 1:
        tables["3-improvement"] = improvement_table(improvement(values))
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        (out / f"{name}.table.json").write_text(json.dumps(table, indent=1, ensure_ascii=False))
    (out / "histories.json").write_text(json.dumps(histories, indent=1))  # arm -> game -> seed -> step -> value
    profile(values, out / "profile.png")
    curves(histories, out / "curves.png")
    print(f"{sum(x.size for x in values.values())} runs of {len(arms)} arms: tables, profile and curves in {out}")


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sgi.study", description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--metric", default="eval/score")
    args = parser.parse_args(argv)
    write(args.runs, args.out, args.metric)


if __name__ == "__main__":
    guarded(main)
