"""Supervised streams: the batch is a function of (seed, position), so a resume costs nothing and needs no iterator state."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from training.errors import UserError
from training.method import TrainState
from training.sharding import batch_sharding, check_batch, my_rows, place_rows


class Source(Protocol):
    """Random access to examples.

    __len__()                      number of examples
    batch(indices, uniforms)       pytree of numpy arrays with a leading axis of len(indices). `uniforms` is float64
                                   [len(indices), randoms] in [0, 1): the only randomness a source may use
    randoms                        how many uniforms an example needs
    """

    randoms: int

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, uniforms: np.ndarray) -> Any: ...


class DatasetStream:
    """Batches of a Source, shuffled anew each epoch, prefetched to the device by one thread.

    Row r of batch n is the same for any number of processes: each process reads only its own rows of the global batch.

    Args:
      source: where examples come from.
      batch: rows of the global batch.
      seed: of the shuffling and the uniforms.
      prefetch: batches made ahead.
    """

    def __init__(self, source: Source, *, batch: int, seed: int, mesh: Mesh, prefetch: int = 2):
        check_batch(batch, mesh)
        if len(source) < 1:
            raise UserError("the data set is empty: nothing to train on")
        self._source, self._batch, self._seed, self._mesh = source, batch, seed, mesh
        self._order = grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat()
        self._position = 0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._ahead: dict[int, Future] = {}
        self._prefetch = prefetch
        one = source.batch(np.zeros(1, np.int64), np.zeros((1, source.randoms)))
        sharding = batch_sharding(mesh)
        self.spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype, sharding=sharding), one)

    def next(self, state: TrainState | None = None) -> Any:
        for position in range(self._position, self._position + 1 + self._prefetch):
            if position not in self._ahead:
                self._ahead[position] = self._pool.submit(self._make, position)
        batch = self._ahead.pop(self._position).result()
        self._position += 1
        return batch

    def reads(self, state: TrainState) -> None:
        return None

    def get_state(self) -> dict:
        return {"position": self._position, "examples": len(self._source)}

    def set_state(self, saved: dict) -> None:
        if saved["examples"] != len(self._source):
            raise UserError(
                f"the data set has {len(self._source)} examples; the run began with {saved['examples']}: restore its data"
            )
        self._position = int(saved["position"])
        self._ahead.clear()

    def _make(self, position: int) -> Any:
        mine = my_rows(self._batch, self._mesh)
        indices = np.array([self._order[position * self._batch + r] for r in range(mine.start, mine.stop)], np.int64)
        rng = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, 0, position]))
        uniforms = rng.random((self._batch, self._source.randoms))[mine]
        return place_rows(self._source.batch(indices, uniforms), self._mesh, self._batch)
