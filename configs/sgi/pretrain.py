r"""SGI pretraining on reward-free play (Schwarzer et al. 2021, section 4; reference: mila-iqia/SGI at fbc0b69).

    python -m launch.train --config configs/sgi/pretrain.py:mixed --config.data.dir=gs://atari-replay-datasets/dqn \
        --config.data.game=Pong --workdir runs/pong-sgi

batch = windows of play, step = an update

Variants
    mixed, weak, large, small_net   SGI-M, SGI-W, SGI-M/L, SGI-M/S on the DQN-Replay data set: 234k-391k updates of 256
                                    windows, days on one GPU in the reference. Not run
    random                          SGI-R: random play, collected on the emulator when no data directory is given. Not run
    exploratory                     SGI-E: what a curious agent played (configs/sgi/curiosity.py); cell-based exploration when
                                    no data directory is given. Not run
    bc                              behaviour cloning on the mixed data. Not run
    S, G, I, SG, SI, GI, SGI        ablations of `mixed`. Not run
    paper                           `mixed` with the paper's loss weights (lambda_SPR = 2: 5 in the code's scaling). Not run
    small, small_SI, small_S, small_I, small_untrained
                                    CPU experiment on 20k random frames of Boxing, minutes on 2 cores
    tiny, tiny_bc                   tests

    python -m launch.train --config configs/sgi/pretrain.py:small --workdir runs/small

Scores to expect of the small variants: R^2 of the RAM positions from the projection (python -m sgi.probe), 95 % t intervals
over 3 seeds: small .935 +- .054, small_SI .942 +- .038, small_S .927 +- .012, small_I .926 +- .030, small_untrained
.765 +- .078 (results/sgi/boxing; its run.sh, which also fine-tunes, takes about 40 minutes on 2 idle cores).
"""

from ml_collections import ConfigDict

from training.config import base

MIXED = "1/1,1/25,1/50"  # run/checkpoint: scripts/experiments/sgim_pretrain.sh
WEAK = "1/1,2/1,3/1,4/1,5/1"
LARGE = "1/1,1/5,1/10,1/15,1/20,1/25"
ABLATIONS = ("S", "G", "I", "SG", "SI", "GI", "SGI")
SMALL = ("small", "small_SI", "small_S", "small_I", "small_untrained")
VARIANTS = (
    "mixed",
    "weak",
    "large",
    "small_net",
    "random",
    "exploratory",
    "bc",
    "paper",
    *ABLATIONS,
    *SMALL,
    "tiny",
    "tiny_bc",
)


def get_config(variant: str = "mixed") -> ConfigDict:
    c = base("sgi.pretrain", batch=256)  # config.yaml: batch_size 256
    c.steps = 234_000  # 20 epochs of 3 M windows
    c.accumulate = 1
    c.reference_quirks = False  # True: the goal head, goal noise and masks exactly as in the reference code (docs/sgi.md)
    c.net = {"encoder": "M", "width": 1.0, "hidden": 512, "dtype": "float32"}  # 'bfloat16' on accelerators
    c.data = {
        "dir": "",  # DQN-Replay files, ArrayRecord or tfds:folder; see sgi/recordings/source.py for the defaults
        "game": "Pong",
        "shards": MIXED,
        "cache": "",
        "workers": 0,  # processes that read windows, where one thread is too slow
        "collect": 100_000,  # steps to record where there is no data directory
        "policy": "random",  # who plays them: 'random' or 'cells'
        "full_action_space": False,  # minimal action set
    }
    c.loss = {
        "spr": 1.0,  # scripts use 1; the paper's lambda = 2 is 5 here (issue 4 of the reference)
        "inverse": 1.0,
        "goal": 1.0,
        "bc": 0.0,
        "bc_from_values": True,  # logits = expected values of the reward head
        "jumps": 5,  # K
        "spr_tau": 0.01,  # EMA rate of the self-prediction target
        "goal_tau": 0.01,  # EMA rate of the Q target, every update
        "discount": 0.99,
        "goal_window": 50,
        "goal_noise": 0.5,
        "goal_permute": 0.2,
        "goal_scale": 10.0,
        "goal_temperature": 5.0,  # hard-coded 5 in scrl.py; 1 in the paper
        "goal_distance": "exp",
        "goal_all_to_all": False,
    }
    c.augment = {"shift": 4, "intensity": 0.05}
    c.optim = {
        "lr": 1e-4,
        "eps": 1.5e-4,
        "clip": 10.0,  # encoder and heads together
        "groups": {
            "dynamics": {"match": "^dynamics/", "clip": 10.0},
            "unclipped": {"match": "^(predictor|inverse|bc)/", "clip": None},
        },
    }
    c.log.every = 100
    c.checkpoint.update({"every": 2000, "keep_every": 50_000})
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}")
    if variant == "weak":
        c.steps, c.data.shards = 391_000, WEAK  # 20 epochs of 5 M
    elif variant == "large":
        c.net.encoder, c.data.shards = "L", LARGE  # 10 epochs of 6 M
    elif variant == "small_net":
        c.net.encoder, c.runtime.ynn = "S", True
    elif variant in ("random", "exploratory"):
        c.data.update({"shards": "all", "policy": "random" if variant == "random" else "cells"})
    elif variant == "paper":
        c.loss.spr = 5.0
    elif variant == "bc":
        bc(c)
    elif variant in ABLATIONS:
        ablate(c, variant)
    elif variant in SMALL:
        small(c, variant.removeprefix("small").removeprefix("_") or "SGI")
    elif variant.startswith("tiny"):
        tiny(c, variant)
    return c.lock()


def ablate(c: ConfigDict, losses: str) -> None:
    for name, letter in (("spr", "S"), ("goal", "G"), ("inverse", "I")):
        if letter not in losses:
            c.loss[name] = 0.0
    if losses == "G":
        c.loss.jumps = 1  # goals need the next observation only


def bc(c: ConfigDict) -> None:
    """Behaviour cloning: bc_pretrain.sh."""
    ablate(c, "")
    c.loss.update({"bc": 1.0, "jumps": 0})


def small(c: ConfigDict, losses: str) -> None:
    """Half-width Nature CNN with BatchNorm, lr 1e-3 (the reference's 1e-4 is for 234k updates)."""
    c.net.update({"encoder": "S-bn", "width": 0.5, "hidden": 128})
    c.data.update({"game": "Boxing", "shards": "all", "collect": 20_000})
    c.update({"batch": 64, "steps": 600})
    c.loss.update({"spr": 5.0, "jumps": 3})
    c.optim.lr = 1e-3
    c.runtime.ynn = True
    c.log.every = 20
    c.checkpoint.update({"every": 100, "keep_every": 0})
    if losses == "untrained":  # no learning: only the BatchNorm statistics move
        c.optim.lr = 0.0
        c.steps = 100
    else:
        ablate(c, losses)


def tiny(c: ConfigDict, variant: str) -> None:
    c.net.update({"encoder": "S-bn", "width": 0.125, "hidden": 16})
    c.data.update({"game": "Pong", "shards": "all", "collect": 400})
    c.update({"batch": 8, "steps": 6})
    c.loss.update({"jumps": 2, "goal_window": 10})
    c.optim.eps = 1e-2  # large: tests compare meshes, and Adam enlarges rounding errors
    c.mesh.min_shard = 256
    c.log.every = 1
    c.checkpoint.update({"every": 3, "keep_every": 0})
    if variant == "tiny_bc":
        bc(c)
