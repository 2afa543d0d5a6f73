"""Rewards and advantages against loops over rows and tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import advantages
from rlhf_jax.algorithms.masks import response_masks
from training.errors import UserError

PAD = 9
TOKENS = np.array([[7, 9, 9, 9], [1, 2, 3, 7], [1, 2, 3, 4], [1, 7, 9, 9]])  # ends at 0, 3, never, 1
SCORE = np.array([10.0, 20.0, 30.0, 40.0], np.float32)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("place", "at"), [("after", [1, 3, 3, 2]), ("last", [0, 3, 3, 1])])
def test_token_rewards(place, at):
    logp, ref = draw(0, 4, 4), draw(1, 4, 4)
    expected = np.zeros((4, 4))
    for row, length in enumerate([1, 4, 4, 2]):
        for t in range(length):
            expected[row, t] = -0.05 * (logp[row, t] - ref[row, t])
        expected[row, at[row]] += SCORE[row]
    logp[0, 1:] = np.inf  # padding must not leak
    ours = jax.jit(lambda beta: advantages.token_rewards(SCORE, logp, ref, response_masks(TOKENS, PAD), beta, place))(0.05)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    # samples of prompts: [P, k, N]
    folded = advantages.token_rewards(
        SCORE.reshape(2, 2),
        logp.reshape(2, 2, 4),
        ref.reshape(2, 2, 4),
        response_masks(TOKENS.reshape(2, 2, 4), PAD),
        0.05,
        place,
    )
    np.testing.assert_allclose(folded.reshape(4, 4), expected, rtol=1e-5, atol=1e-6)


def test_sequence_rewards():
    logp, ref = draw(2, 4, 4), draw(3, 4, 4)
    masks = response_masks(TOKENS, PAD)
    expected = [SCORE[i] - 0.05 * sum(logp[i, t] - ref[i, t] for t in range(n)) for i, n in enumerate([1, 4, 4, 2])]
    ours = advantages.sequence_rewards(SCORE, logp, ref, masks.mask, 0.05)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    np.testing.assert_allclose(ours, advantages.token_rewards(SCORE, logp, ref, masks, 0.05).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("k", [2, 4])
def test_rloo(k):
    rewards = draw(10, 3, k)
    expected = np.empty_like(rewards)
    for p in range(3):
        for j in range(k):
            others = [rewards[p, i] for i in range(k) if i != j]
            expected[p, j] = rewards[p, j] - sum(others) / len(others)
    np.testing.assert_allclose(advantages.rloo(rewards), expected, rtol=1e-4, atol=1e-6)


def test_rloo_needs_two_samples():
    with pytest.raises(UserError, match="at least 2 samples"):
        advantages.rloo(jnp.ones((3, 1)))


def test_reinforce_baseline():
    np.testing.assert_allclose(advantages.reinforce(jnp.array([1.0, 2.0, 6.0])), [-2, -1, 3])
