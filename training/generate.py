"""Streams whose batches a model makes: prompts from a data set, completions from the current weights, scores from a judge."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from training.data import DatasetStream
from training.errors import UserError
from training.method import TrainState
from training.sharding import batch_sharding, move, place_rows

# (what `view` leaves of the state, batch of prompts, consts) -> {name: array with the prompts' leading axis}
Generate = Callable[[TrainState, Any, Any], dict[str, jax.Array]]
# (prompts, generated), this process's rows in numpy -> {name: numpy array with those rows}
HostScore = Callable[[dict, dict], dict[str, np.ndarray]]


class GeneratorStream:
    """Batches {**prompts, **generated, **scores, 'version'}, all with the prompts' leading axis.

    How old the weights may be that make a batch is decided here and nowhere else: `lag`, in steps of the loop. With 0 `next`
    generates from the very state that it is handed. A learner sees the mode only in `version` int32 [B]: the step whose weights
    made the batch. Generation may have a mesh of its own, the one that the prompts lie on: weights go there, and what was
    generated comes back, from device to device.

    Args:
      prompts: batches of dicts, on the mesh of generation.
      generate: jitted here. Its keys come from the state's seed and step, so that a resumed run draws the same again.
      score: runs on the host (and may call jitted functions of its own); every process scores its own rows.
      spec: of the whole batch, on the learner's mesh (`Method.spec`).
      view: the part of the state that `generate` reads, the rest None.
      consts: frozen arrays for `generate`.
      lag: 0. Other values are refused until the asynchronous mode is built.
    """

    def __init__(
        self,
        prompts: DatasetStream,
        generate: Generate,
        score: HostScore,
        *,
        spec: dict[str, jax.ShapeDtypeStruct],
        view: Callable[[TrainState], TrainState],
        consts: Any = (),
        lag: int = 0,
    ):
        if lag:
            raise UserError(f"a generator's lag is {lag}: only 0 (generate, then learn) is built so far")
        self._prompts, self._score, self.reads = prompts, score, view
        self._rows, self._mesh = spec["version"].shape[0], spec["version"].sharding.mesh
        self._there = prompts.mesh
        self._consts = move(consts, self._there)
        self._seconds: Counter[str] = Counter()

        def versioned(view: TrainState, batch: dict, consts: Any) -> dict:
            return {**generate(view, batch, consts), "version": jnp.full(self._rows, view.step, jnp.int32)}

        self._generate = jax.jit(versioned, out_shardings=batch_sharding(self._there))

    def next(self, state: TrainState) -> dict:
        prompts = self._prompts.next(state)
        generated = self._generate(move(self.reads(state), self._there), prompts, self._consts)
        begin = time.perf_counter()
        rows = jax.tree.map(local_rows, (prompts, generated))
        made = time.perf_counter()
        scores = self._score(*rows)
        self._seconds.update({"time/generation": made - begin, "time/score": time.perf_counter() - made})
        return {**move({**prompts, **generated}, self._mesh), **place_rows(scores, self._mesh, self._rows)}

    def get_state(self) -> dict:
        return self._prompts.get_state()

    def set_state(self, saved: dict) -> None:
        self._prompts.set_state(saved)

    def close(self) -> None:
        self._prompts.close()

    def report(self) -> dict[str, float]:
        """Seconds that `next` waited for the generator's device, and that the host scored, since the last call."""
        seconds, self._seconds = dict(self._seconds), Counter()
        return {name: round(value, 4) for name, value in seconds.items()}


def local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of an array whose leading axis is sharded over `data` and `fsdp`, in order and each once."""
    shards = {(s.index[0].start or 0) if s.index else 0: s.data for s in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
