"""Runs as players: what a learner did, again (SGI's data sets W and E), and what a trained agent does.

A run's experience is its actions (`sgi.atari.recorder`), which its checkpoints hold: nothing else need be logged.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from sgi.agent import rainbow
from sgi.atari import evaluation
from sgi.atari.recorder import checksum, is_complete
from training import population, runtime
from training.errors import UserError
from training.method import TrainState
from training.runs import Run
from training.sharding import make_mesh

Act = Callable[[int, np.ndarray], np.ndarray]  # (t, observation uint8 [N, 4, 84, 84]) -> actions int [N]


def settings(policy: str, workdir: str, member: int, epsilon: float, steps: int | None) -> dict:
    """The settings of a recording that a run decides: game and rules; for a learner, lanes, seed and number of steps too.

    Raises UserError where the run has no player of this kind.
    """
    run = Run(workdir).needs(*(("sgi.finetune", "sgi.curiosity") if policy == "learner" else ("sgi.finetune",)))
    config = run.config
    config = population.member_config(config, member, workdir)
    rules = ("noop_max", "sticky", "max_steps")
    result = {
        "workdir": str(Path(workdir).resolve()),
        "step": run.step,  # a run that has gone on has other data
        "member": member,
        "game": config.env.game,
        "steps": steps,
        "full_actions": config.env.full_action_space,
        "env": {name: config.env[name] for name in rules if name in config.env},
    }
    if policy == "checkpoint":
        if not 0 <= epsilon <= 1:
            raise UserError(f"--epsilon {epsilon}: take a value from 0 to 1")
        result["env"]["life_loss"] = True  # the agent's older frames are black before a lost life
        return result | {"epsilon": epsilon}
    rows, lanes, _ = load_record(workdir, member).shape
    if steps is not None and steps > rows * lanes:
        raise UserError(f"--steps {steps}: {workdir} has recorded {rows * lanes}")
    return result | {"steps": rows * lanes if steps is None else steps, "envs": lanes, "seed": config.seed}


def load_record(workdir: str, member: int) -> np.ndarray:
    """The `Recorder`'s actions and checksums of all games of a run up to its newest checkpoint: uint8 [T, N, 2].

    Raises UserError if there are none.
    """
    saved = Run(workdir).stream_state()
    record = (saved["members"][member] if "members" in saved else saved).get("played")
    if not is_complete(record) or not len(record):
        raise UserError(
            f"{workdir} holds no play that can be checked: it has not begun, or is of an older version; run it anew"
        )
    return record


def learner(options: dict) -> Act:
    """The policy that repeats the run's actions. Raises UserError where the games take another course than the run's."""
    record = load_record(options["workdir"], options["member"])

    def act(t: int, stack: np.ndarray) -> np.ndarray:
        if (checksum(stack) != record[t, :, 1]).any():
            raise UserError(f"{options['workdir']} saw other frames than these at its step {t}: replay it with its own ale-py")
        return record[t, :, 0]

    return act


def checkpoint(options: dict) -> Act:
    """The newest agent of a fine-tuning run, epsilon-greedy."""
    config = load_config(options["workdir"], options["member"])
    runtime.setup(**config.runtime)
    chosen = {name: options[name] for name in ("step", "member", "seed", "epsilon")}
    act = load_agent(config, options["workdir"], **chosen)
    return lambda t, stack: act(stack, t)


def load_config(workdir: str, member: int) -> ConfigDict:
    """The config of one member of a fine-tuning run."""
    return population.member_config(Run(workdir).needs("sgi.finetune").config, member, workdir)


def load_agent(
    config: ConfigDict, workdir: str, *, step: int | None, member: int, seed: int, epsilon: float
) -> Callable[[np.ndarray, int], np.ndarray]:
    """The policy that evaluations of a checkpoint measure, for `evaluation.play`."""
    arrays = Run(workdir).arrays(step, ("step", "params", "extra/stats", "extra/q_target"))
    weights = {"params": arrays["params"], "extra": {"stats": {}, **arrays.get("extra", {})}}
    at = arrays["step"]
    if config.population > 1:
        weights, at = population.member((weights, at), member)
    state = TrainState(np.int32(at), np.uint32(seed), weights["params"], None, weights["extra"])
    state, mesh = jax.device_put(state), make_mesh(1)
    choose = evaluation.policy(rainbow.evaluation_policy(rainbow.build_net(config), config.agent, epsilon))
    print(f"{workdir}: the agent after step {at}")

    def act(stack: np.ndarray, t: int) -> np.ndarray:
        with jax.set_mesh(mesh):
            return choose(state, stack, t)

    return act
