"""For tests: a toy method that trains in milliseconds, and helpers that train configs the way users do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from training import config as configs
from training import optim, population
from training.data import DatasetStream
from training.loop import run
from training.method import Eval, Method, Stream, TrainState
from training.rng import key_for
from training.sharding import make_mesh
from training.step import make_step


class Line:
    """Noisy points on a line; the noise is a function of the uniforms."""

    randoms = 1

    def __len__(self) -> int:
        return 64

    def batch(self, indices: np.ndarray, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        x = np.stack([indices / 64, np.ones(len(indices))], -1).astype(np.float32)
        return {"x": x, "y": (3 * x[:, 0] + 1 + 0.1 * uniforms[:, 0]).astype(np.float32)}


def toy_config(**values: Any) -> ConfigDict:
    """Linear regression with one hidden layer and dropout: enough to catch a lost key, EMA, moment or position."""
    config = configs.base("training.testing", steps=12, batch=16)
    config.optim = ConfigDict({"lr": 1e-2, "clip": 1.0})
    config.accumulate = 1
    config.dropout = 0.1
    config.explode_at = 0  # the step whose loss is NaN; 0 = never
    config.mesh.min_shard = 32
    config.log.every = 1
    config.checkpoint.every = 4
    for key, value in values.items():
        configs.set_value(config, key.replace("__", "."), str(value))
    return config.lock()


def make(config: ConfigDict, mesh: Mesh) -> tuple[Method, Stream]:
    tx = optim.build(**config.optim)

    def init(seed: jax.Array, spec: Any) -> TrainState:
        key = key_for(seed, 0, "init")
        params = {"hidden": jax.random.normal(key, (2, 64)) / 2, "out": jnp.zeros((64,))}
        return TrainState(
            step=jnp.int32(0),
            seed=jnp.uint32(seed),
            params=params,
            opt_state=tx.init(params),
            extra={"ema": params, "seen": jnp.int32(0)},
        )

    def loss_fn(params: Any, batch: Any, key: jax.Array, extra: Any, consts: Any) -> Any:
        h = jnp.tanh(batch["x"] @ params["hidden"])
        h = h * jax.random.bernoulli(key, 1 - config.dropout, h.shape)
        loss = jnp.mean((h @ params["out"] - batch["y"]) ** 2)
        seen = extra["seen"] + 1
        loss = jnp.where(seen == config.explode_at, jnp.nan, loss) if config.explode_at else loss
        return loss, ({"error": jnp.sqrt(loss)}, {**extra, "seen": seen})

    step = make_step(loss_fn, tx, accumulate=config.accumulate, ema=0.9)
    evals = {"eval": Eval(6, lambda state, t: {"norm": float(jnp.linalg.norm(state.params["out"]))})}
    stream = DatasetStream(Line(), batch=config.batch, seed=config.seed, mesh=mesh)
    return Method(init=init, step=step, evals=evals), stream


def train(config: ConfigDict, workdir: Any, *, stop_after: int | None = None, devices: list | None = None) -> TrainState:
    """Train `config` in `workdir` in this process, as launch.train does."""
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    method, stream = population.make(config, mesh)
    return run(config, method, stream, mesh, str(workdir), stop_after=stop_after)
