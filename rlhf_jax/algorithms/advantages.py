"""Rewards per token and per response, and advantages of whole responses (`training.advantages` has those of steps).

Legend: N response tokens, k samples of a prompt; leading axes (`...`) are free: [B, N], or [P, k, N] with P prompts.
Rewards and advantages are data: the losses stop their gradient.
"""

import jax
import jax.numpy as jnp

from rlhf_jax.algorithms.masks import ResponseMasks, masked_sum, score_index
from training.errors import UserError


def token_rewards(
    score: jax.Array,
    logp: jax.Array,
    ref_logp: jax.Array,
    masks: ResponseMasks,
    beta: float | jax.Array,
    place: str = "after",
) -> jax.Array:
    """r_t = -beta (logp_t - ref_t) on the real tokens, plus the score at `masks.score_index(seq_len, N, place)`.

    score [...]; logp (at collection) and ref_logp [..., N] -> [..., N]. Ziegler et al. 2019, eq. 2, token by token.
    """
    length = logp.shape[-1]
    paid = jnp.arange(length) == score_index(masks.seq_len, length, place)[..., None]
    return jnp.where(masks.mask, -beta * (logp - ref_logp), 0) + paid * score[..., None]


def sequence_rewards(
    score: jax.Array, logp: jax.Array, ref_logp: jax.Array, mask: jax.Array, beta: float | jax.Array
) -> jax.Array:
    """R = score - beta sum_t (logp_t - ref_t) over the real tokens; score [...], the others [..., N] -> [...]."""
    return score - beta * masked_sum(logp - ref_logp, mask)


def rloo(rewards: jax.Array) -> jax.Array:
    """Each sample's reward less the mean of its prompt's k - 1 others, [..., k] -> [..., k] (Kool et al. 2019)."""
    k = rewards.shape[-1]
    if k < 2:
        raise UserError("RLOO compares the samples of one prompt: set at least 2 samples a prompt")
    return rewards - (rewards.sum(-1, keepdims=True) - rewards) / (k - 1)


def reinforce(rewards: jax.Array) -> jax.Array:
    """Rewards less the mean of all of them."""
    return rewards - rewards.mean()
