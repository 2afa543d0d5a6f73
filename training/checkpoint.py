"""Checkpoints: orbax for the arrays, our own digests against silent damage, our own fall-back to the last good step.

    workdir/checkpoints/<step>/{state,stream,meta}     written atomically by orbax: a killed save leaves only a draft
    workdir/digests/<step>.json                        SHA-256 of the files above (orbax keeps no checksums)
    workdir/damaged/<step>                             checkpoints that failed the check, moved out of the way

A checkpoint is verified before anything is read from it. One that was committed but not yet digested when the process died is
accepted if it can be read.
"""

import base64
import contextlib
import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from training import files, runtime
from training.errors import UserError
from training.sharding import path_name

log = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint as read: its step, the state on the mesh, the stream's position, and what `save` was told."""

    step: int
    state: Any
    stream: dict
    meta: dict


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      workdir: local path; made absolute.
      keep_last: how many newest checkpoints stay.
      keep_every: also keep each checkpoint whose step is a multiple of this.
    """

    def __init__(self, workdir: str, *, keep_last: int = 2, keep_every: int | None = None):
        self.root = epath.Path(workdir).resolve()
        self.directory = self.root / "checkpoints"
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last, keep_period=keep_every, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._manager: ocp.CheckpointManager | None = None
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="digest")
        self._written: threading.Event | None = None  # of the running save
        self._digest_job: Future | None = None

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        if not self.directory.exists():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def save(self, step: int, state: Any, stream: dict, meta: dict) -> None:
        """Start writing; returns once the device arrays are copied. The previous save is finished and digested first."""
        if self._manager is None:
            self._manager = ocp.CheckpointManager(self.directory, options=self._options)
        self._finish()
        meta = {**meta, "arrays": _signature(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), stream=ocp.args.JsonSave(_encode(stream)), meta=ocp.args.JsonSave(meta)
            ),
        )
        self._written = threading.Event()
        if jax.process_index() == 0:
            self._digest_job = self._hasher.submit(self._write_digest, step, self._written)

    def close(self) -> None:
        """Wait until everything is on disk and digested. May be called again."""
        self._finish()
        self._hasher.shutdown()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def restore(self, target: Any, step: int | None = None, *, set_aside: bool = True) -> Restored | None:
        """The newest good checkpoint (or `step`), or None where there is none.

        Args:
          target: pytree of ShapeDtypeStruct with shardings: the mesh may differ from the one that saved.
          set_aside: move damaged checkpoints out of the way.

        Raises:
          UserError: the arrays differ from `target`'s, or every checkpoint is damaged.
        """
        steps = [step] if step is not None else self.steps()[::-1]
        if step is not None and step not in self.steps():
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are {self.steps()}")
        for candidate in steps:
            problem = runtime.first_process_says(lambda candidate=candidate: self._problem(candidate))
            if problem is None:
                meta = self._read_json(candidate, "meta")
                _check_signature(meta["arrays"], _signature(target), f"checkpoint {self.directory / str(candidate)}")
                state, problem = self._restore_state(candidate, target)
            if problem is None:
                return Restored(candidate, state, _decode(self._read_json(candidate, "stream")), meta)
            log.warning("checkpoint %d is damaged: %s", candidate, problem)
            if set_aside:
                self._set_aside(candidate)
        if steps:
            raise UserError(f"no good checkpoint among {steps} in {self.directory}: all are damaged; start in a new workdir")
        return None

    def _restore_state(self, step: int, target: Any) -> tuple[Any, str | None]:
        """(arrays, None), or (None, what is wrong) on every process if any of them cannot read its part."""
        state, problem = None, None
        try:
            with contextlib.closing(ocp.StandardCheckpointer()) as reader:
                state = reader.restore(self.directory / str(step) / "state", target)
        except (OSError, ValueError, KeyError) as error:  # what orbax and tensorstore raise for missing or broken files
            problem = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if jax.process_count() > 1:
            failed = multihost_utils.process_allgather(np.int32(problem is not None))
            problem = problem or ("another process cannot read it" if failed.any() else None)
        return state, problem

    def _read_json(self, step: int, item: str) -> dict:
        return json.loads((self.directory / str(step) / item / "metadata").read_text())

    def _finish(self) -> None:
        """Wait for the running save and its digest."""
        if self._written is None:
            return
        try:
            self._manager.wait_until_finished()
        finally:
            self._written.set()
            self._written = None
        if self._digest_job is not None:
            self._digest_job.result()

    def _digest_file(self, step: int) -> epath.Path:
        return self.root / "digests" / f"{step}.json"

    def _write_digest(self, step: int, written: threading.Event) -> None:
        """As soon as the save is committed: its folder appears by a rename."""
        folder = self.directory / str(step)
        while not folder.exists() and not written.wait(0.02):
            pass
        with contextlib.suppress(FileNotFoundError):  # keep_last may remove the step while it is read
            digest = _digest(folder)
            if not folder.exists():
                return
            target = self._digest_file(step)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.replace(target, json.dumps(digest))
        for old in self._digest_file(step).parent.glob("*.json"):
            if int(old.stem) not in (kept := self.steps()) and (not kept or int(old.stem) < max(kept)):
                old.unlink(missing_ok=True)

    def _problem(self, step: int) -> str | None:
        """What is wrong with a checkpoint, or None."""
        folder, digest_file = self.directory / str(step), self._digest_file(step)
        try:
            for item in ("meta", "stream"):
                self._read_json(step, item)
            if digest_file.exists():
                expected, found = json.loads(digest_file.read_text()), _digest(folder)
                wrong = sorted(set(expected.items()) ^ set(found.items()))
                return f"{wrong[0][0]} is missing or changed" if wrong else None
            return None if (folder / "state" / "_METADATA").exists() else "state/_METADATA is missing"
        except (OSError, ValueError, KeyError) as error:
            return f"{type(error).__name__}: {error}"

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            target = self.root / "damaged" / str(step)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rmtree()
            (self.directory / str(step)).rename(target)
            self._digest_file(step).unlink(missing_ok=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged {step}")


def _digest(folder: epath.Path) -> dict[str, str]:
    """Relative file name -> SHA-256."""
    result = {}
    for path in folder.iterdir():
        if path.is_dir():
            result |= {f"{path.name}/{name}": digest for name, digest in _digest(path).items()}
        else:
            with path.open("rb") as file:
                result[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def _signature(tree: Any) -> dict[str, list]:
    """Path -> [shape, dtype] of every array."""
    return {path_name(path): [list(x.shape), str(x.dtype)] for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _check_signature(saved: dict, wanted: dict, where: str) -> None:
    for name in sorted(set(saved) | set(wanted)):
        if saved.get(name) != wanted.get(name):
            had, want = saved.get(name, "nothing"), wanted.get(name, "nothing")
            raise UserError(
                f"{where} does not fit this config: {name} is {had} there and {want} here; use its own config or a new workdir"
            )


def _encode(value: Any) -> Any:
    """Numpy arrays as JSON: {'dtype', 'shape', 'base64'}."""
    if isinstance(value, dict):
        return {k: _encode(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": value.dtype.str, "shape": list(value.shape), "base64": data}
    return value.item() if isinstance(value, np.generic) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"dtype", "shape", "base64"}:
        flat = np.frombuffer(base64.b64decode(value["base64"]), np.dtype(value["dtype"]))
        return flat.reshape(value["shape"]).copy()
    if isinstance(value, dict):
        return {k: _decode(v) for k, v in value.items()}
    return [_decode(v) for v in value] if isinstance(value, list) else value


def read_arrays(workdir: str, step: int | None = None, only: Sequence[str] = ()) -> dict:
    """The newest good checkpoint's arrays (or those of `step`) as nested dicts of numpy: no network or mesh is needed.

    Args:
      only: the branches to read, as 'params' or 'extra/stats'; none: all. One that is not there is left out.

    Raises:
      UserError: no checkpoint there, or every one is damaged.
    """
    checkpoints = Checkpoints(workdir)
    if step is not None and step not in checkpoints.steps():
        raise UserError(f"no checkpoint of step {step} in {checkpoints.directory}; there are {checkpoints.steps()}")
    for candidate in checkpoints.steps()[::-1] if step is None else [step]:
        path = checkpoints.directory / str(candidate) / "state"
        if checkpoints._problem(candidate) is None:
            with contextlib.suppress(OSError, ValueError, KeyError), contextlib.closing(ocp.PyTreeCheckpointer()) as reader:
                tree = reader.metadata(path).item_metadata.tree
                if only:
                    flat = traverse_util.flatten_dict(tree, keep_empty_nodes=True, sep="/")
                    wanted = {n: x for n, x in flat.items() if any(f"{n}/".startswith(f"{branch}/") for branch in only)}
                    if not wanted:
                        return {}
                    tree = traverse_util.unflatten_dict(wanted, sep="/")
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
                return reader.restore(path, ocp.args.PyTreeRestore(tree, as_numpy, partial_restore=True))
    if step is not None:
        raise UserError(
            f"checkpoint {step} in {checkpoints.directory} is damaged; leave out the step to take the newest good one"
        )
    raise UserError(f"no good checkpoint in {checkpoints.directory}; train there first")


def read_stream(workdir: str, step: int | None = None) -> dict:
    """What the stream's `get_state` returned at the newest good checkpoint, or at `step`. Errors as of `read_arrays`."""
    checkpoints = Checkpoints(workdir)
    return _decode(checkpoints._read_json(newest(workdir) if step is None else step, "stream"))


def newest(workdir: str) -> int:
    """The step of the newest good checkpoint. Raises UserError where there is none."""
    checkpoints = Checkpoints(workdir)
    for step in checkpoints.steps()[::-1]:
        if checkpoints._problem(step) is None:
            return step
    raise UserError(f"no good checkpoint in {checkpoints.directory}; train there first")
