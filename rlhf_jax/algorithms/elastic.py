"""Elastic Reset (Noukhovitch et al. 2023): now and then the policy goes back to its average, and the average to the start.

    theta <- an RL update of theta
    ema   <- eta ema + (1 - eta) theta         every update, PPO epoch or iteration
    every n: theta <- ema, then ema <- theta_0

Pure functions over trees of arrays; the caller decides when to call them. Average and start may cover a part of the parameters:
nested dicts that leave keys out ({'policy': ...} of {'policy': ..., 'value': ...}). What they leave out is neither averaged nor
reset, as the value network of the published runs; nor are Adam's moments, the KL weight and the learning rate.

Hazard: a training step that donates its state deletes the buffers of `params` and `ema`, so these two and the start must never
share one. `snapshot` copies, and `reset` returns new buffers.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from training.errors import UserError

TARGETS = ("elastic", "ema", "init", "none")


def snapshot(params: Any) -> Any:
    """A copy to start an average from, or to go back to: new buffers, floats in float32 (see `ema_update`)."""

    def copy(x):
        x = jnp.asarray(x)
        return jnp.array(x, jnp.float32 if _is_float(x) else x.dtype, copy=True)

    return jax.tree.map(copy, params)


def ema_update(ema: Any, params: Any, decay: float | jax.Array) -> Any:
    """The average after an update, decay ema + (1 - decay) params, without bias correction; integer leaves are copied.

    Raises UserError for an average below float32: with a decay of .995 bfloat16 rounds the updates away.
    """

    def leaf(old, new):
        if not _is_float(old):
            return jnp.copy(new)
        if jnp.finfo(old.dtype).bits < 32:
            raise UserError(f"the average of the weights is {old.dtype}: start it with elastic.snapshot, which keeps float32")
        return (decay * old + (1 - decay) * new.astype(old.dtype)).astype(old.dtype)

    return _map(leaf, ema, params)


def due(count: int | jax.Array, every: int, at_zero: bool = False) -> jax.Array:
    """Whether a reset follows iteration `count` (from 0; may be traced): every `every`, 0 for never; at 0 only with at_zero."""
    if every < 0:
        raise UserError(f"a reset every {every} iterations makes no sense: give a positive number, or 0 for none")
    count = jnp.asarray(count)
    if every == 0:
        return jnp.zeros_like(count, bool)
    return (count % every == 0) & (at_zero | (count > 0))


def reset(
    params: Any,
    ema: Any,
    init: Any,
    opt_state: Any,
    do: bool | jax.Array,
    *,
    to: str = "elastic",
    fresh_opt_state: Any = None,
) -> tuple[Any, Any, Any]:
    """(params, ema, opt_state) after a reset where `do` (a bool scalar, may be traced), as they are elsewhere.

    Args:
      ema: the average of all or a part of params.
      init: the start of the same part at least. What init has and ema lacks (a value network) goes back to init.
      to: 'elastic': params to the average, average to the start. Ablations: 'ema': params to the average, which stays;
        'init': both to the start. 'none': nothing, ever.
      fresh_opt_state: `tx.init(params)`, to restart the optimiser too (off in the published runs). The counts of learning-rate
        schedules go on.
    """
    if to not in TARGETS:
        raise UserError(f"unknown reset {to!r}: use one of {', '.join(TARGETS)}")
    if to == "none":
        return params, ema, opt_state

    def yes():
        start = _overlay(ema, _part(init, ema))
        source = init if to == "init" else _overlay(init, ema)
        optimiser = opt_state if fresh_opt_state is None else _restart(opt_state, fresh_opt_state)
        return _overlay(params, source), ema if to == "ema" else start, optimiser

    # The outputs of a cond are buffers of their own, even where a branch gives one array twice.
    return jax.lax.cond(do, yes, lambda: (params, ema, opt_state))


def _restart(opt_state, fresh):
    def is_schedule(x):
        return isinstance(x, optax.ScaleByScheduleState)

    return jax.tree.map(lambda old, new: old if is_schedule(old) else new, opt_state, fresh, is_leaf=is_schedule)


def _is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def _overlay(base, top):
    """The tree `base` with what `top` has put over it, in the types of `base`."""
    if isinstance(base, Mapping) and isinstance(top, Mapping):
        _check(top, base)
        return {k: _overlay(v, top[k]) if k in top else v for k, v in base.items()}
    return jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), base, top)


def _part(tree, like):
    """The keys of tree that `like` has."""
    if isinstance(tree, Mapping) and isinstance(like, Mapping):
        _check(like, tree)
        return {k: _part(tree[k], v) for k, v in like.items()}
    return tree


def _map(function, small, large):
    return jax.tree.map(function, small, _part(large, small))


def _check(small, large):
    if missing := sorted(set(small) - set(large)):
        raise UserError(f"Elastic Reset averages {missing}, unknown to the parameters or the start: snapshot what is trained")
