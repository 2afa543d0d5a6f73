"""Streams whose batches a model makes: prompts from a data set, completions from the current weights, scores from a judge."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from training.data import DatasetStream
from training.errors import UserError
from training.method import TrainState
from training.sharding import batch_sharding, place_rows

# (what `view` leaves of the state, batch of prompts, consts) -> {name: array with the prompts' leading axis}
Generate = Callable[[TrainState, Any, Any], dict[str, jax.Array]]
# (prompts, generated), this process's rows in numpy -> {name: numpy array with those rows}
Score = Callable[[dict, dict], dict[str, np.ndarray]]


class GeneratorStream:
    """Batches {**prompts, **generated, **scores, 'version'}, all with the prompts' leading axis.

    How old the weights may be that make a batch is decided here and nowhere else: `lag`, in steps of the loop. With 0 `next`
    generates from the very state that it is handed. A learner sees the mode only in `version` int32 [B]: the step whose weights
    made the batch.

    Args:
      prompts: batches of dicts.
      generate: jitted here. Its keys come from the state's seed and step, so that a resumed run draws the same again.
      score: runs on the host (and may call jitted functions of its own); every process scores its own rows.
      makes: what `generate` and `score` add: name -> shape without the leading axis, and dtype.
      view: the part of the state that `generate` reads, the rest None.
      consts: frozen arrays for `generate`, usually `Method.consts`.
      lag: 0. Other values are refused until the asynchronous mode is built.
    """

    def __init__(
        self,
        prompts: DatasetStream,
        generate: Generate,
        score: Score,
        *,
        makes: Mapping[str, jax.ShapeDtypeStruct],
        view: Callable[[TrainState], TrainState],
        consts: Callable[[], Any] = tuple,
        mesh: Mesh,
        lag: int = 0,
    ):
        if lag:
            raise UserError(f"a generator's lag is {lag}: only 0 (generate, then learn) is built so far")
        self._prompts, self._score, self.reads, self._consts, self._mesh = prompts, score, view, consts, mesh
        sharding = batch_sharding(mesh)
        self._generate = jax.jit(generate, out_shardings=sharding)
        self._rows = jax.tree.leaves(prompts.spec)[0].shape[0]
        made = {**makes, "version": jax.ShapeDtypeStruct((), np.int32)}
        self.spec = dict(prompts.spec) | {
            name: jax.ShapeDtypeStruct((self._rows, *one.shape), one.dtype, sharding=sharding) for name, one in made.items()
        }

    def next(self, state: TrainState) -> dict:
        prompts = self._prompts.next(state)
        generated = self._generate(self.reads(state), prompts, self._consts())
        mine_in, mine_out = jax.tree.map(local_rows, (prompts, generated))
        scores = self._score(mine_in, mine_out)
        version = np.full(len(jax.tree.leaves(mine_in)[0]), int(state.step), np.int32)
        return {**prompts, **generated, **place_rows({**scores, "version": version}, self._mesh, self._rows)}

    def get_state(self) -> dict:
        return self._prompts.get_state()

    def set_state(self, saved: dict) -> None:
        self._prompts.set_state(saved)


def local_rows(x: jax.Array) -> np.ndarray:
    """This process's rows of an array whose leading axis is sharded over `data` and `fsdp`, in order and each once."""
    shards = {(s.index[0].start or 0) if s.index else 0: s.data for s in x.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
