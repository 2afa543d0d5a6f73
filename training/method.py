"""The contracts. A research method is a `Method`, fed by a `Stream`, watched by `Eval`s; `rules` say how its arrays shard.

Each method module exposes one function

    make(config, mesh) -> Method

and `config.method` is its module path ('sgi.pretrain'). `make` builds shapes and pure functions only: it opens no file, no data
set and no emulator, so that a plan of a paper-size run costs nothing. Where shapes depend on the data (a vocabulary), the
config has a key for the size, 0 or () means "as the data have it", and the module has a second function

    sizes(config) -> {'model.vocab': 2048}

which asks the data; `population.measured` fills these in before a run, and refuses a config that says otherwise. For a 0 that
nobody filled in, `make` takes the size of the published data. Nothing in `training/` or `launch/` is edited to add a method:
docs/new_method.md.
"""

import functools
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


class Stream(Protocol):
    """The only stateful object on the host: where batches come from.

    next(state)           The next batch, already placed on the mesh. Data that depend on the policy read `state`.
    reads(state)          The part of the state that `next` looks at (a TrainState with the rest set to None), or None.
    get_state()           A dict of numpy arrays, numbers and strings: the *consumed* position, nothing prefetched. It is the
                          same on every process.
    set_state(saved)      Go back there.
    close()               Close what was opened: files, emulators, workers. It may be called twice.
    report()              Numbers since the last call, as {'time/generation': 1.5}; they join the next row of metrics.
    """

    def next(self, state: TrainState) -> Any: ...

    def reads(self, state: TrainState) -> TrainState | None: ...

    def get_state(self) -> dict: ...

    def set_state(self, saved: dict) -> None: ...

    def close(self) -> None: ...

    def report(self) -> dict[str, float]: ...


# (state, consts, step) -> {name: value}
EvalRun = Callable[[TrainState, Any, int], dict[str, Any]]


class Eval(NamedTuple):
    """A read-only look at the state, every `every` steps (0: never) and at the end.

    `run(state, consts, step)` runs on the host and may jit; `consts` are those that `Method.step` gets. It returns
    `{name: value}`, where a value is a float, a `metrics.Image`, `metrics.Video` or `metrics.Text`. Data that only an
    evaluation needs are opened when it first runs (`on_first_run`).
    """

    every: int
    run: EvalRun


def on_first_run(open_eval: Callable[[], EvalRun]) -> EvalRun:
    """The evaluation that `open_eval` makes when it first runs, since making a method opens nothing."""
    opened = functools.cache(open_eval)
    return lambda state, consts, step: opened()(state, consts, step)


class Method(NamedTuple):
    """A research method: pure functions over pytrees, and what they are applied to.

    spec                     Shapes and shardings of the usual batch: a pytree of ShapeDtypeStruct.
    init(seed)               -> TrainState. Jitted with output shardings; `seed` is a uint32 scalar.
    step(state, batch, consts) -> (state, metrics). Jitted, donates `state`; metrics are scalars, still on the device.
    stream(consts)           -> Stream. Opens the data; the loop closes it, also when the run fails.
    evals                    name -> Eval.
    consts()                 -> pytree of frozen arrays (a reference policy, word vectors): placed once, passed as an argument,
                             never saved.
    consts_spec              Shapes and shardings of the consts.
    rules                    ((regex, PartitionSpec), ...): see sharding.py.
    warm(state, consts)      -> state. Optional: take weights of another run at the very start; skipped on resume.
    files()                  -> {name: bytes}. What the weights depend on besides the config, such as a tokeniser. Saved in the
                             workdir with digests, so that nobody who loads the weights has to make it anew (`runs.Run.file`).
    """

    spec: Any
    init: Callable[[jax.Array], TrainState]
    step: Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]
    stream: Callable[[Any], Stream]
    evals: Mapping[str, Eval] = {}
    consts: Callable[[], Any] = tuple
    consts_spec: Any = ()
    rules: tuple = ()
    warm: Callable[[TrainState, Any], TrainState] | None = None
    files: Callable[[], Mapping[str, bytes]] = dict
