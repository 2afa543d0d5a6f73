"""Losses of the translation game, over the tokens of a message (docs/rlhf.md; SILTranslationGame).

Legend: B rows, T tokens, V vocabulary; mask bool [B, T] is true at tokens. What a function treats as a constant, it says.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.translation.nets import present


class A2C(NamedTuple):
    """Scalars, each a mean over the tokens of a message and then over the rows."""

    policy: jax.Array
    value: jax.Array
    entropy: jax.Array


def token_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the tokens of each row: [B, T] -> [B]; 0 for a row without any."""
    return jnp.where(mask, x, 0).sum(1) / jnp.maximum(mask.sum(1), 1)


def log_prob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """log p(token): logits float32 [..., V], tokens int32 [...] -> [...]. The log-softmax is never stored."""
    picked = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    return picked - jax.nn.logsumexp(logits, -1)


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy in nats of softmax(logits): [..., V] -> [...]."""
    total = jax.nn.logsumexp(logits, -1)
    return total - (jax.nn.softmax(logits) * logits).sum(-1)


def divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
    """KL(softmax(logits) || softmax(others)) in nats: [..., V] -> [...]."""
    difference = jax.nn.log_softmax(logits) - jax.nn.log_softmax(others)
    return (jax.nn.softmax(logits) * difference).sum(-1)


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-log p of each target token, averaged over all tokens of the batch: [B, T, V], int32 [B, T] -> scalar."""
    mask = present(target)
    return jnp.where(mask, -log_prob(logits, target), 0).sum() / jnp.maximum(mask.sum(), 1)


def normalise(reward: jax.Array) -> jax.Array:
    """Rewards [B] with mean 0 and standard deviation 1 over the batch (translation_game_drift's REINFORCE)."""
    return (reward - reward.mean()) / (reward.std() + 1e-8)


def returns(reward: jax.Array, penalty: jax.Array, mask: jax.Array) -> jax.Array:
    """R minus the penalties of this token and of those after it, undiscounted: [B], [B, T], [B, T] -> [B, T].

    With penalties beta log(pi / pi_0) the gradient of the policy loss is that of E[R] - beta KL(pi || pi_0) over messages.
    """
    later = jnp.cumsum(jnp.where(mask, penalty, 0)[:, ::-1], 1)[:, ::-1]
    return reward[:, None] - later


def a2c(log_probs: jax.Array, entropies: jax.Array, baseline: jax.Array, goal: jax.Array, mask: jax.Array) -> A2C:
    """Advantage actor-critic: -(G - b) log p, (G - b)^2 and entropy, all [B, T]. G is a constant, and so is b in the first."""
    error = jax.lax.stop_gradient(goal) - baseline
    policy = -jax.lax.stop_gradient(error) * log_probs
    return A2C(*(token_mean(x, mask).mean() for x in (policy, error**2, entropies)))
