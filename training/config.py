"""Configs: python files with `get_config(variant)`, values only. Loading, overriding, saving, comparing."""

import contextlib
import difflib
import hashlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from ml_collections import ConfigDict

from training.errors import UserError

# What a resumed run may change without becoming another run.
MAY_CHANGE = ("steps", "log.", "checkpoint.", "runtime.", "mesh.", "workdir")
# Keys that had another name in earlier versions: saved configs and command lines may still use it.
RENAMED = {
    "init_from": "sources.init",
    "rl.value_from": "sources.value",
    "reward.run": "sources.reward",
    "gold.run": "sources.gold",
}


def base(method: str, **values: Any) -> ConfigDict:
    """The keys that every config has. A method's `get_config` adds its own sections and locks the result."""
    config = ConfigDict(
        {
            "method": method,
            "seed": 0,
            "population": 1,  # train this many seeds (seed, seed + 1, ...) in one program
            "steps": 1000,  # calls of Method.step
            "batch": 32,  # rows of the global batch
            "workdir": "",  # where the run lives; set by launch.train
            # Runs or folders that this one starts from, by the use that it makes of them; '{seed}' stands for the seed.
            "sources": {"init": ""},
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "min_shard": 2**16},
            "log": {"every": 100, "tensorboard": False},
            "checkpoint": {"every": 1000, "keep_last": 2, "keep_every": 0},  # 0 = never
            "runtime": {"ynn": False, "keep_memory": True},  # see runtime.py
        }
    )
    config.update(values)
    return config


def load(spec: str, overrides: dict[str, str] | None = None) -> ConfigDict:
    """'configs/sgi/pretrain.py:tiny' and {'optim.lr': '3e-4'} -> a locked config.

    Raises:
      UserError: no such file or variant, unknown key (with the nearest one), value of another type.
    """
    name, _, variant = spec.partition(":")
    module = load_module(Path(name))
    variants = getattr(module, "VARIANTS", None)
    if variant and variants is not None and variant not in variants:
        raise UserError(f"{name} has no variant {variant!r}; it has {', '.join(variants)}")
    config = module.get_config(variant) if variant else module.get_config()
    for key, text in (overrides or {}).items():
        set_value(config, key, text)
    return config.lock()


def load_module(path: Path) -> ModuleType:
    """A config file as a module. Config files are code of this project or of its user."""
    if not path.is_file():
        raise UserError(f"no config file {path}; a config is given as FILE.py or FILE.py:VARIANT")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no get_config(variant)")
    return module


def set_value(config: ConfigDict, key: str, text: str) -> None:
    """Set `a.b` from its text, which must read as a value of the type that is there."""
    key = RENAMED.get(key, key)
    flat = flatten(config)
    if key not in flat:
        near = difflib.get_close_matches(key, flat, n=1, cutoff=0.5)
        raise UserError(
            f"unknown config key {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; keys are {', '.join(flat)}")
        )
    section, _, leaf = key.rpartition(".")
    target = config[section] if section else config
    with target.unlocked():
        target[leaf] = _parse(key, text, flat[key])


def _parse(key: str, text: str, old: Any) -> Any:
    if isinstance(old, str):
        return text
    try:
        value = None if text == "None" else yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str) and isinstance(old, float | int) and not isinstance(old, bool):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML reads 1e-4 as a string
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, int) and not isinstance(old, bool) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    if old is not None and value is not None and type(value) is not type(old):
        raise UserError(f"config key {key!r} takes {type(old).__name__} (now {old!r}), not {text!r}")
    return value


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """{'optim.lr': 1e-4, ...}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_dict(config: ConfigDict) -> dict:
    """A plain dict that survives JSON unchanged."""
    return json.loads(config.to_json_best_effort())


def fingerprint(config: ConfigDict) -> int:
    """Hash for comparing hosts: every process must run the same config."""
    text = json.dumps(to_dict(config), sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def renamed(saved: dict) -> dict:
    """A saved config with today's names for the keys of `RENAMED`."""
    result = json.loads(json.dumps(saved))
    for old, new in RENAMED.items():
        section, _, leaf = old.rpartition(".")
        holder = result.get(section, {}) if section else result
        if isinstance(holder, dict) and leaf in holder:
            where, _, name = new.rpartition(".")
            result.setdefault(where, {})[name] = holder.pop(leaf)
    return result


def difference(saved: dict, config: ConfigDict) -> str | None:
    """How a run's saved config differs from `config` in keys that may not change, or None."""
    old, new = flatten(saved), flatten(to_dict(config))
    changed = [k for k in sorted(set(old) | set(new)) if old.get(k) != new.get(k) and not k.startswith(MAY_CHANGE)]
    if changed and not set(changed) & set(old):
        return f"of an earlier version, without {', '.join(changed[:4])}: it can be evaluated and started from, not resumed"
    shown = ", ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} here" for k in changed[:4])
    return shown + (", ..." if len(changed) > 4 else "") if changed else None


UNITS = re.compile(r"^batch = .+, step = .+$", re.MULTILINE)


def units(spec: str) -> str:
    """The line 'batch = ..., step = ...' of a config file's docstring: what a row and a step of its runs are."""
    line = UNITS.search(load_module(Path(spec.partition(":")[0])).__doc__ or "")
    return line[0] if line else ""
