"""Data of the RLHF tasks. `open_task(config.data)` gives one `Task`, whatever its files look like."""

import functools
import inspect
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.tasks import arithmetic, gsm8k, imdb, qa, tldr
from rlhf_jax.tasks.base import Examples, Pairs, Task
from training.errors import UserError

__all__ = ["TASKS", "Examples", "Pairs", "Task", "defaults", "open_task"]

TASKS = {"imdb": imdb.load, "tldr": tldr.load, "qa": qa.load, "gsm8k": gsm8k.load, "arithmetic": arithmetic.load}


def defaults(task: str) -> dict[str, Any]:
    """What a config's data section may say of a task, with the values it has when it says nothing."""
    if task not in TASKS:
        raise UserError(f"no task {task!r}; there are {', '.join(TASKS)}")
    options = inspect.signature(TASKS[task]).parameters
    return {"task": task, "dir": "", **{k: p.default for k, p in options.items() if p.kind is p.KEYWORD_ONLY}}


def open_task(config_data: ConfigDict | Mapping[str, Any]) -> Task:
    """The task that `config.data` names. Keys that are no option of the task (see `defaults`) are left alone.

    The lists are shared between calls with equal options: do not change them.
    """
    known = defaults(config_data["task"])
    options = {name: config_data[name] for name in known if name in config_data and name not in ("task", "dir")}
    for name, value in options.items():
        if type(value) is not type(known[name]):
            raise UserError(f"config.data.{name} takes {type(known[name]).__name__}, not {value!r}")
    if options.get("limit", 0) < 0:
        raise UserError("config.data.limit must be 0 (all rows) or more")
    where = config_data.get("dir", "")
    return _open(known["task"], where, os.environ.get("QUINTET_DATA"), tuple(options.items()))


@functools.lru_cache(maxsize=4)  # a run opens its task for prompts, judges and evaluations
def _open(task: str, directory: str, root: str | None, options: tuple[tuple[str, Any], ...]) -> Task:
    if directory.partition(":")[0] == "tfds" and task != "imdb":
        raise UserError(f"tensorflow-datasets serves imdb only; give a folder as --config.data.dir for {task}")
    return TASKS[task](directory, **dict(options))
