"""A workdir as a thing. Who loads what a run has trained, or looks at what it did, asks a `Run`; nobody else reads workdirs.

config.json        the resolved config           run.json         what was run, where, how it ended
metrics.jsonl      rows of numbers               checkpoints/     states and positions of streams (checkpoint.py)
files/             what the weights depend on besides the config, with SHA-256 sums in files/digests.json
"""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from training import checkpoint, files, metrics
from training.config import difference, renamed
from training.errors import UserError

CONFIG, INFO, METRICS, FILES, DIGESTS = "config.json", "run.json", "metrics.jsonl", "files", "digests.json"

log = logging.getLogger(__name__)


def is_run(path: str | Path) -> bool:
    """Whether a folder is the workdir of a run."""
    return (Path(path) / CONFIG).is_file() and ((Path(path) / INFO).exists() or (Path(path) / "checkpoints").exists())


def find(folder: str | Path) -> list["Run"]:
    """Every run in `folder`, at any depth, in the order of their paths; also those that have not begun."""
    return [Run(path.parent) for path in sorted(Path(folder).rglob(CONFIG))]


class Run:
    """The run in a workdir, read when asked.

    Raises:
      UserError: there is no run, or what is asked for is missing or damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / CONFIG).is_file():
            raise UserError(f"no run in {path}: {self.path / CONFIG} is missing; train there first")

    @property
    def name(self) -> str:
        """The workdir's own name."""
        return self.path.name

    @functools.cached_property
    def saved(self) -> dict:
        """config.json with today's names of the keys."""
        return renamed(files.json_object(self.path / CONFIG, "restore it or take another run"))

    @property
    def config(self) -> ConfigDict:
        """The config, locked; its `workdir` is where the run lies now."""
        config = ConfigDict(self.saved)
        config.workdir = str(self.path)
        return config.lock()

    @functools.cached_property
    def info(self) -> dict:
        """run.json; {} where the run has not begun."""
        path = self.path / INFO
        return files.json_object(path, "restore it or take another run") if path.exists() else {}

    @property
    def status(self) -> str:
        """'done', 'stopped', 'preempted', 'running' or 'failed: ...'; 'unknown' where run.json does not say or is damaged."""
        try:
            return str(self.info.get("status", "unknown"))
        except UserError:
            return "unknown"

    @property
    def finished(self) -> bool:
        """Whether the run reached its last step."""
        return self.status == "done"

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, oldest first."""
        return checkpoint.Checkpoints(str(self.path)).steps()

    @functools.cached_property
    def step(self) -> int:
        """Step of the newest good checkpoint."""
        return checkpoint.newest(str(self.path))

    def rows(self) -> list[dict]:
        """The rows of metrics.jsonl."""
        return metrics.read_rows(self.path / METRICS)

    def arrays(self, step: int | None = None, only: Sequence[str] = ()) -> dict:
        """Arrays of a checkpoint, the newest good one by default; see `checkpoint.read_arrays`."""
        return checkpoint.read_arrays(str(self.path), step, only)

    def stream_state(self, step: int | None = None) -> dict:
        """What the stream's `get_state` returned at a checkpoint, the newest good one by default."""
        return checkpoint.read_stream(str(self.path), step)

    def has_file(self, name: str) -> bool:
        """Whether the run saved a file of this name. Runs of earlier versions have none."""
        return name in self._digests

    def file(self, name: str) -> bytes:
        """A file that the run saved beside its weights (`Method.files`), checked against its digest."""
        path = self.path / FILES / name
        if name not in self._digests:
            raise UserError(f"{self.path} has saved no {name}; it has {', '.join(self._digests) or 'nothing'}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; restore it") from None
        if _digest(content) != self._digests[name]:
            raise UserError(f"{path} is not what the run saved: restore it, or train again")
        return content

    @functools.cached_property
    def _digests(self) -> dict[str, str]:
        path = self.path / FILES / DIGESTS
        return files.json_object(path, "restore it, or train again") if path.exists() else {}

    def needs(self, *methods: str) -> "Run":
        """This run. Raises UserError unless it is one of these methods ('sgi.pretrain')."""
        if self.saved.get("method") not in methods:
            raise UserError(f"{self.path} is a run of {self.saved.get('method')}, not of {' or '.join(methods)}")
        return self

    def announce(self, there: str = "", here: str = "") -> None:
        """Log what a warm start takes, as 'weights of step 1 of 200,000 (stopped), Pong, from runs/x'.

        Warns where the run is unfinished, or its task (`there`: a game, a data set) is not the one at hand (`here`).
        """
        last = self.saved.get("steps", 0)
        task = f"{there}, " if there else ""
        log.info("weights of step %s of %s (%s), %sfrom %s", f"{self.step:,}", f"{last:,}", self.status, task, self.path)
        if self.step < last:
            log.warning("%s is unfinished: step %s of %s", self.path, f"{self.step:,}", f"{last:,}")
        if there != here:
            log.warning("%s was trained on %s, this run is on %s", self.path, there, here)


def save_files(workdir: str | Path, contents: Mapping[str, bytes]) -> None:
    """Write `Method.files` of a new run; of a run that has saved them before, check that they are the same.

    Raises:
      UserError: the run's own files say otherwise, so that its weights would be read with another tokeniser.
    """
    folder = Path(workdir) / FILES
    digests = {name: _digest(content) for name, content in contents.items()}
    if (folder / DIGESTS).exists():
        saved = files.json_object(folder / DIGESTS, "restore it, or choose another --workdir")
        if changed := [name for name in sorted(set(saved) | set(digests)) if saved.get(name) != digests.get(name)]:
            raise UserError(f"{changed[0]} is not what {workdir} began with: restore its data, or choose another --workdir")
        return
    if not contents:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        files.replace(folder / name, content)
    files.replace(folder / DIGESTS, json.dumps(digests, indent=1))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def other_run(config: ConfigDict, workdir: Path) -> str | None:
    """What is wrong when `workdir` holds a run with another config (the keys are named), or None."""
    if not (workdir / CONFIG).exists():
        started = (workdir / "checkpoints").exists()
        return f"{workdir} holds checkpoints but no {CONFIG}; choose another --workdir" if started else None
    try:
        changed = difference(Run(workdir).saved, config)
    except UserError as error:
        return str(error)
    return f"{workdir} holds another run ({changed}); choose another --workdir" if changed else None
