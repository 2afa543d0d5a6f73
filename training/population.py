"""N seeds of any method in one program: `vmap` over the method, one stream a seed, the seeds' axis sharded over the mesh."""

import importlib
import json
import logging
from collections import Counter
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from training.config import flatten
from training.errors import UserError
from training.method import Eval, Method, Stream, TrainState
from training.sharding import AXES, batch_ways, place_replicated, replicated, replicated_spec

log = logging.getLogger(__name__)


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """The method that `config.method` names, for `config.population` seeds.

    With more than one seed every array has a leading axis of seeds, every metric and evaluation is a list with a number a
    seed, and member i equals a single run with seed `config.seed + i` up to rounding.
    """
    module = _module(config)
    if config.population == 1:
        return module.make(with_seed(config, config.seed), mesh)
    if config.population % batch_ways(mesh):
        raise UserError(
            f"population of {config.population} seeds is not divisible by the mesh's data x fsdp = {batch_ways(mesh)}"
        )
    # Each member's rows stay on its own device, so the members are built for a mesh of one.
    inner = jax.make_mesh((1, 1, 1), AXES, axis_types=mesh.axis_types, devices=jax.local_devices()[:1])
    members = [module.make(with_seed(config, config.seed + i), inner) for i in range(config.population)]
    return _vmapped(tuple(members), mesh, inner)


def measured(config: ConfigDict) -> ConfigDict:
    """The config with the sizes that its data have (`sizes` of its method module): a 0 is filled in.

    Raises:
      UserError: the config asks for another size than the data have.
    """
    module = _module(config)
    if not hasattr(module, "sizes"):
        return config
    config = config.copy_and_resolve_references().unlock()
    flat = flatten(config)
    for key, size in module.sizes(with_seed(config, config.seed)).items():
        if asked := flat.get(key):
            if json.dumps(asked) != json.dumps(size):
                raise UserError(f"config.{key} is {asked}, but the data have {size}: leave it out, or use the data it is for")
        else:
            log.info("%s: %s, as the data have it", key, size)
        *sections, leaf = key.split(".")
        target = config
        for name in sections:  # runs of earlier versions may lack one
            if name not in target:
                target[name] = ConfigDict()
            target = target[name]
        target[leaf] = size
    return config.lock()


def _module(config: ConfigDict) -> ModuleType:
    try:
        return importlib.import_module(config.method)
    except ModuleNotFoundError as error:
        if not config.method.startswith(error.name or "?"):
            raise  # a package that the method needs
        raise UserError(f"config.method {config.method!r} is not a module with make(config, mesh): {error}") from error


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """A copy for one seed; '{seed}' in `sources` is filled in."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        copy.seed = seed
        for name, source in copy.sources.items():
            copy.sources[name] = source.replace("{seed}", str(seed))
    return copy


def member_config(config: ConfigDict, i: int, workdir: str) -> ConfigDict:
    """The config of member i of the run in `workdir`; 0 is the only one of a run of one seed. Raises UserError for others."""
    if not 0 <= i < config.population:
        raise UserError(f"--member {i}: {workdir} has the members 0..{config.population - 1}")
    return with_seed(config, config.seed + i)


def member(tree: Any, i: int | jax.Array) -> Any:
    """Member i of a population's pytree."""
    return jax.tree.map(lambda x: x[i], tree)


def _vmapped(methods: tuple[Method, ...], mesh: Mesh, inner: Mesh) -> Method:
    first, n = methods[0], len(methods)
    sharding = NamedSharding(mesh, P(("data", "fsdp")))
    spec = jax.tree.map(lambda s: jax.ShapeDtypeStruct((n, *s.shape), s.dtype, sharding=sharding), first.spec)
    pick = jax.jit(member, out_shardings=replicated(mesh))

    def local(tree: Any) -> Any:
        """A replicated tree on the device where the members' streams and evaluations work."""
        return jax.tree.map(lambda x: jax.device_put(x.addressable_data(0), replicated(inner)), tree)

    def one(state: TrainState, i: int) -> TrainState:
        with jax.set_mesh(mesh):
            return local(pick(state, i))

    def init(seed: jax.Array) -> TrainState:
        return jax.vmap(first.init)(seed + jnp.arange(n, dtype=jnp.uint32))

    def consts() -> Any:
        own = first.consts()
        return own if mesh.size == 1 else place_replicated(jax.tree.map(np.asarray, own), mesh)

    def stream(consts: Any) -> Stream:
        streams = tuple(m.stream(local(consts)) for m in methods)
        return PopulationStream(streams, mesh, inner, one)

    def warm(state: TrainState, consts: Any) -> TrainState:
        each = [m.warm(one(state, i), local(consts)) for i, m in enumerate(methods)]
        return jax.tree.map(lambda *x: jnp.stack(x), *each)

    def evaluate(name: str) -> Any:
        def run(state: TrainState, consts: Any, step: int) -> dict[str, Any]:
            each = []
            for i, method in enumerate(methods):
                own = one(state, i)
                with jax.set_mesh(inner):
                    each.append(method.evals[name].run(own, local(consts), step))
            numbers = [k for k, v in each[0].items() if isinstance(v, int | float)]
            media = {k: v for k, v in each[0].items() if k not in numbers}  # the first seed's pictures
            return {**{k: [e[k] for e in each] for k in numbers}, **media}

        return run

    return Method(
        spec=spec,
        init=init,
        step=jax.vmap(first.step, in_axes=(0, 0, None)),
        stream=stream,
        evals={name: Eval(e.every, evaluate(name)) for name, e in first.evals.items()},
        consts=consts,
        consts_spec=replicated_spec(first.consts_spec, mesh),
        rules=((r".*", P(("data", "fsdp"))),),
        warm=warm if first.warm is not None else None,
        files=first.files,
    )


class PopulationStream:
    """One stream a seed; batches are stacked along a new leading axis that is sharded over `data` and `fsdp`.

    Args:
      member: (state, i) -> member i's state, on the mesh `inner`.
    """

    def __init__(self, streams: tuple[Stream, ...], mesh: Mesh, inner: Mesh, member: Any):
        self._streams, self._inner, self._member = streams, inner, member
        self._sharding = NamedSharding(mesh, P(("data", "fsdp")))

    def next(self, state: TrainState) -> Any:
        view = self.reads(state)
        views = [None if view is None else self._member(view, i) for i in range(len(self._streams))]
        with jax.set_mesh(self._inner):
            batches = [s.next(v) for s, v in zip(self._streams, views, strict=True)]
        return jax.tree.map(self._stack, *batches)

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

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    def report(self) -> dict[str, float]:
        """Sums over the members: they work one after another."""
        total: Counter[str] = Counter()
        for stream in self._streams:
            total.update(stream.report())
        return dict(total)
