"""Masks and score places on hand cases, masked statistics against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import masks
from training.errors import UserError

EOS, PAD = 7, 9
# drawn with EOS first, EOS last, no EOS, two EOS; the sampler pads after the first (test_sampling.py)
TRUNCATED = np.array([[7, 9, 9, 9], [1, 2, 3, 7], [1, 2, 3, 4], [1, 7, 9, 9]])


def test_response_masks():
    found = jax.tree.map(np.asarray, jax.jit(lambda x: masks.response_masks(x, PAD))(TRUNCATED))
    np.testing.assert_array_equal(found.seq_len, [0, 3, 3, 1])
    np.testing.assert_array_equal(found.mask.astype(int), [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(found.mask_p1.astype(int), [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    assert found.seq_len.dtype == np.int32


def test_empty_response():
    found = masks.response_masks(jnp.array([[PAD, PAD, PAD], [PAD, 1, 2]]), PAD)
    np.testing.assert_array_equal(found.seq_len, [-1, -1])
    assert not found.mask.any()
    np.testing.assert_array_equal(masks.score_index(found.seq_len, 3, "after"), [0, 0])
    np.testing.assert_array_equal(masks.score_index(found.seq_len, 3, "last"), [0, 0])


def test_score_index():
    seq_len = jnp.array([0, 3, 3, 1])
    np.testing.assert_array_equal(masks.score_index(seq_len, 4), [1, 3, 3, 2])
    np.testing.assert_array_equal(masks.score_index(seq_len, 4, "last"), [0, 3, 3, 1])
    with pytest.raises(UserError, match="'after' or 'last'"):
        masks.score_index(seq_len, 4, "first")


def test_missing_eos():
    ended = jnp.asarray((TRUNCATED == EOS).any(1))
    score = jnp.array([0.5, 1.5, 2.5, 3.5])
    np.testing.assert_array_equal(masks.eos_mode(score, ended, "replace", -1.0), [0.5, 1.5, -1.0, 3.5])
    np.testing.assert_array_equal(masks.eos_mode(score, ended, "subtract", 1.0), [0.5, 1.5, 1.5, 3.5])
    np.testing.assert_array_equal(masks.eos_mode(score, ended, "none", -1.0), score)
    with pytest.raises(UserError, match="unknown eos mode 'add'"):
        masks.eos_mode(score, ended, "add", 1.0)


def test_masked_mean_and_sum():
    x = np.array([[1.0, 2.0, np.nan], [4.0, np.inf, np.nan]])
    mask = np.array([[True, True, False], [True, False, False]])
    np.testing.assert_allclose(masks.masked_sum(x, mask), [3, 4])
    np.testing.assert_allclose(masks.masked_mean(x, mask), 7 / 3, rtol=1e-6)
    np.testing.assert_allclose(masks.masked_mean(x, mask, -1), [1.5, 4], rtol=1e-6)
    assert masks.masked_mean(x, np.zeros_like(mask)) == 0
    gradient = jax.grad(lambda x: masks.masked_mean(x, mask))(jnp.asarray(x))
    np.testing.assert_allclose(gradient, mask / 3, rtol=1e-6)
    # a mask of one column counts once for each column that it stands for
    np.testing.assert_allclose(masks.masked_mean(np.ones((2, 3)), np.array([[True], [False]])), 1)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_masked_whiten(shift_mean):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(2, 3, (5, 6)).astype(np.float32), rng.random((5, 6)) < 0.6
    kept = [float(x[i, j]) for i in range(5) for j in range(6) if mask[i, j]]
    mean = sum(kept) / len(kept)
    variance = sum((v - mean) ** 2 for v in kept) / (len(kept) - 1)
    expected = np.zeros_like(x)
    for i in range(5):
        for j in range(6):
            if mask[i, j]:
                expected[i, j] = (x[i, j] - mean) / np.sqrt(variance + 1e-8) + (0 if shift_mean else mean)
    x[~mask] = np.nan
    ours = jax.jit(lambda x: masks.masked_whiten(x, mask, shift_mean=shift_mean))(x)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_masked_whiten_of_equal_numbers():
    assert not np.asarray(masks.masked_whiten(jnp.full((2, 2), 3.0), jnp.ones((2, 2), bool))).any()
    assert not np.asarray(masks.masked_whiten(jnp.full((2, 2), 3.0), jnp.array([[True, False], [False, False]]))).any()


def test_whitening_is_global_over_devices():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = np.arange(16.0, dtype=np.float32).reshape(8, 2)
    sharded = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    ours = jax.jit(lambda x: masks.masked_whiten(x, x > 2))(sharded)
    np.testing.assert_allclose(ours, masks.masked_whiten(x, x > 2), rtol=1e-5)
