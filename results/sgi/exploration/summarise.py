"""Cells seen by each way to play.

    PYTHONPATH=. python results/sgi/exploration/summarise.py RUNS        RUNS as given to run.sh

Writes results.json beside this file and prints Markdown. Intervals are 95 % t intervals over seeds.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from sgi.atari.explore import cell_of
from sgi.recordings.open import open_play
from training.runs import Run
from training.statistics import half_interval

GAME, SEEDS = "MsPacman", ("0", "1", "2")
ARMS = {
    "curious": "curious agent",
    "held": "random, held actions",
    "single": "random, single actions",
    "cells": "cell explorer",
}
LANES = 16  # stored one after another, of as many steps each; the cell explorer has one
QUARTERS = 4
CURVES = ("entropy", "curiosity", "inverse_accuracy")  # of the agent, by stretches of 64 steps


def coverage(store, lanes: int) -> dict[str, int]:
    """Different cells in all steps, and in those of the last quarter of each lane."""
    blocks = np.array_split(np.arange(store.num_frames), store.num_frames // 4096 + 1)
    cells = np.array([hash(cell_of(frame)) for rows in blocks for frame in store.frames(rows)]).reshape(lanes, QUARTERS, -1)
    return {"all": len(np.unique(cells)), "last quarter": len(np.unique(cells[:, -1]))}


def show(values: list[float]) -> str:
    return f"{np.mean(values):,.0f} ± {half_interval(values):,.0f}"


def main(runs: Path) -> None:
    found = {}
    for arm in ARMS:
        for seed in SEEDS:
            with tempfile.TemporaryDirectory(dir=runs) as cache:  # 3 GB
                store = open_play(runs / arm / seed, GAME, "all", cache=cache)
                found.setdefault(arm, []).append(coverage(store, 1 if arm == "cells" else LANES))
    columns = ("all", "last quarter")
    print("| | " + " | ".join(columns) + " |\n|---|---|---|")
    for arm, seeds in found.items():
        print(f"| {ARMS[arm]} | " + " | ".join(show([seed[column] for seed in seeds]) for column in columns) + " |")
    agents = [Run(runs / "agent" / seed).rows() for seed in SEEDS]
    curves = {name: [[round(row[f"train/{name}"], 4) for row in rows] for rows in agents] for name in CURVES}
    (Path(__file__).parent / "results.json").write_text(json.dumps({"cells": found, "curves": curves}) + "\n")
    print("entropy:", [round(curve[-1], 3) for curve in curves["entropy"]], "of", round(float(np.log(9)), 3))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
