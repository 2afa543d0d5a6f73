"""Periodic resets of an agent (D'Oro et al. 2023, SR-SPR; Schwarzer et al. 2023, BBF): shrink and perturb."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from sgi.nets.targets import spr_part
from training.method import TrainState
from training.rng import key_for
from training.sharding import path_name

KEPT = ("encoder", "dynamics")  # parameters that shrink; all others start anew
GROUP = "kept"  # optimiser group of `KEPT`: its moments and its count of updates go on


def due(replayed: jax.Array, every: int, until: int) -> jax.Array:
    """True if the agent resets after its `replayed`-th step.

    It resets every `every` steps, the last time at least `every` steps before `until`.
    """
    return (replayed % every == 0) & (replayed + every <= until)


def reset(
    state: TrainState, agent: ConfigDict, random: Callable[[jax.Array], dict], tx: optax.GradientTransformation
) -> TrainState:
    """The state with new weights if a reset is due, else as it was.

    Encoder and transition model become shrink * old + perturb * random, everything else random; the Q target in the same way
    with random weights of its own. The replay and its priorities stay, and so do running statistics of BatchNorm, which follow
    within some tens of updates. In a population every member computes a reset at every step: `lax.cond` is a selection there.

    Args:
      random: key -> parameters.
    """
    return jax.lax.cond(
        due(state.extra["replay"].count, agent.resets.every, agent.resets.until),
        lambda s: reset_weights(s, agent.resets, random, tx),
        lambda s: s,
        state,
    )


def reset_weights(
    state: TrainState, options: ConfigDict, random: Callable[[jax.Array], dict], tx: optax.GradientTransformation
) -> TrainState:
    """The state after a reset."""

    def shrink_and_perturb(old: dict, name: str) -> dict:
        fresh = random(key_for(state.seed, state.step, "reset", name))
        shrink = lambda a, b: options.shrink * a + options.perturb * b  # noqa: E731
        return {name: jax.tree.map(shrink, old[name], x) if name in KEPT else x for name, x in fresh.items()}

    params = shrink_and_perturb(state.params, "online")
    extra = {**state.extra, "since_reset": jnp.int32(0)}
    if "q_target" in extra:
        extra["q_target"] = shrink_and_perturb(extra["q_target"], "target")
    extra["spr_target"] = spr_part(extra.get("q_target", params), extra["stats"], "reward")
    fresh = tx.init(params)
    keep = lambda path, new, old: old if f"{GROUP}/" in path_name(path) else new  # noqa: E731
    opt_state = jax.tree_util.tree_map_with_path(keep, fresh, state.opt_state)
    return state.replace(params=params, opt_state=opt_state, extra=extra)
