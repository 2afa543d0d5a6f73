"""Every config by its short name, and comparisons of states: for tests of all methods."""

from pathlib import Path

import jax
import numpy as np

from training import config as configs

ROOT = Path(__file__).parents[1]


def load(spec, **overrides):
    """'configs/sgi/pretrain.py:tiny' and mesh__data=1 -> that config with that value."""
    return configs.load(str(ROOT / spec), {k.replace("__", "."): str(v) for k, v in overrides.items()})


def variants():
    for path in sorted((ROOT / "configs").rglob("*.py")):
        if path.name != "__init__.py":
            yield from (f"{path.relative_to(ROOT)}:{v}" for v in configs.load_module(path).VARIANTS)


# 'pretrain:tiny' -> 'configs/sgi/pretrain.py:tiny', for every tiny variant of every config.
TINY = {f"{Path(s).stem}:{s.split(':')[1]}": s for s in variants() if s.split(":")[1].startswith("tiny")}


def assert_equal(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=str(path))


def assert_close(a, b, tolerance=1e-5):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=str(path))
