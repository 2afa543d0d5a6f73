"""A trained model as a Hugging Face folder, for transformers and whatever reads it, or for --config.sources.init here.

    python -m rlhf_jax.export RUN FOLDER [--part policy|value|reward] [--dtype bfloat16]

RUN is a workdir of rlhf_jax.sft, reward_model or rl: its newest checkpoint is taken. LoRA matrices are merged into their base.
"""

import argparse
from pathlib import Path

from models.hub import folder
from rlhf_jax import policy
from rlhf_jax.tasks.tokenised import STAGES, open_tokeniser
from training import population, runtime
from training.cli import guarded
from training.runs import Run

PARTS = ("policy", "value", "reward")


def export(run: str, out: Path, part: str | None, dtype: str) -> None:
    """Write `part` of a run (None: its policy or reward model) with its tokeniser into the folder `out`."""
    config = population.measured(Run(run).needs(*STAGES).config)
    cfg = policy.model_config(config)
    weights = policy.load(run, cfg, (part,) if part else ("policy", "reward"), head=True)
    folder.save(out, cfg, weights, tokeniser=open_tokeniser(config), dtype=dtype)


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.export", description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    args = parser.parse_args(argv)
    runtime.setup()
    export(args.run, args.folder, args.part, args.dtype)
    print(f"{args.run} is in {args.folder}")


if __name__ == "__main__":
    guarded(main)
