"""Configs of SGI for tests, by short names."""

from ml_collections import ConfigDict

from tests import runs


def load(spec: str, **overrides: object) -> ConfigDict:
    """'pretrain:tiny' and checkpoint__every=1 -> configs/sgi/pretrain.py:tiny on one device, with that value."""
    path, variant = spec.split(":")
    return runs.load(f"configs/sgi/{path}.py:{variant}", **{"mesh__data": 1, **overrides})
