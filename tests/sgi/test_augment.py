"""Random shift and intensity."""

import jax
import numpy as np

from sgi.nets.augment import augment, prepare

ROWS, COLUMNS = np.mgrid[:84, :84]
STACK = np.stack([ROWS, COLUMNS, ROWS + COLUMNS, 255 - ROWS], -1).astype(np.uint8)  # a pixel tells where it came from


def run(function, *args):
    return np.asarray(jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*args))


def augment_columns(seed, *lead, stack=STACK, **options):
    x = np.broadcast_to(stack, (*lead, *stack.shape))
    return run(lambda key, x: augment(key, x, **options), jax.random.key(seed), x)


def test_shift():
    """All nine offsets of both axes, replicated edges, one shift for the frames of a stack, others for other stacks."""
    y = (augment_columns(0, 150, intensity=0.0) * 255).round().astype(int)
    dy, dx = y[:, 40, 40, 0] - 40, y[:, 40, 40, 1] - 40
    assert set(dy) == set(dx) == set(range(-4, 5))
    assert len(set(zip(dy, dx, strict=True))) > 50  # of 81 pairs
    for i in range(150):
        rows, columns = np.clip(ROWS + dy[i], 0, 83), np.clip(COLUMNS + dx[i], 0, 83)
        np.testing.assert_array_equal(y[i], np.stack([rows, columns, rows + columns, 255 - rows], -1))


def test_intensity():
    """One factor for a stack, 1 + 0.05 clip(N, -2, 2), not clamped to [0, 1]."""
    stack = STACK[:4, :4]
    y = augment_columns(1, 400, stack=stack, shift=0)
    factors = y[:, 0, 0, 3] / (stack[0, 0, 3] / 255)
    np.testing.assert_allclose(y, factors[:, None, None, None] * (stack / 255), rtol=1e-5)
    assert y.max() > 1
    np.testing.assert_allclose([factors.min(), factors.max()], [0.9, 1.1], rtol=1e-5)  # about 2 % are clipped at each end
    np.testing.assert_allclose([factors.mean(), factors.std()], [1, 0.05 * 0.96], atol=0.006)


def test_shapes_and_draws():
    y = augment_columns(2, 2, 3)
    assert y.shape == (2, 3, 84, 84, 4) and y.dtype == np.float32
    assert len(np.unique(y.reshape(6, -1), axis=0)) == 6
    np.testing.assert_array_equal(y, augment_columns(2, 2, 3))
    np.testing.assert_array_equal(augment_columns(2, 1, shift=0, intensity=0.0)[0], run(prepare, STACK))
    np.testing.assert_allclose(run(prepare, STACK), STACK / 255, rtol=1e-6)
