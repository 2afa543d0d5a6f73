"""The loop. Every method trains here and nowhere else."""

import datetime
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from training import files, runs, runtime
from training.checkpoint import Checkpoints
from training.config import to_dict
from training.errors import UserError
from training.method import Method, Stream, TrainState
from training.metrics import Writer
from training.sharding import replicated, state_shardings, table

log = logging.getLogger(__name__)


def run(config: ConfigDict, method: Method, mesh: Mesh, workdir: str, *, stop_after: int | None = None) -> TrainState:
    """Train until `config.steps`: restore, loop, evaluate, save, stop.

    Args:
      config: resolved config; written to workdir/config.json.
      stop_after: save and leave after this step, without changing any schedule (for tests and for jobs with a time limit).

    Returns:
      The last state.

    Raises:
      UserError: bad input, damaged or unfitting checkpoints, non-finite loss.
    """
    if "://" in workdir:
        raise UserError(f"workdir {workdir} is a URL; give a folder on a file system that every host sees (mount the bucket)")
    if problem := runtime.first_process_says(lambda: runs.other_run(config, Path(workdir))):
        raise UserError(problem)
    with ExitStack() as cleanup:  # each step of it happens, whatever becomes of the others
        checkpoints = Checkpoints(
            workdir, keep_last=config.checkpoint.keep_last, keep_every=config.checkpoint.keep_every or None
        )
        cleanup.callback(checkpoints.close)
        target = abstract_state(config, method, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, target)
        log.info("state on mesh %s:\n%s", dict(mesh.shape), table(target, shardings))
        consts = method.consts()
        stream = method.stream(consts)
        cleanup.callback(stream.close)
        if problem := runtime.first_process_says(lambda: _problem_of_files(workdir, method)):
            raise UserError(problem)
        restored = checkpoints.restore(target)
        if restored is None:
            t, seconds, state = 0, 0.0, fresh_state(config, method, consts, shardings)
        else:
            t, state, seconds = restored.step, restored.state, restored.meta["seconds"]
            stream.set_state(restored.stream)
            log.info("resumed at step %d", t)
        record = Record(workdir, config, mesh, target)
        waiting = Waiting(stream)
        writer = Writer(
            workdir, every=config.log.every, last=config.steps, resume_step=t, seconds=seconds,
            tensorboard=config.log.tensorboard, facts=waiting.report,
        )  # fmt: skip
        cleanup.callback(writer.close)
        step = jax.jit(method.step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
        last = config.steps if stop_after is None else min(stop_after, config.steps)

        def save() -> None:
            writer.flush()  # a non-finite loss must not be saved
            checkpoints.save(t, state, stream.get_state(), {"config": to_dict(config), "seconds": writer.seconds})

        def due(every: int) -> bool:
            return bool(every) and t % every == 0

        saved = t if restored else None
        status = "done"
        try:
            with jax.set_mesh(mesh), preemption() as asked_to_stop:
                while t < last:
                    batch = waiting.next(state)  # may block: disk, environments, a generation
                    with record.call(step, state, batch, consts):
                        state, metrics = step(state, batch, consts)  # asynchronous; donates state
                    t += 1
                    writer.push(t, metrics)
                    if asked_to_stop(t) and t < config.steps:
                        status = "preempted"
                        break
                    for name, evaluation in method.evals.items():
                        if due(evaluation.every) or t == config.steps:
                            writer.flush()
                            writer.write(t, {f"{name}/{k}": v for k, v in evaluation.run(state, consts, t).items()})
                    if due(config.checkpoint.every):
                        save()
                        saved = t
                if status == "done" and t < config.steps:
                    status = "stopped"
                writer.flush()
                if saved != t:
                    save()
                checkpoints.close()  # still deaf to a second SIGTERM
        except BaseException as error:
            status = f"failed: {type(error).__name__}"
            raise
        finally:
            record.finish(status, t, writer.seconds)
    log.info("%s at step %d", status, t)
    return state


def abstract_state(config: ConfigDict, method: Method, mesh: Mesh) -> TrainState:
    """The state as ShapeDtypeStructs with shardings, without allocating anything."""
    shapes = jax.eval_shape(lambda: method.init(jnp.uint32(config.seed)))
    shardings = state_shardings(shapes, mesh, method.rules, config.mesh.min_shard)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def fresh_state(config: ConfigDict, method: Method, consts: Any, shardings: Any) -> TrainState:
    """The state at step 0, with the weights of the run's sources where it has some."""
    init = jax.jit(method.init, out_shardings=shardings, compiler_options=runtime.fast_compile())
    state = init(jnp.uint32(config.seed))
    if method.warm is None:
        return state
    return jax.tree.map(jax.device_put, method.warm(state, consts), shardings)


def _problem_of_files(workdir: str, method: Method) -> str | None:
    try:
        runs.save_files(workdir, method.files())
    except UserError as error:
        return str(error)
    return None


class Waiting:
    """A stream with a clock: how long the loop waited for its batches."""

    def __init__(self, stream: Stream):
        self._stream, self._seconds = stream, 0.0

    def next(self, state: TrainState) -> Any:
        begin = time.perf_counter()
        batch = self._stream.next(state)
        self._seconds += time.perf_counter() - begin
        return batch

    def report(self) -> dict[str, float]:
        """Seconds waited since the last call, and the stream's own numbers."""
        seconds, self._seconds = self._seconds, 0.0
        return {"time/data": round(seconds, 4), **self._stream.report()}


@contextmanager
def preemption() -> Iterator[Any]:
    """`asked_to_stop(step)` becomes true after SIGTERM or Ctrl-C; with several processes all of them agree on the step."""
    asked = []
    if jax.process_count() > 1:  # jax's own notifier holds SIGTERM and synchronises the processes
        yield multihost_utils.reached_preemption_sync_point
        return
    try:
        old = {s: signal.signal(s, lambda *_: asked.append(True)) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: the caller handles signals
        old = {}
    try:
        yield lambda step: bool(asked)
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


class Record:
    """workdir/config.json and workdir/run.json: what was run, where, how long."""

    def __init__(self, workdir: str, config: ConfigDict, mesh: Mesh, shapes: TrainState):
        self.path = Path(workdir) / runs.INFO
        self._main = jax.process_index() == 0
        self._facts = {
            "name": self.path.parent.name,
            "command": _command(),
            "started": _now(),
            "finished": None,
            "status": "running",
            "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(shapes.params)),
            "mesh": dict(mesh.shape),
            **runtime.describe(),
        }
        self._shapes = set()
        if self._main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _write(self.path.parent / runs.CONFIG, to_dict(config))
        self._write()

    @contextmanager
    def call(self, step: Any, state: Any, batch: Any, consts: Any) -> Iterator[None]:
        """Around each call of the step: the first with a new shape of batch compiles, which is timed and counted in FLOPs."""
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes in self._shapes:
            yield
            return
        self._shapes.add(shapes)
        begin = time.perf_counter()
        cost = step.lower(state, batch, consts).cost_analysis() or {}
        yield
        seconds = self._facts.get("compile_seconds", 0) + time.perf_counter() - begin
        self._facts |= {"compile_seconds": round(seconds, 2), "flops_per_step": cost.get("flops")}  # of the latest shape
        self._write()

    def finish(self, status: str, step: int, seconds: float) -> None:
        memory = runtime.peak_memory_bytes()
        self._facts |= {
            "status": status,
            "finished": _now(),
            "step": step,
            "seconds": round(seconds, 2),
            "memory_bytes": memory,
        }
        self._write()

    def _write(self) -> None:
        if not self._main:
            return
        _write(self.path, self._facts)


def _write(path: Path, value: dict) -> None:
    files.replace(path, json.dumps(value, indent=2, sort_keys=True))


def _command() -> list[str]:
    """The command line as a user would type it (python -m package.module ...)."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec else None
    return ["python", "-m", module, *sys.argv[1:]] if module else list(sys.argv)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
