"""The loss of one step of the game: French -> message -> German, by A2C or by straight-through Gumbel choices.

Legend: B rows, T tokens of a message, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from ml_collections import ConfigDict

from rlhf_jax.translation import losses, nets, search
from rlhf_jax.translation.evaluate import message_logits
from rlhf_jax.translation.pretrain import AGENTS, translation_loss

ESTIMATORS = ("a2c", "gumbel", "none")
METRICS = ("reward", "policy", "value", "entropy", "kl", "length", "supervised")


def play_loss(params: dict, batch: dict, key: jax.Array, extra: dict, consts: Any, *, config: ConfigDict) -> Any:
    """Loss of a step of the game, and (metrics, extra).

    batch: {'game': French and German, 'sender', 'receiver': supervised pairs, if their losses are on}.
    """
    params, start = nets.cast(params, config.net.dtype), nets.cast(stop_gradient(extra["start"]), config.net.dtype)
    source, target = batch["game"]
    play = through_choices if config.estimator == "gumbel" else through_samples
    loss, metrics = play(params, start, source, target, key, config)
    supervised = [config.supervised[name] * translation_loss(params[name], *batch[name]) for name in AGENTS if name in batch]
    metrics["supervised"] = sum(supervised, jnp.float32(0))
    return loss + metrics["supervised"], (metrics, extra)


def message_reward(receiver: dict, message: jax.Array, target: jax.Array) -> jax.Array:
    """Reward [B]: mean over German tokens of log p(de_t | de_<t, message). Its mean over rows is minus the cross-entropy."""
    feeds = nets.force(receiver, nets.encode(receiver, message), target).feeds
    log_probs = losses.log_prob(nets.logits(receiver["decoder"], feeds), target)
    return losses.token_mean(log_probs, nets.present(target))


def through_samples(
    params: dict, start: dict, source: jax.Array, target: jax.Array, key: jax.Array, config: ConfigDict
) -> tuple[jax.Array, dict]:
    """(loss, metrics) of A2C: the receiver learns by cross-entropy, the sender from the reward; not at all with 'none'."""
    sender, weights, limits = params["sender"], config.loss, config.message
    memory = nets.encode(sender, source)
    message = search.sample(*stop_gradient((sender, memory)), key, length=limits.longest, shortest=limits.shortest)
    mask = nets.present(message)
    reward = message_reward(params["receiver"], message, target)
    loss = -weights.cross_entropy * reward.mean()
    metrics = dict.fromkeys(METRICS, jnp.float32(0)) | {"reward": reward.mean(), "length": mask.sum(1).mean(dtype=jnp.float32)}
    if config.estimator == "none":
        return loss, metrics
    forced = nets.force(sender, memory, message)
    logits = nets.logits(sender["decoder"], forced.feeds, jnp.arange(limits.longest) < limits.shortest - 1)
    log_probs = losses.log_prob(logits, message)
    baseline = nets.value(params["value"], stop_gradient(forced.inputs))
    kl = jnp.zeros_like(log_probs)
    if weights.kl:
        reference = message_logits(start["sender"], source, message, limits.shortest)
        kl = stop_gradient(log_probs) - losses.log_prob(reference, message)
    goal = losses.normalise(reward) if config.normalise else reward
    terms = losses.a2c(log_probs, losses.entropy(logits), baseline, losses.returns(goal, weights.kl * kl, mask), mask)
    loss += weights.policy * terms.policy + weights.value * terms.value - weights.entropy * terms.entropy
    return loss, metrics | terms._asdict() | {"kl": jnp.where(mask, kl, 0).sum(1).mean()}


def through_choices(
    params: dict, start: dict, source: jax.Array, target: jax.Array, key: jax.Array, config: ConfigDict
) -> tuple[jax.Array, dict]:
    """(loss, metrics) of straight-through Gumbel: cross-entropy reaches the sender through its choices of tokens."""
    limits = config.message
    choices, logits = search.gumbel(
        params["sender"], nets.encode(params["sender"], source), key,
        temperature=config.temperature, length=limits.longest, shortest=limits.shortest,
    )  # fmt: skip
    mask = nets.present(choices)
    reward = message_reward(params["receiver"], choices, target)
    entropy = losses.token_mean(losses.entropy(logits), mask).mean()
    metrics = dict.fromkeys(METRICS, jnp.float32(0)) | {"reward": reward.mean(), "entropy": entropy}
    loss = -config.loss.cross_entropy * reward.mean() - config.loss.entropy * entropy
    return loss, metrics | {"length": mask.sum(1).mean(dtype=jnp.float32)}


def imitation_loss(
    students: dict, batch: dict, key: jax.Array, extra: Any, teachers: dict, *, config: ConfigDict
) -> tuple[jax.Array, tuple[dict, Any]]:
    """Loss of students in seeded iterated learning, and (metrics, extra).

    They learn the teachers' greedy English from the French of `batch['game']`, and its German from that English.
    """
    students, teachers = nets.cast(students, config.net.dtype), nets.cast(teachers, config.net.dtype)
    source, target = batch["game"]
    limits = config.message
    memory = nets.encode(teachers["sender"], source)
    message = search.greedy(teachers["sender"], memory, length=limits.longest, shortest=limits.shortest)
    sender = translation_loss(students["sender"], source, message)
    receiver = translation_loss(students["receiver"], message, target)
    length = nets.present(message).sum(1).mean(dtype=jnp.float32)
    metrics = dict.fromkeys(METRICS, jnp.float32(0)) | {"reward": -receiver, "supervised": sender, "length": length}
    return sender + receiver, (metrics, extra)
