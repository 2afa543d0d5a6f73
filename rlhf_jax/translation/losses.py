"""Losses of the translation game, over the tokens of a message (docs/rlhf.md; SILTranslationGame).

Legend: B rows, T tokens, V vocabulary; mask bool [B, T] is true at tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.translation.nets import present


class A2C(NamedTuple):
    """Terms of the loss, scalars: means over the tokens of a message, then over the rows."""

    policy: jax.Array
    value: jax.Array
    entropy: jax.Array


def token_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean [B] of x [B, T] over the tokens of each row; 0 for a row without tokens."""
    return jnp.where(mask, x, 0).sum(1) / jnp.maximum(mask.sum(1), 1)


def log_prob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Log-probability [...] of tokens int32 [...] under logits float32 [..., V]. The log-softmax is never stored."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, -1)


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy [...] in nats of softmax(logits [..., V])."""
    total = jax.nn.logsumexp(logits, -1)
    return total - (jax.nn.softmax(logits) * logits).sum(-1)


def divergence(logits: jax.Array, reference: jax.Array) -> jax.Array:
    """KL(softmax(logits) || softmax(reference)) [...] in nats, of logits and reference [..., V]."""
    difference = jax.nn.log_softmax(logits) - jax.nn.log_softmax(reference)
    return (jax.nn.softmax(logits) * difference).sum(-1)


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Mean of -log p over all tokens of the batch, a scalar; logits [B, T, V], target int32 [B, T]."""
    mask = present(target)
    return jnp.where(mask, -log_prob(logits, target), 0).sum() / jnp.maximum(mask.sum(), 1)


def normalise(reward: jax.Array) -> jax.Array:
    """Rewards [B] with mean 0 and standard deviation 1 over the batch (translation_game_drift's REINFORCE)."""
    return (reward - reward.mean()) / (reward.std() + 1e-8)


def returns(reward: jax.Array, penalty: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns [B, T]: the reward [B] minus the penalties [B, T] of a token and of those after it, undiscounted.

    With penalties beta log(pi / pi_0) the gradient of the policy loss is that of E[R] - beta KL(pi || pi_0) over messages.
    """
    later = jnp.cumsum(jnp.where(mask, penalty, 0)[:, ::-1], 1)[:, ::-1]
    return reward[:, None] - later


def a2c(log_probs: jax.Array, entropies: jax.Array, baseline: jax.Array, goal: jax.Array, mask: jax.Array) -> A2C:
    """Advantage actor-critic: means of -(G - b) log p, (G - b)^2 and entropy. All arguments are [B, T].

    `goal` G has no gradient, and in the first term `baseline` b has none either.
    """
    error = jax.lax.stop_gradient(goal) - baseline
    policy = -jax.lax.stop_gradient(error) * log_probs
    return A2C(*(token_mean(x, mask).mean() for x in (policy, error**2, entropies)))
