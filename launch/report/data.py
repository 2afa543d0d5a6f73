"""What a report shows, read from disk: runs, the tables and figures beside them.

A page takes less than a `training.runs.Run`: a workdir without its config, or one that waits for its first step. What counts as
damaged is decided where the files are read (training/files.py, training/metrics.py).
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training import files
from training.config import renamed
from training.errors import UserError
from training.metrics import read_rows
from training.runs import CONFIG, INFO, METRICS

RUN_FILES = (INFO, METRICS)
SKIPPED = frozenset({"media", "checkpoints", "checkpoint", "__pycache__"})


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric of one run: `steps` [n] int64, increasing; `values` [n, m] float64, one column per seed of a population."""

    steps: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Media:
    """The last picture, video or text of one name. `file` is relative to the workdir, as in metrics.jsonl; '' for a text."""

    step: int
    file: str
    text: str = ""


@dataclasses.dataclass(frozen=True)
class ShownRun:
    """A run as the report shows it. `label` names it among the runs of the page.

    `config` is flat ('optim.lr'), with today's names of the keys; `info` is run.json. Both are {} where the file is missing.
    `last_step` is that of the metrics, None where there are none yet.
    """

    path: Path
    label: str
    config: dict[str, Any]
    info: dict[str, Any]
    series: dict[str, Series]
    media: dict[str, Media]
    last_step: int | None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that a study has written (*.table.json); each row has one cell per column."""

    title: str
    caption: str
    columns: list[Any]
    rows: list[list[Any]]


@dataclasses.dataclass(frozen=True)
class Material:
    """All that one page shows. `folder` is the first one asked for; `figures` are the PNG files between the workdirs."""

    folder: Path
    runs: list[ShownRun]
    tables: list[Table]
    figures: list[Path]


def gather(folders: Sequence[Path]) -> Material:
    """Every run below `folders`, and the tables and figures in or between them.

    Raises:
      UserError: a folder is missing or holds nothing to show, or a file cannot be read.
    """
    workdirs: dict[Path, None] = {}
    between: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: give the workdir of a run, or a folder of workdirs")
        runs, others = find_workdirs(folder.resolve())
        tables = [path for place in (*runs, *others) for path in place.glob("*.table.json")]
        if not runs and not tables and not any(list(place.glob("*.png")) for place in others):
            raise UserError(f"{folder} holds no run (no {INFO}, {METRICS} or {CONFIG} at any depth): check the path")
        workdirs.update(dict.fromkeys(runs))
        between.update(dict.fromkeys(others))
    places = sorted({*workdirs, *between})
    return Material(
        folder=folders[0].resolve(),
        runs=[read_run(path, label) for path, label in zip(workdirs, labels(list(workdirs)), strict=True)],
        tables=[read_table(path) for place in places for path in sorted(place.glob("*.table.json"))],
        figures=[path for place in sorted(between) for path in sorted(place.glob("*.png"))],
    )


def find_workdirs(folder: Path) -> tuple[list[Path], list[Path]]:
    """(workdirs, other folders) below and including `folder`, sorted. The search does not go into a workdir.

    A folder with only a config.json is a run that waits for its first step; if runs lie below it, it is a sweep and no run.
    """
    workdirs, others = [], []
    for name, below, inside in os.walk(folder):
        path = Path(name)
        if any(file in inside for file in RUN_FILES):
            workdirs.append(path)
            below.clear()
            continue
        others.append(path)
        below[:] = sorted(entry for entry in below if not entry.startswith(".") and entry not in SKIPPED)
    waiting = [p for p in others if (p / CONFIG).is_file() and not any(w.is_relative_to(p) for w in workdirs)]
    return sorted(workdirs + waiting), [p for p in others if p not in waiting]


def labels(paths: Sequence[Path]) -> list[str]:
    """Names of workdirs: their paths below the deepest folder that holds them all; of a single one its own name."""
    if not paths:
        return []
    base = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(base).as_posix() for path in paths]


def read_run(path: Path, label: str) -> ShownRun:
    """The run in a workdir. Each of its files may be missing. Raises UserError for a damaged one."""
    series, media, last_step = read_metrics(path / METRICS)
    config = flatten(renamed(read_object(path / CONFIG)))
    return ShownRun(path, label, config, read_object(path / INFO), series, media, last_step)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is no file. Raises UserError for any other content."""
    return files.json_object(path, "restore it, or delete it to do without") if path.exists() else {}


def read_table(path: Path) -> Table:
    """The table in a *.table.json: {"title", "caption", "columns": [...], "rows": [[...], ...]}. Raises UserError."""
    value = read_object(path)
    columns, rows = value.get("columns"), value.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise UserError(f"{path} needs the lists 'columns' and 'rows'")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(columns):
            raise UserError(f"{path}: row {number} must be a list of {len(columns)} values, one per column")
    title = value.get("title") or path.name.removesuffix(".table.json")
    return Table(str(title), str(value.get("caption") or ""), columns, rows)


def read_metrics(path: Path) -> tuple[dict[str, Series], dict[str, Media], int | None]:
    """(series by name, last media by name, last step) of a metrics.jsonl. Of two rows with one step the later counts."""
    values: dict[str, dict[int, list[float]]] = {}
    media: dict[str, Media] = {}
    last_step = None
    for row in read_rows(path):
        step = int(row["step"])
        last_step = step if last_step is None else max(step, last_step)
        for name, value in row.items():
            if name in ("step", "seconds"):
                continue
            if isinstance(value, dict):
                file, text = value.get("image") or value.get("video") or "", value.get("text", "")
                known = isinstance(file, str) and isinstance(text, str) and (file or text)
                if known and (name not in media or media[name].step <= step):
                    media[name] = Media(step, file, text)
            elif (numbers := as_floats(value)) is not None:
                values.setdefault(name, {})[step] = numbers
    return {name: stack(points) for name, points in values.items()}, media, last_step


def as_floats(value: Any) -> list[float] | None:
    """A number, or the numbers of a population, as a list with NaN for null. None for anything else."""
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(entry is None or isinstance(entry, int | float) for entry in entries) or value is None:
        return None
    return [float("nan") if entry is None else float(entry) for entry in entries]


def stack(points: dict[int, list[float]]) -> Series:
    """The series of {step: one value per seed}, sorted by step. Shorter rows are padded with NaN."""
    width = max(len(row) for row in points.values())
    steps = sorted(points)
    values = np.full((len(steps), width), np.nan)
    for index, step in enumerate(steps):
        values[index, : len(points[step])] = points[step]
    return Series(np.array(steps, np.int64), values)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'optim': {'lr': 1}} -> {'optim.lr': 1}. An empty dict, which `training.config.flatten` drops, is kept to be shown."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
