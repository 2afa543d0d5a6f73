"""N seeds of any method in one program: `vmap` over the method, one stream a seed, the seeds' axis sharded over the mesh."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from training.errors import UserError
from training.method import Eval, Method, Stream, TrainState
from training.sharding import AXES, batch_ways, replicated


def make(config: ConfigDict, mesh: Mesh) -> tuple[Method, Stream]:
    """The method and stream that `config.method` names, for `config.population` seeds.

    With more than one seed every array has a leading axis of seeds, every metric and evaluation is a list with a number a
    seed, and member i equals a single run with seed `config.seed + i` up to rounding.
    """
    try:
        module = importlib.import_module(config.method)
    except ModuleNotFoundError as error:
        if not config.method.startswith(error.name or "?"):
            raise  # a package that the method needs
        raise UserError(f"config.method {config.method!r} is not a module with make(config, mesh): {error}") from error
    if config.population == 1:
        return module.make(with_seed(config, config.seed), mesh)
    if config.population % batch_ways(mesh):
        raise UserError(
            f"population of {config.population} seeds is not divisible by the mesh's data x fsdp = {batch_ways(mesh)}"
        )
    # Each member's rows stay on its own device, so the members are built for a mesh of one.
    inner = jax.make_mesh((1, 1, 1), AXES, axis_types=mesh.axis_types, devices=jax.local_devices()[:1])
    members = [module.make(with_seed(config, config.seed + i), inner) for i in range(config.population)]
    methods, streams = zip(*members, strict=True)
    return _vmapped(methods, config), PopulationStream(streams, mesh, inner)


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """A copy for one seed; '{seed}' in `init_from` is filled in."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        copy.seed = seed
        copy.init_from = copy.init_from.replace("{seed}", str(seed))
    return copy


def member_config(config: ConfigDict, i: int, workdir: str) -> ConfigDict:
    """The config of member i of the run in `workdir`; 0 is the only one of a run of one seed. Raises UserError for others."""
    if not 0 <= i < config.population:
        raise UserError(f"--member {i}: {workdir} has the members 0..{config.population - 1}")
    return with_seed(config, config.seed + i)


def member(tree: Any, i: int | jax.Array) -> Any:
    """Member i of a population's pytree."""
    return jax.tree.map(lambda x: x[i], tree)


def _vmapped(methods: tuple[Method, ...], config: ConfigDict) -> Method:
    first, n = methods[0], len(methods)

    def init(seed: jax.Array, spec: Any) -> TrainState:
        one = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), spec)
        return jax.vmap(lambda s: first.init(s, one))(seed + jnp.arange(n, dtype=jnp.uint32))

    def warm(state: TrainState) -> TrainState:
        each = [m.warm(member(state, i)) for i, m in enumerate(methods)]
        return jax.tree.map(lambda *x: jnp.stack(x), *each)

    def evaluate(name: str) -> Any:
        def run(state: TrainState, step: int) -> dict[str, Any]:
            each = [m.evals[name].run(member(state, i), step) for i, m in enumerate(methods)]
            numbers = [k for k, v in each[0].items() if isinstance(v, int | float)]
            media = {k: v for k, v in each[0].items() if k not in numbers}  # the first seed's pictures
            return {**{k: [e[k] for e in each] for k in numbers}, **media}

        return run

    return Method(
        init=init,
        step=jax.vmap(first.step, in_axes=(0, 0, None)),
        evals={name: Eval(e.every, evaluate(name)) for name, e in first.evals.items()},
        consts=first.consts,
        rules=((r".*", P(("data", "fsdp"))),),
        warm=warm if first.warm is not None else None,
    )


class PopulationStream:
    """One stream a seed; batches are stacked along a new leading axis that is sharded over `data` and `fsdp`."""

    def __init__(self, streams: tuple[Stream, ...], mesh: Mesh, inner: Mesh):
        self._streams, self._inner = streams, inner
        self._sharding = NamedSharding(mesh, P(("data", "fsdp")))
        n = len(streams)
        self.spec = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct((n, *s.shape), s.dtype, sharding=self._sharding), streams[0].spec
        )
        self._member = jax.jit(member, out_shardings=replicated(mesh))

    def next(self, state: TrainState) -> Any:
        view = self.reads(state)
        views = [None if view is None else self._local(view, i) for i in range(len(self._streams))]
        with jax.set_mesh(self._inner):
            batches = [s.next(v) for s, v in zip(self._streams, views, strict=True)]
        return jax.tree.map(self._stack, *batches)

    def _local(self, view: TrainState, i: int) -> TrainState:
        """Member i's part of the state, on the device where its stream works."""
        return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), replicated(self._inner)), self._member(view, i))

    def _stack(self, *rows: jax.Array) -> jax.Array:
        host = np.stack([np.asarray(x) for x in rows])
        return jax.make_array_from_callback(host.shape, self._sharding, lambda index: host[index])

    def reads(self, state: TrainState) -> TrainState | None:
        return self._streams[0].reads(state)

    def get_state(self) -> dict:
        return {"members": [s.get_state() for s in self._streams]}

    def set_state(self, saved: dict) -> None:
        for stream, one in zip(self._streams, saved["members"], strict=True):
            stream.set_state(one)
