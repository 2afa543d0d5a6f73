"""The contracts. A research method is a `Method`, fed by a `Stream`, watched by `Eval`s; `rules` say how its arrays shard.

Each method module exposes one function

    make(config, mesh) -> (Method, Stream)

and `config.method` is its module path ('sgi.pretrain'). Nothing in `training/` or `launch/` is edited to add a method.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
    """Everything on the device that must survive a restart. A checkpoint is this plus the stream's position.

    No random key is stored: `rng.key_for(state.seed, state.step, 'name')` recomputes each one. `seed` is an array and not a
    constant of the program, so that `population` can vmap one program over many seeds.
    """

    step: jax.Array  # int32 scalar: number of `Method.step` calls so far
    seed: jax.Array  # uint32 scalar
    params: Any
    opt_state: Any
    extra: Any = ()  # EMA, target networks, batch statistics, replay: whatever else must survive a restart


class Eval(NamedTuple):
    """Read-only look at the state, every `every` steps and at the end. `run(state, step)` runs on the host and may jit.

    It returns `{name: value}`, where a value is a float, a `metrics.Image`, `metrics.Video` or `metrics.Text`.
    """

    every: int
    run: Callable[[TrainState, int], dict[str, Any]]


class Method(NamedTuple):
    """A research method: pure functions over pytrees.

    init(seed, spec) -> TrainState           jitted with output shardings; `spec` is the stream's batch spec
    step(state, batch, consts) -> (state, metrics)
                                             jitted, donates `state`; metrics are scalars, still on the device
    consts() -> pytree                       frozen arrays (a reference policy): placed once, passed as an argument, never saved
    rules                                    ((regex, PartitionSpec), ...): see sharding.py
    warm(state) -> state                     optional: load weights of another run at the very start; skipped on resume
    """

    init: Callable[[jax.Array, Any], TrainState]
    step: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]
    evals: Mapping[str, Eval] = {}
    consts: Callable[[], Any] = tuple
    rules: tuple = ()
    warm: Callable[[TrainState], TrainState] | None = None


class Stream(Protocol):
    """The only stateful object on the host: where batches come from.

    spec                  pytree of ShapeDtypeStruct (global shapes, with shardings) of the usual batch
    next(state)           the next batch, already placed on the mesh. Data that depend on the policy read `state`
    reads(state)          the part of the state that `next` looks at (a TrainState with the rest set to None), or None
    get_state()           dict of numpy arrays, numbers and strings: the *consumed* position, nothing prefetched. It is the same
                          on every process
    set_state(saved)      go back there
    """

    spec: Any

    def next(self, state: TrainState) -> Any: ...

    def reads(self, state: TrainState) -> TrainState | None: ...

    def get_state(self) -> dict: ...

    def set_state(self, saved: dict) -> None: ...
