"""A trained model as a Hugging Face folder, for transformers and whatever reads it, or for --config.init_from here.

    python -m rlhf_jax.export RUN FOLDER [--part policy|value|reward] [--dtype bfloat16]

RUN is a workdir of rlhf_jax.sft, reward_model or rl: its newest checkpoint is taken. LoRA matrices are merged into their base.
"""

import argparse
from pathlib import Path

from models.hub import folder as hub
from rlhf_jax import policy
from training import runtime
from training.cli import guarded
from training.config import load_saved

PARTS = ("policy", "value", "reward")


def export(run: str, folder: Path, part: str | None, dtype: str) -> None:
    """Write `part` of a run (None: its policy or reward model) with its tokeniser into `folder`."""
    config = load_saved(run)
    _, tokeniser = policy.open_data(config)
    cfg = policy.model_config(config.model, tokeniser)
    wanted = (part,) if part else ("policy", "reward")
    weights = policy.load(run, cfg, wanted, head=True)
    hub.save(folder, cfg, weights, tokeniser=tokeniser, dtype=dtype)


def main(argv: list[str]) -> None:
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
