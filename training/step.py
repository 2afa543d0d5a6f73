"""From a loss to a step: gradients, accumulation, optax, EMA. Methods with other needs write their own `step`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from training.method import TrainState
from training.rng import key_for

# loss_fn(params, batch, key, extra, consts) -> (loss, (metrics, extra))
LossFn = Callable[[Any, Any, jax.Array, Any, Any], tuple[jax.Array, tuple[dict, Any]]]


def make_step(
    loss_fn: LossFn, tx: optax.GradientTransformation, *, accumulate: int = 1, ema: float | None = None
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict]]:
    """A `Method.step` for one loss and one optimiser.

    Args:
      loss_fn: its `extra` is threaded through (batch statistics, target networks).
      tx: optimiser; see `optim.build`.
      accumulate: split the rows of the batch into this many equal parts and average their gradients before one update.
        Row i goes to part i % accumulate, so that each part keeps the rows' sharding.
      ema: decay of an average of the parameters, kept in `extra['ema']`: e <- ema * e + (1 - ema) * params after the update.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def step(state: TrainState, batch: Any, consts: Any) -> tuple[TrainState, dict]:
        key = key_for(state.seed, state.step, "step")
        extra, average = state.extra, None
        for part in range(accumulate):  # unrolled: XLA's CPU convolutions are about 9x slower inside a loop
            rows = batch if accumulate == 1 else jax.tree.map(lambda x, p=part: x[p::accumulate], batch)
            (loss, (metrics, extra)), grads = grad_fn(state.params, rows, jax.random.fold_in(key, part), extra, consts)
            out = (grads, {"loss": loss, **metrics})
            average = out if average is None else jax.tree.map(jnp.add, average, out)
        grads, metrics = average if accumulate == 1 else jax.tree.map(lambda x: x / accumulate, average)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if ema is not None:
            extra = {**extra, "ema": mix(extra["ema"], params, 1 - ema)}
        metrics["grad_norm"] = optax.tree.norm(grads)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, extra=extra), metrics

    return step


def mix(old: Any, new: Any, rate: float | jax.Array) -> Any:
    """(1 - rate) * old + rate * new on every leaf: an EMA update (rate 1: a copy)."""
    return jax.tree.map(lambda o, n: (1 - rate) * o + rate * n, old, new)
