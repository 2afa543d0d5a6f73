"""Losses of SGI and of the C51 learner, as pure functions of network outputs. All in fp32, one value per sample.

Legend: B batch, K rollout steps, D flattened latent, P projection, A actions, N atoms of the return distribution.
Equations: Schwarzer et al. 2021, section 3 (S, G, I); Bellemare et al. 2017 (C51); van Hasselt et al. 2016 (double DQN);
Schaul et al. 2016 (priorities). `quirks=True` repeats what the reference code does where it departs from its paper.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from sgi.nets.layers import at_least_fp32, minmax

NORM_FLOOR = 1e-3
PROBABILITY_FLOOR = 1e-6


def normalise(x, floor: float = NORM_FLOOR):
    """Unit vectors x / max(|x|, floor), x [..., D]; unlike `x / jnp.linalg.norm(x)`, with a finite gradient at 0."""
    x = at_least_fp32(x)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), floor**2))


def squared_distance(x, y):
    """Squared distance |x/|x| - y/|y||^2 = 2 - 2 cos(x, y), x and y [..., D] -> [...]."""
    return jnp.square(normalise(x) - normalise(y)).sum(-1)


def spr_loss(prediction, target):
    """Self-prediction: l = 2 - 2 cos(prediction, target), both [..., P] -> [...]. No gradient reaches the target.

    The published weight lambda on a sum over K of -cos is the weight lambda * K / 2 on the mean over K of this.
    """
    return squared_distance(prediction, stop_gradient(target))


def inverse_loss(logits, action):
    """Cross-entropy -log softmax(logits)[action], logits [..., A], action int [...] -> [...].

    Also the behaviour-cloning loss, on expected values or on the logits of the linear head.
    """
    log_probs = jax.nn.log_softmax(at_least_fp32(logits))
    return -jnp.take_along_axis(log_probs, action[..., None], -1)[..., 0]


def goal_distance(z, goal, temperature: float = 5.0, distance: str = "exp"):
    """Distance 1 - exp(-t |z/|z| - g/|g||^2) ('exp'), or its exponent ('squared'); z and goal [..., D] -> [...]."""
    scaled = temperature * squared_distance(z, goal)
    return {"exp": lambda: 1 - jnp.exp(-scaled), "squared": lambda: scaled}[distance]()


def goal_reward(
    z0,
    z1,
    goal,
    mask,
    discount: float,
    scale: float = 10.0,
    temperature: float = 5.0,
    distance: str = "exp",
    quirks: bool = False,
):
    """Reward of the step z0 -> z1 towards a goal: r = scale * mask * (d(z0, g) - d(z1, g)), latents [..., D] -> [...].

    mask [...] is 0 where z1 belongs to another episode. With quirks, r is also multiplied by the discount.
    """
    d0, d1 = (goal_distance(z, goal, temperature, distance) for z in (z0, z1))
    return scale * mask * (d0 - d1) * (discount if quirks else 1.0)


def perturb_goals(key, goals, noise_max: float = 0.5, permute_prob: float = 0.2, quirks: bool = False):
    """Goals for the goal-conditioned loss from latents of future frames, [B, D] -> [B, D] float32, min-max scaled.

    1. g <- g/|g|; g <- (1 - w) g + w n, with n uniform on the unit sphere and w ~ U(0, noise_max) per sample; g <- g/|g|.
    2. With probability permute_prob, g <- the goal of a uniformly drawn member of the batch.
    3. Min-max scaling.
    With quirks the first normalisation is left out, so that the noise is mixed with a vector of norm about 10 and hardly
    matters, and the min-max scaling has no epsilon.
    """
    noise_key, weight_key, choose_key, member_key = jax.random.split(key, 4)
    batch = goals.shape[0]
    goals = at_least_fp32(goals) if quirks else normalise(goals)
    noise = normalise(jax.random.normal(noise_key, goals.shape))
    weight = jax.random.uniform(weight_key, (batch, 1), maxval=noise_max)
    goals = normalise((1 - weight) * goals + weight * noise)
    replaced = jax.random.bernoulli(choose_key, permute_prob, (batch,))
    members = jax.random.randint(member_key, (batch,), 0, batch)
    goals = goals[jnp.where(replaced, members, jnp.arange(batch))]
    return minmax(goals, eps=0.0 if quirks else 1e-5)


def c51_project(reward_B, discount_B, next_probs_BN, support_N):
    """Project the distribution of r + discount * z onto the support: [B], [B], [B, N], [N] -> [B, N] (C51, algorithm 1).

    p_i = sum_j clip(1 - |clip(r + discount z_j, z_1, z_N) - z_i| / (z_2 - z_1), 0, 1) next_p_j.
    discount is gamma^n, and 0 where the episode ended; reward is the n-step return.
    """
    low, high = support_N[0], support_N[-1]
    spacing = (high - low) / (support_N.size - 1)
    moved_BN = jnp.clip(reward_B[:, None] + discount_B[:, None] * support_N, low, high)
    share_BNN = jnp.clip(1 - jnp.abs(moved_BN[:, None, :] - support_N[:, None]) / spacing, 0, 1)
    return (share_BNN * next_probs_BN[:, None, :]).sum(-1)


def expected_values(log_probs, support_N):
    """Expected values Q = sum_i z_i p_i, log_probs [..., N] -> [...]."""
    return (jnp.exp(log_probs) * support_N).sum(-1)


def at_action(log_probs_BAN, action_B):
    """The distribution of the action taken: [B, A, N], int [B] -> [B, N]."""
    return jnp.take_along_axis(log_probs_BAN, action_B[:, None, None], 1)[:, 0]


def double_dqn_target(online_log_probs_BAN, target_log_probs_BAN, reward_B, discount_B, support_N):
    """Target distribution [B, N], stop-gradient: the online net picks the next action, the target net evaluates it.

    Both arguments [B, A, N] are of the next state. For plain DQN pass the target net's twice.
    """
    action_B = expected_values(online_log_probs_BAN, support_N).argmax(-1)
    next_probs_BN = jnp.exp(at_action(target_log_probs_BAN, action_B))
    return stop_gradient(c51_project(reward_B, discount_B, next_probs_BN, support_N))


def cross_entropy(target_probs, log_probs):
    """Cross-entropy -sum_i t_i log p_i, both [..., N] -> [...]."""
    return -(target_probs * log_probs).sum(-1)


def kl_priority(target_probs, log_probs):
    """Priority KL(t || p), clamped to [1e-6, 1e6], t clamped to [1e-6, 1]; both [..., N] -> [...], stop-gradient.

    The replay stores its square root (alpha = 0.5).
    """
    t = jnp.clip(target_probs, PROBABILITY_FLOOR, 1)
    kl = (t * (jnp.log(t) - log_probs)).sum(-1)
    return stop_gradient(jnp.clip(kl, PROBABILITY_FLOOR, 1 / PROBABILITY_FLOOR))


def importance_weights(priority_B, beta):
    """Weights (1 / (p + 1e-5))^beta over their largest in the batch, [B] -> [B]; p: stored priorities, not normalised."""
    weights = (priority_B + 1e-5) ** -beta
    return weights / weights.max()
