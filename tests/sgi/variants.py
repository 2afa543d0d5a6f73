"""Configs of SGI for tests, by short names."""

from pathlib import Path

from ml_collections import ConfigDict

from training import config as configs

ROOT = Path(__file__).parents[2]


def load(spec: str, **overrides: object) -> ConfigDict:
    """'pretrain:tiny' and checkpoint__every=1 -> configs/sgi/pretrain.py:tiny on one device, with that value."""
    path, variant = spec.split(":")
    text = {k.replace("__", "."): str(v) for k, v in {"mesh__data": 1, **overrides}.items()}
    return configs.load(f"{ROOT}/configs/sgi/{path}.py:{variant}", text)
