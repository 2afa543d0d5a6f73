"""A whole method, as small as one can be: a line is fitted through noisy points by a network with one hidden layer.

It is here to be read and copied (docs/new_method.md), and the tests of the loop train it. It has what most methods have:
a data source with randomness of its own, dropout, an average of the weights, an evaluation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from training import optim
from training.data import DatasetStream, uniforms
from training.method import Eval, Method, TrainState
from training.rng import key_for
from training.sharding import batch_spec
from training.step import make_step


class Line:
    """64 points of the line y = 3 x + 1, 0 <= x < 1; each draw adds noise of up to 0.1 to y."""

    def __len__(self) -> int:
        return 64

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        x = np.stack([indices / 64, np.ones(len(indices))], -1).astype(np.float32)
        return {"x": x, "y": (3 * x[:, 0] + 1 + 0.1 * uniforms(seeds, 1)[:, 0]).astype(np.float32)}


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """The method of `config`, for `mesh`. Shapes and pure functions only: the data are opened by `stream`."""
    tx = optim.build(**config.optim)
    row = {"x": jax.ShapeDtypeStruct((2,), np.float32), "y": jax.ShapeDtypeStruct((), np.float32)}
    spec = batch_spec(row, config.batch, mesh)

    def init(seed: jax.Array) -> TrainState:
        hidden = jax.random.normal(key_for(seed, 0, "init"), (2, config.width)) / 2
        params = {"hidden": hidden, "out": jnp.zeros(config.width)}
        extra = {"ema": params, "seen": jnp.int32(0)}
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params), extra=extra)

    def loss_fn(params: dict, batch: dict, key: jax.Array, extra: dict, consts: Any) -> Any:
        keep = jax.random.bernoulli(key, 1 - config.dropout, (len(batch["x"]), config.width)) / (1 - config.dropout)
        loss = jnp.mean((predict(params, batch["x"], keep) - batch["y"]) ** 2)
        return loss, ({"error": jnp.sqrt(loss)}, {**extra, "seen": extra["seen"] + 1})

    def evaluate(state: TrainState, consts: Any, step: int) -> dict[str, float]:
        x = jnp.array([[0.0, 1.0], [1.0, 1.0]])
        left, right = predict(state.extra["ema"], x)
        return {"slope": float(right - left), "norm": float(jnp.linalg.norm(state.params["out"]))}

    return Method(
        spec=spec,
        init=init,
        step=make_step(loss_fn, tx, accumulate=config.accumulate, ema=0.9),
        stream=lambda consts: DatasetStream(Line(), spec, seed=config.seed),
        evals={"eval": Eval(config.eval.every, evaluate)},
    )


def predict(params: dict, x: jax.Array, keep: jax.Array | float = 1.0) -> jax.Array:
    """Values [B] at `x` [B, 2], whose columns are x and 1; `keep` [B, width] is 0 for hidden units that dropout leaves out."""
    return (jnp.tanh(x @ params["hidden"]) * keep) @ params["out"]
