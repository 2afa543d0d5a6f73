"""Generalised advantage estimation against a loop over rows and steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.advantages import gae


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def slow_gae(rewards, values, gamma, lam):
    """The definition: sum over l of (gamma lam)^l delta_{t+l}."""
    n = rewards.shape[1]
    found = np.zeros_like(rewards)
    for row in range(len(rewards)):
        for t in range(n):
            for later in range(t, n):
                following = values[row, later + 1] if later + 1 < n else 0.0
                delta = rewards[row, later] + gamma * following - values[row, later]
                found[row, t] += (gamma * lam) ** (later - t) * delta
    return found


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.95), (0.9, 0.0)])
def test_gae(gamma, lam):
    rewards, values = draw(4, 3, 5).astype(float), draw(5, 3, 5).astype(float)
    ours, returns = jax.jit(gae)(rewards, values, gamma, lam)
    expected = slow_gae(rewards, values, gamma, lam)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns, expected + values, rtol=1e-4, atol=1e-5)


def test_gae_by_hand():
    """Gamma .5, lam .5: delta_1 = 4 - 2 = 2, delta_0 = 1 + 1 - 3 = -1, A_0 = -1 + .25 * 2."""
    ours, returns = gae(jnp.array([1.0, 4.0]), jnp.array([3.0, 2.0]), 0.5, 0.5)
    np.testing.assert_allclose(ours, [-0.5, 2.0])
    np.testing.assert_allclose(returns, [2.5, 4.0])


def test_gae_with_a_mask_is_that_of_the_short_row():
    rewards, values = draw(6, 1, 6), draw(7, 1, 6)
    mask = np.arange(6)[None] < 4
    ours, returns = jax.jit(gae)(rewards, values, 0.99, 0.95, mask)
    short, short_returns = gae(rewards[:, :4], values[:, :4], 0.99, 0.95)
    np.testing.assert_allclose(ours[:, :4], short, rtol=1e-6)
    np.testing.assert_allclose(returns[:, :4], short_returns, rtol=1e-6)
    assert not np.asarray(ours[:, 4:]).any() and not np.asarray(returns[:, 4:]).any()


def test_gae_over_more_axes():
    rewards, values = draw(8, 6, 5), draw(9, 6, 5)
    whole = jax.jit(lambda r, v: gae(r, v, 1.0, 0.95))
    folded, _ = whole(rewards.reshape(3, 2, 5), values.reshape(3, 2, 5))
    vmapped, _ = jax.jit(jax.vmap(whole))(rewards, values)
    np.testing.assert_allclose(folded.reshape(6, 5), vmapped, rtol=1e-5)
