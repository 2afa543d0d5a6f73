"""Curiosity-driven play (Burda et al. 2019; settings of openai/large-scale-curiosity): makes SGI's exploratory data set E.

    python -m launch.train --config configs/sgi/curiosity.py:paper --config.env.game=Pong --workdir runs/pong-curious
    python -m sgi.collect --policy learner --workdir runs/pong-curious --out recordings

batch = games side by side, step = a stretch of all games, and the passes over it

Variants
    paper   128 games, 3 M steps in all: what SGI-E was pretrained on (second-hand). Not run
    small   16 games, 20k steps: minutes on 2 cores. Run with --config.env.game=MsPacman --config.steps=400, 0.4 M steps, seeds
            0 to 2 (results/sgi/exploration/run.sh). Score to expect: 47,666 +- 11,115 different cells, 95 % t interval, where
            random play with held actions has 93,250 +- 3,804 (docs/sgi.md, results/sgi/exploration/results.json)
    tiny    tests
"""

from ml_collections import ConfigDict

from training.config import base

VARIANTS = ("paper", "small", "tiny")


def get_config(variant: str = "paper") -> ConfigDict:
    c = base("sgi.curiosity", batch=128)  # games side by side
    c.steps = 184  # stretches: 184 * 128 * 128 = 3.0 M steps
    c.net = {"hidden": 512, "width": 1.0}
    c.env = {
        "game": "Pong",
        "noop_max": 30,
        "sticky": 0.0,
        "max_steps": 4500,  # agent steps of a game
        "full_action_space": False,
    }
    c.agent = {
        "horizon": 128,  # steps of a stretch
        "epochs": 3,
        "minibatches": 8,  # of whole stretches
        "unroll": 1,  # minibatches a turn of the loop; on CPU, all of them: XLA's convolutions are slow inside a loop
        "discount": 0.99,
        "lam": 0.95,
        "clip": 0.1,
        "entropy": 0.001,
        "normalise": 10_000,  # steps of random play whose pixels set the mean and the deviation
    }
    c.optim = {"lr": 1e-4, "clip": None}
    c.log.every = 1
    c.checkpoint.every = 10
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}")
    if variant == "small":
        c.net.update({"hidden": 128, "width": 0.5})
        c.env.game = "Boxing"
        c.agent.update({"horizon": 64, "minibatches": 4, "unroll": 12, "normalise": 2000})
        c.update({"batch": 16, "steps": 20})
        c.optim.lr = 5e-4
        c.runtime.ynn = True
    elif variant == "tiny":
        c.net.update({"hidden": 16, "width": 0.125})
        c.agent.update({"horizon": 6, "epochs": 2, "minibatches": 1, "unroll": 2, "normalise": 16})
        c.update({"batch": 8, "steps": 6})
        c.optim.update({"lr": 1e-3, "eps": 1e-2})  # a large eps: tests compare meshes, and Adam enlarges rounding errors
        c.mesh.min_shard = 256
        c.checkpoint.every = 3
    return c.lock()
