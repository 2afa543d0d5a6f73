"""Preference pairs by a gold judge (Gao et al. 2022): two samples of a model for each prompt, or given pairs ordered anew.

    python -m rlhf_jax.preferences RUN --gold lexicon --out pairs.jsonl [--prompts 4000] [--seed 0]
    python -m rlhf_jax.preferences RUN --relabel --gold model --gold-run runs/gold --out pairs.jsonl

RUN is a workdir of rlhf_jax.sft or rlhf_jax.rl. The file has one JSON object a line: split, prompt, chosen, rejected. Of the
samples, pairs that the judge scores alike are left out; pairs of the task keep their order then. A reward model takes the file
as --config.pairs.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from rlhf_jax import policy
from rlhf_jax.rollouts import rollout, rows, text_metrics
from rlhf_jax.rollouts.evaluate import JudgeOf
from rlhf_jax.rollouts.judges import open_judge
from rlhf_jax.tasks import Examples, Pairs
from rlhf_jax.tasks.base import pairs_of
from rlhf_jax.tasks.files import read_jsonl
from rlhf_jax.tasks.tokenised import STAGES, open_data
from training import population, runtime
from training.cli import guarded
from training.errors import UserError
from training.rng import key_for
from training.runs import Run

SPLITS = ("train", "validation")
FIELDS = {"split": str, "prompt": str, "chosen": str, "rejected": str}
ROWS = 64  # prompts sampled at once


def read(path: str) -> dict[str, Pairs]:
    """The pairs of each split, from a file that this module wrote."""
    lines = read_jsonl(Path(path), FIELDS, blank=("chosen", "rejected"))
    return {s: pairs_of([(x["prompt"], x["chosen"], x["rejected"]) for x in lines if x["split"] == s]) for s in SPLITS}


def make(run: str, gold: JudgeOf, *, prompts: int, seed: int) -> list[dict[str, str]]:
    """Rows of `FIELDS`: from `prompts` training prompts, and a tenth as many of validation."""
    config = population.measured(Run(run).needs(*STAGES).config)
    task, tokeniser = open_data(config)
    cfg = policy.model_config(config)
    weights = jax.device_put(policy.load(run, cfg, ("policy",)))
    sampler = rollout.sampler_of(config.sample)._replace(samples=2)
    draw = jax.jit(lambda weights, batch, key: rollout.draw(weights, cfg, batch, key, sampler, tokeniser)["tokens"])
    made = []
    for split, number in zip(SPLITS, (prompts, max(prompts // 10, 1)), strict=True):
        examples = task.splits[split].head(number)
        judge = gold(examples)
        arrays = rows.prompt_rows(examples.prompts, tokeniser, sampler.lengths).arrays
        place = np.arange(len(examples.prompts))
        for start in range(0, len(place), ROWS):
            index = np.resize(place[start : start + ROWS], ROWS)  # one program: the last block repeats its rows
            batch = {name: arrays[name][index] for name in ("prompt", "prompt_mask")}
            tokens_BkN = np.asarray(draw(weights, batch, key_for(seed, start, split)))
            n = len(place[start : start + ROWS])
            asked = [examples.prompts[i] for i in index[:n]]
            sides = [tokeniser.decode_batch(tokens_BkN[:n, j]) for j in range(2)]
            scores = [judge(index[:n], asked, side) for side in sides]
            ordered = text_metrics.relabel(Pairs(asked, *sides), *scores)
            differ = zip(*ordered, scores[0] != scores[1], strict=True)
            made += [{"split": split, "prompt": p, "chosen": c, "rejected": r} for p, c, r, keep in differ if keep]
    return made


def relabel(run: str, gold: JudgeOf) -> list[dict[str, str]]:
    """Rows of `FIELDS`: the task's own pairs, better one first by the gold judge (Noukhovitch et al. 2025, TL;DR)."""
    task, _ = open_data(Run(run).needs(*STAGES).config)
    if not task.pairs:
        raise UserError(f"the task {task.name} has no pairs to relabel: leave out --relabel to sample some")
    made = []
    for split in SPLITS:
        pairs = task.pairs[split]
        index = np.arange(len(pairs.prompts))
        judge = gold(Examples(pairs.prompts, pairs.chosen, [""] * len(index)))
        ordered = text_metrics.relabel(pairs, *(judge(index, pairs.prompts, side) for side in (pairs.chosen, pairs.rejected)))
        made += [{"split": split, "prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(*ordered, strict=True)]
    return made


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.preferences", description=__doc__.split("\n")[0])
    parser.add_argument("run", help="workdir whose model is sampled")
    parser.add_argument("--gold", default="lexicon", help="kind of the judge: lexicon, exact, length, model, classifier")
    parser.add_argument("--gold-run", default="", help="workdir or folder of a model that judges")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--relabel", action="store_true", help="order the pairs of the task; sample nothing")
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    runtime.setup()
    gold = open_judge(args.gold, args.gold_run)
    pairs = relabel(args.run, gold) if args.relabel else make(args.run, gold, prompts=args.prompts, seed=args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    print(f"{len(pairs)} pairs in {args.out}")


if __name__ == "__main__":
    guarded(main)
