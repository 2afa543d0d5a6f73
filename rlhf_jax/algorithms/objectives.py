"""What each algorithm makes of a scored rollout, and the loss that it minimises.

Legend: P prompts, k samples a prompt (of those that are trained on: 2 for preferences, 1 for Best-of-N), N response tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rlhf_jax.algorithms import advantages, losses
from rlhf_jax.algorithms.masks import ResponseMasks, masked_mean, masked_sum, masked_whiten
from training.advantages import gae


class Scored(NamedTuple):
    """A rollout with everything that is known before the updates. Log-probs are 0 on padding."""

    score: jax.Array  # [P, k], after the rule for responses without an EOS
    sampled: jax.Array  # [P, k, N] log-probs of the weights that drew the response, or those recomputed (rl.ratio_mode)
    reference: jax.Array  # [P, k, N]
    masks: ResponseMasks
    values: jax.Array | None  # [P, k, N] of a critic


class Objective(NamedTuple):
    """An algorithm: what it makes of scores, and what it minimises.

    credit    (scored, beta, rl) -> items for the loss, [P, ...].
    loss      (logps [P, k, N], values, item, rl) -> (loss, metrics). Beside the credit `item` has 'old' and 'weight'
              (losses.ratio_mode; one weight a token with a critic, else one a response), 'ref' and 'real'.
    samples   The smallest k that makes sense.
    keep      Which samples are trained on: 'all', 'pair' (best and worst) or 'best'.
    critic    Whether it has a value function.
    """

    credit: Callable[[Scored, jax.Array, ConfigDict], dict]
    loss: Callable[[jax.Array, jax.Array | None, dict, ConfigDict], tuple[jax.Array, dict]]
    samples: int = 1
    keep: str = "all"
    critic: bool = False


def ppo_credit(s: Scored, beta: jax.Array, rl: ConfigDict) -> dict:
    """Token rewards, GAE, whitening over the rollout."""
    rewards = advantages.token_rewards(s.score, s.sampled, s.reference, s.masks, beta, rl.score_place)
    if rl.whiten_rewards:
        rewards = masked_whiten(rewards, s.masks.mask_p1, shift_mean=False)
    values = jnp.where(s.masks.mask_p1, s.values, 0)
    advantage, returns = gae(rewards, values, rl.gamma, rl.lam)
    advantage = masked_whiten(advantage, s.masks.mask) if rl.whiten == "rollout" else advantage
    return {"advantage": advantage, "return": returns, "value": values, "mask_p1": s.masks.mask_p1}


def ppo_loss(logps: jax.Array, values: jax.Array, item: dict, rl: ConfigDict) -> tuple[jax.Array, dict]:
    """The clipped policy loss on tokens, plus `rl.value_weight` times the critic's."""
    advantage = masked_whiten(item["advantage"], item["real"]) if rl.whiten == "minibatch" else item["advantage"]
    policy, facts = losses.ppo_policy(logps, item["old"], advantage, item["real"], clip=rl.clip, weight=item["weight"])
    critic, _ = losses.ppo_value(values, item["value"], item["return"], item["mask_p1"], clip=rl.clip_value or None)
    explained = 1 - _variance(item["return"] - values, item["mask_p1"]) / (_variance(item["return"], item["mask_p1"]) + 1e-8)
    metrics = {**facts, "policy_loss": policy, "value_loss": critic, "explained_variance": explained}
    return policy + rl.value_weight * critic, metrics


def rloo_credit(s: Scored, beta: jax.Array, rl: ConfigDict) -> dict:
    """R = score - beta sum log(pi / ref), less the mean of the prompt's other samples (RLOO)."""
    return {"advantage": advantages.rloo(_rewards(s, beta))}


def reinforce_credit(s: Scored, beta: jax.Array, rl: ConfigDict) -> dict:
    """The same R, less the mean of the batch (REINFORCE)."""
    return {"advantage": advantages.reinforce(_rewards(s, beta))}


def rloo_loss(logps: jax.Array, values: None, item: dict, rl: ConfigDict) -> tuple[jax.Array, dict]:
    """The clipped policy loss on responses."""
    own, old = masked_sum(logps, item["real"]), masked_sum(item["old"], item["real"])
    return losses.rloo(own, old, item["advantage"], clip=rl.clip, weight=item["weight"])


def reinforce_loss(logps: jax.Array, values: None, item: dict, rl: ConfigDict) -> tuple[jax.Array, dict]:
    """The policy gradient on responses, without a ratio."""
    total = masked_sum(logps, item["real"])
    loss, facts = losses.reinforce(total, item["weight"] * item["advantage"])
    return loss, {**facts, "approx_kl": _approximate_kl(logps, item)}


def copg_loss(logps: jax.Array, values: None, item: dict, rl: ConfigDict) -> tuple[jax.Array, dict]:
    """Contrasts of a prompt's samples. The KL weight is rl.kl throughout: a controller does not move it."""
    total, reference = masked_sum(logps, item["real"]), masked_sum(item["ref"], item["real"])
    loss, _ = losses.copg(total, reference, item["score"], rl.kl)
    return loss, {"approx_kl": _approximate_kl(logps, item)}


def no_credit(s: Scored, beta: jax.Array, rl: ConfigDict) -> dict:
    """The scores: the loss compares samples by them itself."""
    return {"score": s.score}


def preference_loss(kind: Callable) -> Callable:
    """The loss `kind` (losses.dpo or ipo) on samples 0 and 1, the chosen and the rejected one."""

    def loss(logps: jax.Array, values: None, item: dict, rl: ConfigDict) -> tuple[jax.Array, dict]:
        own, reference = masked_sum(logps, item["real"]), masked_sum(item["ref"], item["real"])
        tied = item["score"][:, 0] == item["score"][:, 1]
        value, facts = kind(own[:, 0], own[:, 1], reference[:, 0], reference[:, 1], rl.beta, tied=tied, drop_ties=rl.drop_ties)
        return value, {**facts, "approx_kl": _approximate_kl(logps, item)}

    return loss


def best_loss(logps: jax.Array, values: None, item: dict, rl: ConfigDict) -> tuple[jax.Array, dict]:
    """Likelihood of each prompt's best sample."""
    loss, facts = losses.best_of_n(masked_sum(logps, item["real"])[:, 0])
    return loss, {**facts, "approx_kl": _approximate_kl(logps, item)}


OBJECTIVES = {
    "ppo": Objective(ppo_credit, ppo_loss, critic=True),
    "reinforce": Objective(reinforce_credit, reinforce_loss),
    "rloo": Objective(rloo_credit, rloo_loss, samples=2),
    "copg": Objective(no_credit, copg_loss, samples=2),
    "dpo": Objective(no_credit, preference_loss(losses.dpo), samples=2, keep="pair"),
    "ipo": Objective(no_credit, preference_loss(losses.ipo), samples=2, keep="pair"),
    "best_of_n": Objective(no_credit, best_loss, samples=2, keep="best"),
}


def choose_samples(score: jax.Array, keep: str) -> tuple[jax.Array, jax.Array]:
    """(samples of each prompt to train on, int32 [P, 2 or 1]; which prompts are tied, bool [P]) by score [P, k].

    keep: 'pair' or 'best', as in `Objective`.
    """
    pairs = losses.best_worst(score)
    if keep == "best":
        return pairs.best[:, None], pairs.tied
    return jnp.stack([pairs.best, pairs.worst], 1), pairs.tied


def _rewards(s: Scored, beta: jax.Array) -> jax.Array:
    return advantages.sequence_rewards(s.score, s.sampled, s.reference, s.masks.mask, beta)


def _approximate_kl(logps: jax.Array, item: dict) -> jax.Array:
    return jax.lax.stop_gradient(masked_mean(jnp.square(logps - item["old"]) / 2, item["real"]))


def _variance(x: jax.Array, mask: jax.Array) -> jax.Array:
    return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)
