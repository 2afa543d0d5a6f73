"""For tests: the example with a loss that explodes on demand, and `train`, which trains configs the way users do."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from training import config as configs
from training import example, population
from training.loop import run
from training.method import Method, TrainState
from training.sharding import make_mesh

EXAMPLE = Path(__file__).parents[1] / "configs" / "example" / "line.py"


def toy_config(**values: Any) -> ConfigDict:
    """The example's tiny config for `make` below; `explode_at` is the step whose loss is NaN (0: none)."""
    config = configs.load(f"{EXAMPLE}:tiny")
    with config.unlocked():
        config.method, config.explode_at = "training.testing", 0
        for key, value in values.items():
            configs.set_value(config, key.replace("__", "."), str(value))
    return config


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """`training.example` with the loss of step `config.explode_at` NaN."""
    method = example.make(config, mesh)

    def step(state: TrainState, batch: Any, consts: Any) -> tuple[TrainState, dict]:
        state, metrics = method.step(state, batch, consts)
        return state, {**metrics, "loss": jnp.where(state.step == config.explode_at, jnp.nan, metrics["loss"])}

    return method._replace(step=step)


def train(config: ConfigDict, workdir: Any, *, stop_after: int | None = None, devices: list | None = None) -> TrainState:
    """Train `config` in `workdir` in this process, as launch.train does."""
    config = at(config, workdir)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)
    return run(config, population.make(config, mesh), mesh, str(workdir), stop_after=stop_after)


def at(config: ConfigDict, workdir: Any) -> ConfigDict:
    """The config of a run in `workdir`, with the sizes of its data."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.workdir = str(workdir)
    return population.measured(config)
