"""Where numbers go: metrics.jsonl (the record), a terminal line, TensorBoard if it is installed and asked for."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image as PILImage

from training import files
from training.errors import UserError


class Image(NamedTuple):
    """An Eval's picture. pixels: uint8 [H, W] or [H, W, 3]."""

    pixels: np.ndarray


class Video(NamedTuple):
    """An Eval's video, saved as an animated GIF. frames: uint8 [T, H, W] or [T, H, W, 3]; fps: frames a second."""

    frames: np.ndarray
    fps: float = 15.0


class Text(NamedTuple):
    """An Eval's sample of text, such as continuations of a few prompts; the report shows it line by line."""

    text: str


class NonFiniteLoss(UserError):
    """The loss, or the norm of its gradient, became NaN or infinite."""


class Writer:
    """Writes the rows of one run. Only process 0 writes; all processes check the loss.

    `push` holds a step's metrics back until the next `push`, and fetches only then, so that Python is never more than one step
    ahead of the device and never waits for the step that it has just dispatched.

    Args:
      workdir: folder of metrics.jsonl and media/.
      every: log every so many steps.
      last: the final step, for the progress bar.
      resume_step: rows past this step (of a run that was killed later) are dropped; None keeps all.
      seconds: training time of earlier sittings.
      facts: asked for more numbers whenever a row of a step is written.
    """

    def __init__(
        self,
        workdir: str,
        *,
        every: int,
        last: int,
        resume_step: int | None = 0,
        seconds: float = 0.0,
        tensorboard: bool = False,
        facts: Callable[[], dict[str, float]] = dict,
    ):
        self.workdir, self.every, self.last, self._facts = Path(workdir), every, last, facts
        self._before, self._start = seconds, time.perf_counter()
        self._held: tuple[int, dict] | None = None
        self._rate_mark = (resume_step or 0, time.perf_counter())
        self._main = jax.process_index() == 0
        self._file = self._bar = self._board = None
        if not self._main:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        path = self.workdir / "metrics.jsonl"
        if resume_step is not None:
            _drop_rows_after(path, resume_step)
        self._file = path.open("a")
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=last, initial=resume_step or 0, dynamic_ncols=True)
        if tensorboard:
            self._board = _tensorboard(self.workdir / "tensorboard")

    @property
    def seconds(self) -> float:
        """Training time so far, over all sittings."""
        return self._before + time.perf_counter() - self._start

    def push(self, step: int, metrics: dict[str, Any]) -> None:
        """Take the metrics of `step` (still on the device) and handle those of the step before."""
        self.flush()
        self._held = (step, metrics)

    def flush(self) -> None:
        """Handle what is held back: raise NonFiniteLoss, write a row if one is due."""
        if self._held is None:
            return
        step, metrics = self._held
        self._held = None
        watched = {k: np.asarray(jax.device_get(metrics[k])) for k in ("loss", "grad_norm") if k in metrics}
        bad = [name for name, value in watched.items() if not np.all(np.isfinite(value))]
        if bad or step % self.every == 0 or step == self.last or step == 1:
            row = {f"train/{name}": _plain(value) for name, value in jax.device_get(metrics).items()}
            self.write(step, {**row, **self._rate(step), **self._facts()})
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
        if bad:
            raise NonFiniteLoss(
                f"{bad[0]} is {watched[bad[0]].tolist()} at step {step}: training stopped. "
                "The last checkpoint is good; try a lower learning rate or clipping"
            )

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one row now. Values: numbers, lists of numbers (one per seed), Image, Video, Text."""
        if not self._main:
            return
        row = {"step": step, "seconds": round(self.seconds, 3)}
        row |= {name: self._media(name, step, value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)
        line = "  ".join(f"{k.removeprefix('train/')} {_show(v)}" for k, v in row.items() if k not in ("step", "seconds"))
        text = f"step {step:>7}/{self.last}  {line}"
        self._bar.write(text) if self._bar is not None else print(text, flush=True)

    def close(self) -> None:
        for thing in (self._file, self._bar, self._board):
            if thing is not None:
                thing.close()

    def _rate(self, step: int) -> dict[str, float]:
        then, since = self._rate_mark
        now = time.perf_counter()
        self._rate_mark = (step, now)
        return {"time/steps_per_second": round((step - then) / (now - since), 4)} if step > then else {}

    def _media(self, name: str, step: int, value: Any) -> Any:
        if isinstance(value, Text):
            return {"text": value.text}
        if not isinstance(value, Image | Video):
            return _plain(value)
        folder = self.workdir / "media"
        folder.mkdir(exist_ok=True)
        stem = f"{name.replace('/', '_')}_{step:08d}"
        if isinstance(value, Image):
            PILImage.fromarray(value.pixels).save(folder / f"{stem}.png")
            return {"image": f"media/{stem}.png"}
        frames = [PILImage.fromarray(f) for f in value.frames]
        frames[0].save(
            folder / f"{stem}.gif", save_all=True, append_images=frames[1:], duration=1000 / value.fps, loop=0, optimize=True
        )
        return {"video": f"media/{stem}.gif"}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, [] where there is none.

    The last line may be torn: the run was killed in it, or is writing it. Raises UserError for any other that is not a row.
    """
    if not path.exists():
        return []
    try:
        lines = _lines(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    rows = []
    for number, line in lines:
        try:
            rows.append(_row(line))
        except ValueError as error:
            if number == lines[-1][0]:
                break
            raise UserError(f"{path} line {number} is not a metrics row ({error}): delete that line") from None
    return rows


def _lines(path: Path) -> list[tuple[int, str]]:
    text = path.read_bytes().decode("utf-8", errors="replace")  # a line may be torn inside a character
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _row(line: str) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int | float) or not np.isfinite(row["step"]):
        raise ValueError("no object with a 'step'")
    return row


def _drop_rows_after(path: Path, step: int) -> None:
    """Keep the rows up to a step. A line that is none is dropped: a log must not stop a run from going on."""
    if not path.exists():
        return
    kept = []
    for _, line in _lines(path):
        with contextlib.suppress(ValueError):
            row = _row(line)
            kept += [json.dumps(row) + "\n"] if row["step"] <= step else []
    files.replace(path, "".join(kept))


def _plain(value: Any) -> Any:
    """Arrays as numbers or lists of numbers."""
    return np.asarray(value).tolist() if isinstance(value, np.ndarray | np.generic | jax.Array) else value


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(_show(v) for v in value) + "]"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return str(value) if not isinstance(value, dict) else next(iter(value.values())).partition("\n")[0][:60]


def _tensorboard(folder: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise UserError(
            "config.log.tensorboard needs the package tensorboardX: pip install tensorboardX, or set it to False"
        ) from error
    return SummaryWriter(str(folder))
