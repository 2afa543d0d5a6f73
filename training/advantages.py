"""Advantages of on-policy learning, from rewards and values of N steps."""

import jax
import jax.numpy as jnp


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

    mask [..., N]: rewards and values elsewhere count as 0.
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
