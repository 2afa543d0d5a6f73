"""Human-normalised scores on Atari 100k, and how they are put together over games (docs/sgi.md, Protocol)."""

from collections.abc import Mapping, Sequence

import numpy as np

from sgi.atari import display_name
from training.errors import UserError

# Random and human scores (no-op starts): Wang et al. 2016 by way of the SGI code (rlpyt_utils.py); the same 26 rows are in
# Kaiser et al. 2020 and in later Atari-100k papers.
SCORES = {
    "Alien": (227.8, 7127.7),
    "Amidar": (5.8, 1719.5),
    "Assault": (222.4, 742.0),
    "Asterix": (210.0, 8503.3),
    "BankHeist": (14.2, 753.1),
    "BattleZone": (2360.0, 37187.5),
    "Boxing": (0.1, 12.1),
    "Breakout": (1.7, 30.5),
    "ChopperCommand": (811.0, 7387.8),
    "CrazyClimber": (10780.5, 35829.4),
    "DemonAttack": (152.1, 1971.0),
    "Freeway": (0.0, 29.6),
    "Frostbite": (65.2, 4334.7),
    "Gopher": (257.6, 2412.5),
    "Hero": (1027.0, 30826.4),
    "Jamesbond": (29.0, 302.8),
    "Kangaroo": (52.0, 3035.0),
    "Krull": (1598.0, 2665.5),
    "KungFuMaster": (258.5, 22736.3),
    "MsPacman": (307.3, 6951.6),
    "Pong": (-20.7, 14.6),
    "PrivateEye": (24.9, 69571.3),
    "Qbert": (163.9, 13455.0),
    "RoadRunner": (11.5, 7845.0),
    "Seaquest": (68.4, 42054.7),
    "UpNDown": (533.4, 11693.2),
}


def human_normalised(game: str, score):
    """(score - random) / (human - random): 0 for random play, 1 for a human. `score` is a number or an array."""
    if (name := display_name(game)) not in SCORES:
        raise UserError(f"{name} is not one of the 26 Atari-100k games: there is no human score to compare with")
    random, human = SCORES[name]
    return (score - random) / (human - random)


def iqm(values) -> float:
    """Interquartile mean: the mean of the middle half (Agarwal et al. 2021).

    Values that a quartile cuts count by the part inside. rliable drops whole values instead, which is the same where their
    number is a multiple of four, as for an even number of runs of the 26 games.
    """
    ordered = np.sort(np.ravel(values))
    index, quarter = np.arange(len(ordered)), len(ordered) / 4
    inside = np.clip(np.minimum(index + 1, 3 * quarter) - np.maximum(index, quarter), 0, None)
    return float(ordered @ inside / inside.sum())


def aggregate(runs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """{game: raw mean score of each run} -> human-normalised aggregates.

    mean, median   over games, of the mean over a game's runs (the published tables)
    iqm_runs       interquartile mean over all runs of all games (Agarwal et al. 2021); a game with more runs weighs more
    iqm_games      interquartile mean over the games' means. Tables mix the two up: SPR has 0.337 and 0.407
    above_human, above_random, games    numbers of games, by their means
    """
    normalised = _normalised(runs)
    means = np.array([values.mean() for values in normalised])
    return {
        "mean": float(means.mean()),
        "median": float(np.median(means)),
        "iqm_runs": iqm(np.concatenate(normalised)),
        "iqm_games": iqm(means),
        "above_human": int((means > 1).sum()),
        "above_random": int((means > 0).sum()),
        "games": len(means),
    }


def interval(
    runs: Mapping[str, Sequence[float]], statistic: str = "iqm_runs", *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Stratified bootstrap interval of one of `aggregate`'s numbers: runs are drawn again within each game.

    It speaks of the spread over runs of these games, not over games. With a single run of each game it has no width.
    """
    rng = np.random.default_rng(seed)
    values = [
        aggregate({game: rng.choice(scores, len(scores)) for game, scores in runs.items()})[statistic] for _ in range(draws)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _normalised(runs):
    if not runs or not all(len(scores) for scores in runs.values()):
        raise UserError("no scores to put together: every game needs at least one finished run")
    return [human_normalised(game, np.asarray(scores, float)) for game, scores in runs.items()]
