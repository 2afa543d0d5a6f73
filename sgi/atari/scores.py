"""Human-normalised scores on Atari 100k (docs/sgi.md, Protocol); study.py puts them together over games."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sgi.atari.emulator import display_name
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


PUBLISHED = Path(__file__).with_name("published.json")


def load_published() -> dict[str, Any]:
    """Published numbers: {'aggregates': rows, 'games': {method: {'source', 'scores': {game: [mean, sd]}}}}."""
    return json.loads(PUBLISHED.read_text("utf-8"))


def comparison(game: str) -> str:
    """Published scores in a game of Atari 100k, a line each with its source; '' for other games."""
    if (name := display_name(game)) not in SCORES:
        return ""
    lines = ["random {}, human {}: Wang et al. 2016".format(*SCORES[name])]
    for method, row in load_published()["games"].items():
        if name in row["scores"]:
            mean, sd = row["scores"][name]
            lines.append(f"{method} {mean} ± {sd} (sd over runs) at 100k agent steps: {row['source']}")
    return "\n".join(lines)


def normalise_score(game: str, score):
    """The score as (score - random) / (human - random): 0 for random play, 1 for a human. `score` is a number or an array."""
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
