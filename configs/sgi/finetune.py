r"""Fine-tuning on Atari 100k with SGI's data-efficient Rainbow (reference: mila-iqia/SGI at fbc0b69, config.yaml and algos.py).

    python -m launch.train --config configs/sgi/finetune.py:sgi --config.env.game=Pong \
        --config.sources.init=runs/pong-sgi --workdir runs/pong

batch = transitions of an update, step = an agent step (the first: the random prefill)

`sources.init` is the workdir of a run, or a state dict of the reference (.npz; .pt or .pth where torch is installed).

Variants
    none      from scratch (SGI-None): 1e-4 for every parameter. Not run
    naive     from `sources.init`, 1e-4 for every parameter. Not run
    frozen    from `sources.init`, encoder fixed. Not run
    sgi       from `sources.init`, encoder at lr / 100 and first head layers at lr / 3.3 (sgim_finetune.sh). Not run
    spr, der, drq, sr_spr, bbf    what others compare with, from scratch: the settings of mila-iqia/spr, Dopamine's
              labs/atari_100k (DER, DrQ(eps)) and google-research/bigger_better_faster; docs/sgi.md has the differences. Not run
    small_cached  CPU experiment: a fresh head on cached features of a frozen encoder, 20k steps
    small_none, small_sgi, small_naive, small_frozen
              CPU experiment: the network of configs/sgi/pretrain.py:small, 10k steps; the last two are not run
    tiny, tiny_cached, tiny_bbf    tests

    python -m launch.train --config configs/sgi/finetune.py:small_sgi --config.agent.spr=0 \
        --config.sources.init=runs/small --workdir runs/boxing

Time: 9,001 steps of `small_*` without self-prediction (agent.spr=0) at 40 a second on one busy core; with it twice as long. At
paper size 100k agent steps and 196k updates of 32: hours on one GPU.

Scores to expect, 95 % t intervals:
    small_none, small_sgi, agent.spr=0, last score (results/sgi/learning, its run.sh; docs/sgi.md has R and W):
              Krull, seeds 0-2: none 2328 +- 895, sgi on W 2578 +- 352, on R 1401 +- 1144; seeds 3-7: 2383 +- 416, 1734 +- 1062,
              585 +- 863. Boxing, seeds 0-2: -6.0 +- 6.8, -4.1 +- 10.2, -9.4 +- 35.9. Random play: 1598, 0.1
    small_cached, Boxing, seeds 0-2 (results/sgi/boxing): from `small` 2.6 +- 10.0, `small_SI` -5.7 +- 21.0, `small_untrained`
              -0.6 +- 4.4: no better than random play
"""

from ml_collections import ConfigDict

from training.config import base

MODES = ("none", "naive", "frozen", "sgi")
PRESETS = ("spr", "der", "drq", "sr_spr", "bbf")
VARIANTS = (*MODES, *PRESETS, *(f"small_{m}" for m in MODES), "small_cached", "tiny", "tiny_cached", "tiny_bbf")
LR = 1e-4


def get_config(variant: str = "none") -> ConfigDict:
    c = base("sgi.finetune", batch=32)
    c.net = {
        "encoder": "M",
        "width": 1.0,
        "head": "dueling",
        "hidden": 512,
        "atoms": 51,
        "renormalise": True,  # latents scaled to [0, 1]
        "dtype": "float32",
    }
    c.env = {
        "game": "Pong",
        "noop_max": 30,
        "sticky": 0.0,  # none, as in earlier Atari-100k work (issue 3 of the reference)
        "full_action_space": False,
    }
    c.agent = {
        "prefill": 2000,  # random steps before the first update
        "updates": 2,  # an agent step: replay ratio 64 at batch 32
        "capacity": 100_000,
        "noisy_std": 0.5,
        "n_step": 10,
        "discount": 0.99,
        "priority_alpha": 0.5,
        "beta": (0.4, 1.0),  # importance exponent, linear over beta_steps
        "beta_steps": 98_000,
        "target_tau": 1.0,  # hard copy,
        "target_every": 1,  # after every update
        "target_acts": False,  # the Q target's weights choose the actions
        "resets": {"every": 0, "shrink": 0.5, "perturb": 0.5, "until": 100_000},  # agent steps; 0: never (resets.py)
        "anneal": {"updates": 0, "n_step": 10, "discount": 0.97},  # from these to n_step and discount after each reset
        "spr": 5.0,  # SPR's lambda = 2
        "jumps": 5,
        "spr_tau": 0.01,
        "epsilon": (0.0, 0.0),  # NoisyNets explore; else linear over epsilon_steps after the prefill
        "epsilon_steps": 1,
        "freeze_encoder": False,  # running statistics, no gradient
        "cache_features": False,  # the replay keeps latents of a frozen encoder; only the head learns
        "pretrained": False,  # True: refuse to start without `sources.init`
        "first_layers": "goal",  # what the projection of pretraining was; 'reward' after behaviour cloning, 'none' to leave out
    }
    c.steps = 98_001  # the prefill, then one step an agent step: 100k agent steps in all
    c.augment = {"shift": 4, "intensity": 0.05}
    c.optim = {"lr": LR, "eps": 1.5e-4, "clip": None, "groups": {}}  # clipping is off in the fine-tuning scripts
    c.eval = {"every": 0, "episodes": 100, "lanes": 100, "epsilon": 0.001, "max_steps": 27_000, "video_seconds": 30.0}
    c.log.every = 500
    c.checkpoint.update({"every": 5000})
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}")
    mode = variant.rpartition("small_")[2]
    if variant in PRESETS:
        RECIPES[variant](c)
    if variant.startswith("tiny"):
        mode = variant.partition("_")[2]
        if mode in PRESETS:
            RECIPES[mode](c)
        tiny(c)
    if variant.startswith("small"):
        small(c)
    if variant == "small_cached":
        c.agent.update({"prefill": 1000, "updates": 2, "capacity": 20_480, "epsilon": (1.0, 0.05), "epsilon_steps": 2000})
        c.steps = 19_001
        c.eval.update({"every": 0, "episodes": 20, "lanes": 20})
    c.agent.pretrained = mode in ("naive", "frozen", "sgi")
    if mode == "sgi":
        c.optim.groups = {
            "encoder": {"match": "^encoder/", "scale": 0.01},
            "first_layers": {"match": "^reward_head/(advantage|value)_1/", "scale": 0.3},
        }
    elif mode in ("frozen", "cached"):
        c.agent.freeze_encoder = True
        c.optim.groups = {"encoder": {"match": "^encoder/", "scale": 0.0}}
    if mode == "cached":
        c.agent.update({"spr": 0.0, "cache_features": True, "first_layers": "none", "noisy_std": 0.0})
    return c.lock()


def spr(c: ConfigDict) -> None:
    """The agent of SPR: SGI's fine-tuning of a Nature CNN."""
    c.net.update({"encoder": "S", "hidden": 256})
    c.agent.spr_tau = 1.0  # no average where images are augmented
    c.optim.clip = 10.0


def dopamine(c: ConfigDict) -> None:
    """What DER and DrQ(eps) share: one update a step, a padded Nature CNN, one hidden layer."""
    c.net.update({"encoder": "S-same", "head": "shared", "renormalise": False})
    c.agent.update({"prefill": 1600, "updates": 1, "spr": 0.0, "jumps": 1, "beta": (0.5, 0.5)})
    c.steps = 98_401


def der(c: ConfigDict) -> None:
    dopamine(c)
    c.agent.update({"target_every": 2000, "noisy_std": 0.1, "epsilon": (1.0, 0.01), "epsilon_steps": 2000})
    c.augment.update({"shift": 0, "intensity": 0.0})


def drq(c: ConfigDict) -> None:
    """DrQ(eps) of Agarwal et al. (2021): values instead of distributions, uniform replay."""
    dopamine(c)
    c.net.atoms = 1
    c.agent.update({"noisy_std": 0.0, "priority_alpha": 0.0, "epsilon": (1.0, 0.01), "epsilon_steps": 5000})


def sr_spr(c: ConfigDict) -> None:
    c.net.update({"encoder": "S-same", "head": "shared"})
    c.agent.update({"updates": 8, "noisy_std": 0.0, "beta": (0.5, 0.5), "epsilon": (1.0, 0.0), "epsilon_steps": 2001})
    c.agent.update({"target_tau": 0.005, "target_acts": True, "spr_tau": 0.005})
    c.agent.resets.update({"every": 5000, "shrink": 0.8, "perturb": 0.2})
    c.optim.groups = {"kept": {"match": "^(encoder|dynamics)/"}}  # whose moments outlive a reset


def bbf(c: ConfigDict) -> None:
    sr_spr(c)
    c.net.update({"encoder": "impala", "width": 4.0, "hidden": 2048})
    c.agent.update({"updates": 2, "n_step": 3, "discount": 0.997})
    c.agent.resets.update({"every": 20_000, "shrink": 0.5, "perturb": 0.5})
    c.agent.anneal.updates = 10_000
    c.optim.weight_decay = 0.1


RECIPES = {"spr": spr, "der": der, "drq": drq, "sr_spr": sr_spr, "bbf": bbf}


def small(c: ConfigDict) -> None:
    c.net.update({"encoder": "S-bn", "width": 0.5, "hidden": 128})
    c.env.game = "Boxing"
    c.agent.update({"prefill": 1000, "updates": 1, "jumps": 3, "capacity": 10_000, "beta_steps": 10_000})
    c.steps = 9_001
    c.eval.update({"every": 3000, "episodes": 10, "lanes": 10})
    c.runtime.ynn = True
    c.checkpoint.every = 1000


def tiny(c: ConfigDict) -> None:
    c.net.update({"encoder": {"M": "S-bn"}.get(c.net.encoder, c.net.encoder), "width": 0.125, "hidden": 16})
    c.agent.update({"prefill": 40, "updates": 1, "jumps": 1, "n_step": 3, "capacity": 256, "beta_steps": 20})
    c.agent.resets.update({"every": 2 if c.agent.resets.every else 0, "until": 44})
    if c.agent.anneal.updates:
        c.agent.anneal.update({"updates": 2, "n_step": 6})
    c.update({"batch": 8, "steps": 6})
    c.mesh.min_shard = 256
    c.eval.update({"episodes": 2, "lanes": 2, "video_seconds": 1.0, "max_steps": 20})
    c.log.every = 1
    c.checkpoint.update({"every": 3})
