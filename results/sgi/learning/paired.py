"""Last scores and their paired differences: PYTHONPATH=. python results/sgi/learning/paired.py RUNS GAME SEED ...

RUNS as given to run.sh. Writes GAME/paired-SEEDS.json beside this file and prints Markdown: mean ± half of the 95 % t interval.
"""

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np

from training.runs import Run
from training.statistics import half_interval

ARMS = ("W", "none", "R")


def interval(values: np.ndarray) -> str:
    return f"{values.mean():.0f} ± {half_interval(values):.0f}"


def main(runs: str, game: str, *seeds: str) -> None:
    def last(arm: str, seed: str) -> float:
        rows = Run(Path(runs, "finetune", game, arm, seed)).rows()
        return [row["eval/score"] for row in rows if "eval/score" in row][-1]

    scores = {arm: np.array([last(arm, seed) for seed in seeds]) for arm in ARMS}
    shown = {arm: interval(x) for arm, x in scores.items()}
    shown |= {f"{a} - {b}": interval(scores[a] - scores[b]) for a, b in combinations(ARMS, 2)}
    print("\n".join(f"| {name} | {text} |" for name, text in shown.items()))
    out = Path(__file__).parent / game / f"paired-{'-'.join(seeds)}.json"
    found = {"seeds": seeds, "last scores": {arm: x.tolist() for arm, x in scores.items()}, "mean and half interval": shown}
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
