"""Rewards per token and per response, and the advantages made of them.

Legend: N response tokens, k samples of a prompt; leading axes (`...`) are free: [B, N], or [P, k, N] with P prompts.
Rewards and advantages are data: the losses stop their gradient.
"""

import jax
import jax.numpy as jnp

from rlhf_jax.masks import ResponseMasks, masked_sum, score_index
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


def gae(
    rewards: jax.Array,
    values: jax.Array,
    gamma: float | jax.Array,
    lam: float | jax.Array,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over the last axis: (advantages, returns), both [..., N].

        delta_t = r_t + gamma V_{t+1} - V_t        V after the last place is 0
        A_t = delta_t + gamma lam A_{t+1}          returns = A + V

    mask [..., N]: rewards and values elsewhere count as 0 (`ResponseMasks.mask_p1` is the reference code's).
    """
    if mask is not None:
        rewards, values = jnp.where(mask, rewards, 0), jnp.where(mask, values, 0)
    following = jnp.concatenate([values[..., 1:], jnp.zeros_like(values[..., :1])], -1)
    deltas = rewards + gamma * following - values

    def back(advantage, delta):
        advantage = delta + gamma * lam * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(back, jnp.zeros_like(deltas[..., 0]), jnp.moveaxis(deltas, -1, 0), reverse=True)
    advantages = jnp.moveaxis(advantages, 0, -1)
    return advantages, advantages + values


def rloo(rewards: jax.Array) -> jax.Array:
    """Each sample's reward less the mean of its prompt's k - 1 others, [..., k] -> [..., k] (Kool et al. 2019)."""
    k = rewards.shape[-1]
    if k < 2:
        raise UserError("RLOO compares the samples of one prompt: set at least 2 samples a prompt")
    return rewards - (rewards.sum(-1, keepdims=True) - rewards) / (k - 1)


def reinforce(rewards: jax.Array) -> jax.Array:
    """Rewards less the mean of all of them."""
    return rewards - rewards.mean()
