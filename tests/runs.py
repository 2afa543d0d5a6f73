"""Every config by its short name, and comparisons of states: for tests of all methods."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from training import config as configs

ROOT = Path(__file__).parents[1]
EXTRA = os.environ.get("QUINTET_CONFIGS")  # a folder of more configs, for tests/test_new_method.py
FOLDERS = [ROOT / "configs", *([Path(EXTRA)] if EXTRA else [])]


def load(spec, **overrides):
    """'configs/sgi/pretrain.py:tiny' and mesh__data=1 -> that config with that value."""
    return configs.load(path_of(spec), {k.replace("__", "."): str(v) for k, v in overrides.items()})


def path_of(spec):
    """The spec with its whole path, whichever of the folders it is in."""
    return str(next(f.parent for f in FOLDERS if (f.parent / spec.partition(":")[0]).is_file()) / spec)


def variants():
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*.py")):
            if path.name != "__init__.py":
                yield from (f"{path.relative_to(folder.parent)}:{v}" for v in configs.load_module(path).VARIANTS)


# 'pretrain:tiny' -> 'configs/sgi/pretrain.py:tiny', for every tiny variant of every config.
TINY = {f"{Path(s).stem}:{s.split(':')[1]}": s for s in variants() if s.split(":")[1].startswith("tiny")}
# The first tiny variant of each method, whose promises `make test` keeps; those of the other variants are for `make test-long`.
FIRST = set({load(spec).method: name for name, spec in reversed(TINY.items())}.values())
# Of these, the ones that share stream and step with another (supervised texts; the game's agents) are long to resume and shard.
RESUMED = FIRST - {"dpo:tiny", "reward_model:tiny", "translation:tiny_pretrain"}


def variants_of_methods(names, short=FIRST):
    """Pytest parameters: those that are not in `short` are marked as long."""
    return [pytest.param(name, marks=() if name in short else pytest.mark.long) for name in names]


def assert_equal(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=str(path))


def assert_close(a, b, tolerance=1e-5):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=str(path))
