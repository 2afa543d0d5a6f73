"""Runs as players: what a learner did, again (SGI's data sets W and E), and what a trained agent does. Used by `sgi.collect`.

A run's experience is its actions (`sgi.atari.recorder`), which its checkpoints hold: nothing else need be logged.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sgi.atari.recorder import checksum, complete
from training import config as configs
from training import population, runtime
from training.checkpoint import Checkpoints, read_stream
from training.errors import UserError

Act = Callable[[int, np.ndarray], np.ndarray]  # (t, stacks uint8 [N, 4, 84, 84]) -> actions int [N]


def settings(policy: str, workdir: str, member: int, epsilon: float, steps: int | None) -> dict:
    """What `collect` must know of a run: its game and the rules of it; of a learner, lanes, seed and number of steps too.

    Raises UserError where the run has no player of this kind.
    """
    config = configs.load_saved(workdir)
    if config.method not in (("sgi.finetune", "sgi.curiosity") if policy == "learner" else ("sgi.finetune",)):
        raise UserError(f"{workdir} is a run of {config.method}: the policy {policy} cannot play it")
    config = population.member_config(config, member, workdir)
    rules = ("noop_max", "sticky", "max_steps")
    found = {
        "workdir": str(Path(workdir).resolve()),
        "step": newest(workdir),  # a run that has gone on has other data
        "member": member,
        "game": config.env.game,
        "steps": steps,
        "full_actions": config.env.full_action_space,
        "env": {name: config.env[name] for name in rules if name in config.env},
    }
    if policy == "checkpoint":
        if not 0 <= epsilon <= 1:
            raise UserError(f"--epsilon {epsilon}: take a value from 0 to 1")
        found["env"]["life_loss"] = True  # the agent's stacks are black before a lost life
        return found | {"epsilon": epsilon}
    rows, lanes, _ = recorded(workdir, member).shape
    if steps is not None and steps > rows * lanes:
        raise UserError(f"--steps {steps}: {workdir} has recorded {rows * lanes}")
    return found | {"steps": rows * lanes if steps is None else steps, "envs": lanes, "seed": config.seed}


def newest(workdir: str) -> int:
    """The step of the newest checkpoint."""
    if not (steps := Checkpoints(workdir).steps()):
        raise UserError(f"no checkpoint in {workdir}; train there first")
    return steps[-1]


def recorded(workdir: str, member: int) -> np.ndarray:
    """What `Recorder` kept of all games of a run up to its newest checkpoint: uint8 [T, N, 2]."""
    saved = read_stream(workdir)
    played = (saved["members"][member] if "members" in saved else saved).get("played")
    if not complete(played) or not len(played):
        raise UserError(
            f"{workdir} holds no play that can be checked: it has not begun, or is of an older version; run it anew"
        )
    return played


def learner(options: dict) -> Act:
    """The run's own actions. Raises UserError where the games take another course than the run's."""
    played = recorded(options["workdir"], options["member"])

    def act(t: int, stack: np.ndarray) -> np.ndarray:
        if (checksum(stack) != played[t, :, 1]).any():
            raise UserError(f"{options['workdir']} saw other frames than these at its step {t}: replay it with its own ale-py")
        return played[t, :, 0]

    return act


def checkpoint(options: dict) -> Act:
    """The newest agent of a fine-tuning run, epsilon-greedy."""
    from sgi.play import load_agent, load_config  # these prepare jax for the run's network

    config = load_config(options["workdir"], options["member"])
    runtime.setup(**config.runtime)
    act = load_agent(config, options["workdir"], **{name: options[name] for name in ("step", "member", "seed", "epsilon")})
    return lambda t, stack: act(stack, t)


POLICIES: dict[str, Callable[[dict], Act]] = {"learner": learner, "checkpoint": checkpoint}
