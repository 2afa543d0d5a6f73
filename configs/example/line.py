"""A line through noisy points: the smallest method, to copy (docs/new_method.md).

    python -m launch.train --config configs/example/line.py --workdir runs/line

batch = points, step = an update

Variants
    paper   2,000 updates: 5 seconds on two cores; the slope comes out at 2.9 to 3.1
    tiny    tests
"""

from ml_collections import ConfigDict

from training.config import base

VARIANTS = ("paper", "tiny")


def get_config(variant: str = "paper") -> ConfigDict:
    c = base("training.example", batch=16, steps=2000)
    c.width = 64  # of the hidden layer
    c.dropout = 0.1
    c.accumulate = 1
    c.optim = {"lr": 1e-2, "clip": 1.0}
    c.eval = {"every": 500}
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}")
    if variant == "tiny":
        c.steps = 12
        c.eval.every = 6
        c.mesh.min_shard = 32
        c.log.every = 1
        c.checkpoint.every = 4
    return c.lock()
