"""Losses of PPO, RLOO, REINFORCE, CoPG, online DPO, IPO and Best-of-n as pure functions of log-probabilities.

Legend: N response tokens, P prompts, k samples of a prompt, V vocabulary; leading axes (`...`) are free unless named.
All log-probs are those of the tempered softmax. PPO takes those of tokens [..., N] and a mask; the others take one log-prob for
each response, `masks.masked_sum(logp, mask)`, EOS included.

Every loss is a mean, and returns (loss, stats) with stats a dict of scalars. Gradients reach only the current policy (or the
current values): advantages, old and reference log-probs and weights are constants here.
Forms of async_rlhf (src/ppov2_trainer.py, rloo_trainer.py, online_dpo_trainer.py) unless a paper is named.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from rlhf_jax.algorithms.masks import masked_mean
from training.errors import UserError

Scalars = dict[str, jax.Array]
RATIO_MODES = ("recompute", "behaviour", "decoupled", "tis")


def ratio_mode(
    mode: str,
    behaviour: jax.Array,
    recomputed: jax.Array | None = None,
    *,
    cap: float = 2.0,
    mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | float]:
    """Off-policy correction: (old log-prob of the ratio, weight of the loss), for tokens or for sums over responses.

    mode          old         weight                            ratio starts at
    'recompute'   recomputed  1                                 1: staleness is invisible (async_rlhf)
    'behaviour'   behaviour   1                                 its true value, staleness and numerics included
    'decoupled'   recomputed  exp(recomputed - behaviour)       1 (AReaL: Fu et al. 2025)
    'tis'         recomputed  min(exp(recomputed - behaviour), cap)   1 (truncated importance sampling)

    Args:
      behaviour: log-probs as the sampler stored them.
      recomputed: those of the learner's weights at the start of the batch; 'behaviour' does without.
      mask: for tokens: elsewhere the weight is 1.
    """
    if mode not in RATIO_MODES:
        raise UserError(f"unknown ratio mode {mode!r}: use one of {', '.join(RATIO_MODES)}")
    if mode == "behaviour":
        return behaviour, 1.0
    if recomputed is None:
        raise UserError(f"ratio mode {mode!r} needs the log-probs recomputed by the learner; 'behaviour' does without")
    if mode == "recompute":
        return recomputed, 1.0
    difference = recomputed - behaviour
    weight = jnp.exp(difference if mask is None else jnp.where(mask, difference, 0))
    return recomputed, stop_gradient(weight if mode == "decoupled" else jnp.minimum(weight, cap))


def ppo_policy(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip: float = 0.2,
    weight: jax.Array | float = 1.0,
) -> tuple[jax.Array, Scalars]:
    """Masked mean over tokens of w max(-A r, -A clip(r, 1 - clip, 1 + clip)), r = exp(logp - old), all [..., N].

    Schulman et al. 2017, eq. 7; w is the weight of `ratio_mode`.
    stats: clip_fraction (of tokens that the clip holds back), approx_kl = mean (logp - old)^2 / 2, ratio (mean), ratio_max.
    """
    return _clipped(logp, old_logp, weight * advantages, mask, clip)


def rloo(
    logp: jax.Array, old_logp: jax.Array, advantages: jax.Array, *, clip: float = 0.2, weight: jax.Array | float = 1.0
) -> tuple[jax.Array, Scalars]:
    """Proximal RLOO: the clipped loss with one ratio for a whole response, exp(sum logp - sum old). All [...]; stats as in PPO.

    This ratio is the product of the tokens' ratios, not their mean. Advantages: `advantages.rloo`.
    """
    return _clipped(logp, old_logp, weight * advantages, jnp.ones(logp.shape, bool), clip)


def _clipped(logp, old_logp, advantages, mask, clip):
    # Padding is cleared before the exponential: an infinite ratio there would turn its zero gradient into NaN.
    change = jnp.where(mask, logp - stop_gradient(old_logp), 0)
    advantages = stop_gradient(jnp.where(mask, advantages, 0))
    ratio = jnp.exp(change)
    free, held = -advantages * ratio, -advantages * jnp.clip(ratio, 1 - clip, 1 + clip)
    stats = {
        "clip_fraction": masked_mean(held > free, mask),
        "approx_kl": masked_mean(jnp.square(change) / 2, mask),
        "ratio": masked_mean(ratio, mask),
        "ratio_max": ratio.max(),
    }
    return masked_mean(jnp.maximum(free, held), mask), stop_gradient(stats)


def ppo_value(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, *, clip: float | None = 0.2
) -> tuple[jax.Array, Scalars]:
    """Half the masked mean of max((v - R)^2, (clip(v, old - clip, old + clip) - R)^2), all [..., N]; clip None: of (v - R)^2.

    The reference code's mask is `ResponseMasks.mask_p1`. stats: clip_fraction.
    """
    returns, old_values = stop_gradient(returns), stop_gradient(old_values)
    free = jnp.square(values - returns)
    held = free if clip is None else jnp.square(jnp.clip(values, old_values - clip, old_values + clip) - returns)
    return masked_mean(jnp.maximum(free, held), mask) / 2, {"clip_fraction": masked_mean(held > free, mask)}


def reinforce(logp: jax.Array, advantages: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, Scalars]:
    """-mean A logp, for responses [...] or, with a mask, for tokens [..., N] (Williams 1992). No ratio: for on-policy data."""
    mask = jnp.ones(logp.shape, bool) if mask is None else mask
    return -masked_mean(stop_gradient(advantages) * logp, mask), {}


def copg(logp: jax.Array, ref_logp: jax.Array, score: jax.Array, beta: float) -> tuple[jax.Array, Scalars]:
    """Contrastive policy gradient (Flet-Berliac et al. 2024), all [..., k]: valid off-policy without a ratio.

    With d = logp - ref, a pair of samples of one prompt has l_ij = (s_i - s_j)(d_i - d_j) - beta/2 (d_i - d_j)^2. The loss is
    -sum of l_ij over the pairs i < j of all prompts, over (k - 1) times the number of responses: its gradient is that of
    REINFORCE with the RLOO advantage of s - beta d, d under the *current* policy. With k = 2 and scores 1/2 apart the gradient
    is beta/4 times that of `ipo`.
    stats: kl, the mean of d.
    """
    k = logp.shape[-1]
    if k < 2:
        raise UserError("CoPG contrasts the samples of one prompt: set at least 2 samples a prompt")
    drift = logp - stop_gradient(ref_logp)
    between = drift[..., :, None] - drift[..., None, :]
    gain = stop_gradient(score[..., :, None] - score[..., None, :])
    pairs = gain * between - beta / 2 * jnp.square(between)
    return -pairs.sum((-2, -1)).mean() / (2 * k * (k - 1)), {"kl": stop_gradient(drift.mean())}


class Pairs(NamedTuple):
    """best, worst int32 [...]: samples with the highest and lowest score; tied bool [...]: the two scores are equal."""

    best: jax.Array
    worst: jax.Array
    tied: jax.Array


def best_worst(scores: jax.Array) -> Pairs:
    """The preference pair of each prompt, scores [..., k]. Among equal scores the first sample counts.

    A tied prompt (all k scores equal, frequent with 0/1 rewards) has best == worst and nothing to teach; `dpo` and `ipo` take
    `tied`. async_rlhf's two-sample code prefers the first sample instead; its k-sample code leaves it to torch.
    """
    best, worst = jnp.argmax(scores, -1).astype(jnp.int32), jnp.argmin(scores, -1).astype(jnp.int32)
    return Pairs(best, worst, scores.max(-1) == scores.min(-1))


def dpo(
    chosen: jax.Array,
    rejected: jax.Array,
    ref_chosen: jax.Array,
    ref_rejected: jax.Array,
    beta: float,
    *,
    tied: jax.Array | None = None,
    drop_ties: bool = False,
) -> tuple[jax.Array, Scalars]:
    """Mean over pairs of -log sigmoid(beta h), h = (chosen - rejected) - (ref_chosen - ref_rejected).

    Rafailov et al. 2023, eq. 7. All [P], log-probs of responses. Pairs that are `tied` get exactly zero gradient (h = 0); they
    count in the mean, as in the reference code, or not at all with drop_ties, which gives the others more weight.
    stats: accuracy (h > 0), chosen_reward, rejected_reward (beta times log-ratio) and their margin, over the pairs that are not
    tied; tie_rate.
    """
    return _preference(
        lambda h: -jax.nn.log_sigmoid(beta * h), chosen, rejected, ref_chosen, ref_rejected, beta, tied, drop_ties
    )


def ipo(
    chosen: jax.Array,
    rejected: jax.Array,
    ref_chosen: jax.Array,
    ref_rejected: jax.Array,
    beta: float,
    *,
    tied: jax.Array | None = None,
    drop_ties: bool = False,
) -> tuple[jax.Array, Scalars]:
    """As `dpo`, with (h - 1 / (2 beta))^2 for each pair (Azar et al. 2024, eq. 17)."""
    return _preference(
        lambda h: jnp.square(h - 1 / (2 * beta)), chosen, rejected, ref_chosen, ref_rejected, beta, tied, drop_ties
    )


def _preference(loss, chosen, rejected, ref_chosen, ref_rejected, beta, tied, drop_ties):
    tied = jnp.zeros(chosen.shape, bool) if tied is None else tied
    first, second = chosen - stop_gradient(ref_chosen), rejected - stop_gradient(ref_rejected)
    h = jnp.where(tied, 0, first - second)
    stats = {
        "accuracy": masked_mean(h > 0, ~tied),
        "chosen_reward": masked_mean(beta * first, ~tied),
        "rejected_reward": masked_mean(beta * second, ~tied),
        "margin": masked_mean(beta * h, ~tied),
        "tie_rate": tied.mean(),
    }
    return masked_mean(loss(h), ~tied if drop_ties else jnp.ones_like(tied)), stop_gradient(stats)


def best_of_n(chosen: jax.Array) -> tuple[jax.Array, Scalars]:
    """Best-of-n fine-tuning: -mean of the best samples' log-probs [P] (sums over tokens, so long answers weigh more)."""
    return -chosen.mean(), {}
