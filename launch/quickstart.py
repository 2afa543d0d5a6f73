"""The main job on real input, small: record, pretrain, fine-tune, compare.

    python -m launch.quickstart --out runs/quickstart        (make quickstart)

Random play of one Atari game is recorded, an encoder is pretrained on it without rewards (SGI), an agent is fine-tuned from it
and once more from scratch, and both are compared with random play in one report. Every command is printed as you would type it.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from launch.report import write_report
from training.cli import guarded
from training.runs import Run

GAME = "Boxing"
FRAMES = 10_000
PRETRAIN_STEPS = 300
PREFILL = 500  # random steps before learning
AGENT_STEPS = 1_500  # after them; the paper's budget is 100,000
EPISODES = 10


def main(argv: list[str]) -> None:
    """Record, pretrain, fine-tune twice, compare, report. A command that fails ends it, with that command's exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.quickstart", description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="runs/quickstart")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    out, start = Path(args.out), time.perf_counter()
    recording, sgi = out / "recording", out / "pretrain"
    python_m("sgi.collect", "--game", GAME, "--steps", FRAMES, "--out", recording, "--seed", args.seed)
    values = {"seed": args.seed, "steps": PRETRAIN_STEPS, "data.dir": recording, "data.game": GAME}
    train("configs/sgi/pretrain.py:small", sgi, values)
    for name, variant, source in (("sgi", "small_sgi", sgi), ("scratch", "small_none", "")):
        values = {"seed": args.seed, "steps": AGENT_STEPS + 1, "env.game": GAME, "sources.init": source}
        values |= {"agent.prefill": PREFILL, "eval.every": 0, "eval.episodes": EPISODES}
        train(f"configs/sgi/finetune.py:{variant}", out / name, values)
    compare(out, args.seed)
    report = write_report([out], title=f"Quickstart: SGI on {GAME}")
    print(f"\nreport: {report}   ({time.perf_counter() - start:.0f} s)")


def train(config: str, workdir: Path, values: dict[str, object]) -> None:
    """Train a config with other values for some of its keys."""
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    python_m("launch.train", "--config", config, "--workdir", workdir, *overrides)


def python_m(module: str, *args: object) -> None:
    """Print a command as one would type it, and run it. Exits with its exit code if that is not 0."""
    words = [module, *map(str, args)]
    print(f"\n$ python -m {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", *words], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def compare(out: Path, seed: int) -> None:
    """Write and print the table of the report: both agents beside random play and the published human score."""
    from sgi.atari.evaluation import random_play
    from sgi.atari.scores import SCORES

    rows = []
    for name, label in (("sgi", "fine-tuned from SGI pretraining"), ("scratch", "the same agent from scratch")):
        last = next(row for row in reversed(Run(out / name).rows()) if "eval/score" in row)
        rows.append([label, last["eval/score"], last["eval/score_sd"], last["eval/human_normalised"]])
    play = random_play(GAME, EPISODES, seed)
    rows.append(["uniformly random actions", play["score"], play["score_sd"], play["human_normalised"]])
    random_score, human_score = SCORES[GAME]
    rows.append(["human (published)", human_score, None, 1.0])
    table = {
        "title": f"{GAME}: scores after {PREFILL + AGENT_STEPS:,} agent steps",
        "caption": f"Mean and standard deviation over {EPISODES} games, one training seed: a demonstration, not a comparison. "
        "After so few of the paper's 100,000 steps both agents usually play worse than random. "
        f"Human-normalised: 0 is the published random score ({random_score}), 1 the human.",
        "columns": ["agent", "score", "sd", "human-normalised"],
        "rows": [[label, *(None if x is None else round(x, 2) for x in numbers)] for label, *numbers in rows],
    }
    (out / "scores.table.json").write_text(json.dumps(table, indent=1))
    print()
    for row in table["rows"]:
        print(f"{row[0]:34s} {row[1]:8.2f}")


if __name__ == "__main__":
    guarded(main)
