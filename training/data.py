"""Supervised streams: the batch is a function of (seed, position), so a resume costs nothing and needs no iterator state."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Protocol

import grain
import jax
import numpy as np

from training.errors import UserError
from training.method import TrainState
from training.sharding import my_rows, path_name, place_rows


class Source(Protocol):
    """Random access to examples.

    __len__()                   The number of examples.
    batch(indices, seeds)       A pytree of numpy arrays with a leading axis of n = len(indices). `seeds`, uint64 [n], are the
                                only randomness that a source may use: `uniforms(seeds, k)` turns them into numbers, and
                                `generator(seed)` into a generator of one row, for draws of unknown number.
    """

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Any: ...


def uniforms(seeds: np.ndarray, k: int) -> np.ndarray:
    """Numbers in [0, 1), k for each of n seeds: uint64 [n] -> float64 [n, k] (SplitMix64; Steele et al. 2014)."""
    steps = np.arange(1, k + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # all of it modulo 2^64
    z = np.asarray(seeds, np.uint64)[:, None] + steps
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def generator(seed: int | np.uint64) -> np.random.Generator:
    """A random generator of one row."""
    return np.random.Generator(np.random.Philox(key=int(seed)))


class DatasetStream:
    """Batches of a Source, shuffled anew each epoch and prefetched to the device.

    Row r of batch n is the same for any number of processes and workers: each process reads only its own rows of the global
    batch.

    Args:
      source: where examples come from.
      spec: shapes, types and shardings of a batch (`sharding.batch_spec`).
      seed: of the shuffling and of the rows' seeds.
      prefetch: how many batches are made ahead, by one thread.
      workers: where one thread is too slow, how many processes make batches, each a whole one; the source must pickle.

    Raises:
      UserError: the source is empty, or its rows have other shapes or types than `spec`.
    """

    def __init__(self, source: Source, spec: Any, *, seed: int, prefetch: int = 2, workers: int = 0):
        if len(source) < 1:
            raise UserError("the data set is empty: nothing to train on")
        if workers < 0:
            raise UserError(f"a stream cannot have {workers} workers: give 0 or more")
        _check_rows(source, spec)
        first = jax.tree.leaves(spec)[0]
        self._examples, self._batch, self.mesh = len(source), first.shape[0], first.sharding.mesh
        self._rows = Rows(source, self._batch, seed)
        self._position, self._ahead = 0, {}
        self._prefetch = max(prefetch, workers + 1 if workers else 0)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._workers = None
        if workers:  # not forked: this process has threads
            context = multiprocessing.get_context("spawn")
            self._workers = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(self._rows,))

    def next(self, state: TrainState | None = None) -> Any:
        for position in range(self._position, self._position + 1 + self._prefetch):
            if position not in self._ahead:
                self._ahead[position] = self._submit(position)
        batch = self._ahead.pop(self._position).result()
        self._position += 1
        return batch

    def reads(self, state: TrainState) -> None:
        return None

    def get_state(self) -> dict:
        return {"position": self._position, "examples": self._examples}

    def set_state(self, saved: dict) -> None:
        if saved["examples"] != self._examples:
            raise UserError(
                f"the data set has {self._examples} examples; the run began with {saved['examples']}: restore its data"
            )
        self._position = int(saved["position"])
        self._ahead.clear()

    def close(self) -> None:
        self._ahead.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)

    def report(self) -> dict[str, float]:
        return {}

    def _submit(self, position: int) -> Future:
        mine = my_rows(self._batch, self.mesh)
        if self._workers is None:
            return self._thread.submit(lambda: self._place(self._rows(position, mine)))
        rows = self._workers.submit(_work, position, mine)
        return self._thread.submit(lambda: self._place(rows.result()))

    def _place(self, rows: Any) -> Any:
        return place_rows(rows, self.mesh, self._batch)


class Rows:
    """(position, rows of the batch) -> their examples: a pure function, which workers have a copy of."""

    def __init__(self, source: Source, batch: int, seed: int):
        self._source, self._batch, self._seed = source, batch, seed
        self._order = grain.MapDataset.range(len(source)).shuffle(seed=seed).repeat()

    def __call__(self, position: int, mine: slice) -> Any:
        indices = np.array([self._order[position * self._batch + r] for r in range(mine.start, mine.stop)], np.int64)
        rng = np.random.Generator(np.random.Philox(key=self._seed, counter=[0, 0, 0, position]))
        return self._source.batch(indices, rng.integers(2**64, size=self._batch, dtype=np.uint64)[mine])


def _check_rows(source: Source, spec: Any) -> None:
    """Raise UserError unless an example of `source` is a row of `spec`."""
    row = source.batch(np.zeros(1, np.int64), np.zeros(1, np.uint64))
    there, here = (
        {path_name(p): (x.shape[1:], x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(t)} for t in (row, spec)
    )
    for name in sorted(set(there) | set(here)):
        if there.get(name) != here.get(name):
            raise UserError(
                f"the data have {_shown(there.get(name))} as {name or 'a row'}, the config asks for {_shown(here.get(name))}: "
                "use the config's own data, or change its sizes"
            )


def _shown(row: tuple | None) -> str:
    return "nothing" if row is None else f"{row[1]}{list(row[0])}"


_ROWS: Rows | None = None  # of a worker process


def _begin_worker(rows: Rows) -> None:
    """Keep the rows, leave signals and devices to the parent, and end with it."""
    global _ROWS
    _ROWS = rows
    jax.config.update("jax_platforms", "cpu")
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(position: int, mine: slice) -> Any:
    return _ROWS(position, mine)
