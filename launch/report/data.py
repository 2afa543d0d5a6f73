"""What a report is made of, read from disk: run workdirs (config.json, run.json, metrics.jsonl, media/), tables and figures."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import UserError

RUN_FILES = ("run.json", "metrics.jsonl")
SKIPPED = frozenset({"media", "checkpoints", "checkpoint", "__pycache__"})


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric of one run: steps [n] int64, increasing; values [n, m] float64, one column per seed of a population."""

    steps: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Media:
    """The last picture, video or text of one name. `file` is relative to the workdir, as metrics.jsonl has it."""

    step: int
    file: str
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir. `config` is flat ('optim.lr'); `info` is run.json; `label` names the run among those of the report."""

    path: Path
    label: str
    config: dict[str, Any]
    info: dict[str, Any]
    series: dict[str, Series]
    media: dict[str, Media]
    last_step: int | None


@dataclasses.dataclass(frozen=True)
class Table:
    title: str
    caption: str
    columns: list[Any]
    rows: list[list[Any]]


@dataclasses.dataclass(frozen=True)
class Material:
    """All that one page shows. `folder` is the first folder asked for; `figures` are PNG files of group folders."""

    folder: Path
    runs: list[Run]
    tables: list[Table]
    figures: list[Path]


def gather(folders: Sequence[Path]) -> Material:
    """Read every run below `folders`, and the tables and figures that lie in or between them.

    Raises UserError for a missing folder, a folder that holds nothing to show, and a file that cannot be read.
    """
    workdirs: dict[Path, None] = {}
    between: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: give the workdir of a run, or a folder of workdirs")
        found, passed = find_workdirs(folder.resolve())
        tables = [path for place in (*found, *passed) for path in place.glob("*.table.json")]
        if not found and not tables and not any(list(place.glob("*.png")) for place in passed):
            raise UserError(f"{folder} holds no run (no run.json, metrics.jsonl or config.json at any depth): check the path")
        workdirs.update(dict.fromkeys(found))
        between.update(dict.fromkeys(passed))
    places = sorted({*workdirs, *between})
    return Material(
        folder=folders[0].resolve(),
        runs=[read_run(path, label) for path, label in zip(workdirs, labels(list(workdirs)), strict=True)],
        tables=[read_table(path) for place in places for path in sorted(place.glob("*.table.json"))],
        figures=[path for place in sorted(between) for path in sorted(place.glob("*.png"))],
    )


def find_workdirs(folder: Path) -> tuple[list[Path], list[Path]]:
    """(workdirs, other folders on the way) below and including `folder`, sorted. Inside a workdir nothing is searched.

    A folder with only config.json is a run that has not started, unless runs lie below it (then it is a sweep's own file).
    """
    workdirs, others = [], []
    for name, below, files in os.walk(folder):
        path = Path(name)
        if any(file in files for file in RUN_FILES):
            workdirs.append(path)
            below.clear()
            continue
        others.append(path)
        below[:] = sorted(entry for entry in below if not entry.startswith(".") and entry not in SKIPPED)
    waiting = [p for p in others if (p / "config.json").is_file() and not any(w.is_relative_to(p) for w in workdirs)]
    return sorted(workdirs + waiting), [p for p in others if p not in waiting]


def labels(paths: Sequence[Path]) -> list[str]:
    """Each path below the deepest folder that holds them all; the folder's own name for a single run."""
    if not paths:
        return []
    base = Path(os.path.commonpath([path.parent for path in paths]))
    return [path.relative_to(base).as_posix() for path in paths]


def read_run(path: Path, label: str) -> Run:
    """Read one workdir. Each file may be absent; one that is there must be sound, but for a torn last metrics line."""
    series, media, last_step = read_metrics(path / "metrics.jsonl")
    return Run(
        path, label, flatten(read_object(path / "config.json")), read_object(path / "run.json"), series, media, last_step
    )


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, {} when there is no file. Raises UserError when it is empty, torn or no object."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it, or delete it to do without") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def read_table(path: Path) -> Table:
    """A *.table.json: {"title", "caption", "columns": [...], "rows": [[...], ...]}."""
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
    """(series by name, last media by name, last step). Of rows with the same step the later one counts."""
    if not path.exists():
        return {}, {}, None
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl. The last line may be torn (the run was killed, or writes right now)."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")  # a line may be torn inside a character
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = []
    for number, line in lines:
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int | float) or not np.isfinite(row["step"]):
                raise ValueError("no object with a 'step'")
        except ValueError as error:
            if number == lines[-1][0]:
                break
            raise UserError(f"{path} line {number} is not a metrics row ({error}): delete that line") from None
        rows.append(row)
    return rows


def as_floats(value: Any) -> list[float] | None:
    """A number, or the numbers of a population, as a list; a null inside counts as NaN. None for anything else."""
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(entry is None or isinstance(entry, int | float) for entry in entries) or value is None:
        return None
    return [float("nan") if entry is None else float(entry) for entry in entries]


def stack(points: dict[int, list[float]]) -> Series:
    """Sort by step; rows of a shorter population are padded with NaN."""
    width = max(len(row) for row in points.values())
    steps = sorted(points)
    values = np.full((len(steps), width), np.nan)
    for index, step in enumerate(steps):
        values[index, : len(points[step])] = points[step]
    return Series(np.array(steps, np.int64), values)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'optim': {'lr': 1}} -> {'optim.lr': 1}. An empty dict stays as a value, so that it is seen."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return flat
