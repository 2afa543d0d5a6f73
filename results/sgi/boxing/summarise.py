"""Tables of the Boxing experiment.

    PYTHONPATH=. python results/sgi/boxing/summarise.py OUT        OUT as given to run.sh

Writes results.json beside this file and prints Markdown. Intervals are 95 % t intervals over seeds; differences are paired.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from training.runs import Run
from training.statistics import half_interval

ARMS = {"small": "SGI", "small_SI": "S+I", "small_S": "S", "small_I": "I", "small_untrained": "untrained"}
MEASURES = ("r2_projection", "r2_spatial", "inverse_probe", "inverse_accuracy", "cosine", "rank")


def interval(values: list[float]) -> dict:
    values = np.array(values)
    half = half_interval(values) if len(values) > 1 else None
    return {"mean": float(values.mean()), "half": None if half is None else float(half), "values": values.tolist()}


def show(x: dict) -> str:
    return f"{x['mean']:.3f} ± {x['half']:.3f}" if x["half"] is not None else f"{x['mean']:.3f}"


def by_arm(results: dict[str, dict], measure: str) -> dict[str, dict[int, float]]:
    """Arm -> seed -> value."""
    found = defaultdict(dict)
    for name, values in results.items():
        arm, seed = re.fullmatch(r"(.+)-(\d+)", Path(name).name).groups()
        if measure in values:
            found[ARMS[arm]][int(seed)] = values[measure]
    return found


def differences(found: dict[str, dict[int, float]]) -> dict[str, dict]:
    pairs = [("SGI", "untrained"), ("SGI", "S+I"), ("S+I", "untrained")]
    return {
        f"{a} - {b}": interval([found[a][s] - found[b][s] for s in sorted(found[a].keys() & found[b].keys())])
        for a, b in pairs
        if found[a].keys() & found[b].keys()
    }


def main(out: Path) -> None:
    probes = json.loads((out / "probes.json").read_text())
    runs = {p.name: Run(p).rows()[-1] for p in sorted((out / "frozen").iterdir())}
    results = {**{m: by_arm(probes, m) for m in MEASURES}, "frozen_rl_score": by_arm(runs, "eval/score")}
    arms = [a for a in ARMS.values() if a in results["r2_projection"]]
    summary = {}
    print("| measure | " + " | ".join(arms) + " |\n" + "|---" * (len(arms) + 1) + "|")
    for measure, found in results.items():
        cells = {arm: interval([found[arm][s] for s in sorted(found[arm])]) for arm in arms if found[arm]}
        summary[measure] = {"arms": cells, "differences": differences(found)}
        print(f"| {measure} | " + " | ".join(show(cells[a]) if a in cells else "–" for a in arms) + " |")
    print("\n| paired difference | " + " | ".join(results) + " |\n" + "|---" * (len(results) + 1) + "|")
    for pair in ("SGI - untrained", "SGI - S+I", "S+I - untrained"):
        cells = [summary[m]["differences"].get(pair) for m in results]
        print(f"| {pair} | " + " | ".join("–" if c is None else show(c) for c in cells) + " |")
    (Path(__file__).parent / "results.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
