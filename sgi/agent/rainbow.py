"""Data-efficient Rainbow with self-prediction (docs/sgi.md, Fine-tuning): policies, network updates, evaluation.

Distributional (C51), dueling, double, n-step, prioritised, noisy nets; the SPR loss stays on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from sgi.agent import replay
from sgi.atari.emulator import num_actions
from sgi.nets import losses
from sgi.nets.augment import augment, prepare
from sgi.nets.sgi_net import SGINet
from sgi.nets.targets import SUPPORT, project
from training.method import TrainState
from training.rng import key_for


def build_net(config: ConfigDict) -> SGINet:
    """The network of a fine-tuning config, for the actions of its game."""
    actions = num_actions(config.env.game, full=config.env.full_action_space)
    net = {**config.net, "dtype": jnp.dtype(config.net.dtype)}
    return SGINet(actions, goal=False, inverse=False, noisy_std=config.agent.noisy_std, **net)


def encode_acting(net: SGINet, variables: dict, stack: jax.Array) -> jax.Array:
    """Latents of stacks uint8 [N, 84, 84, 4] as seen when acting: running statistics, no augmentation."""
    return net.apply(variables, prepare(stack), train=False, method="encode")


def choose(net: SGINet, variables: dict, z: jax.Array, key: jax.Array, epsilon: float | jax.Array, *, noisy: bool) -> jax.Array:
    """Epsilon-greedy actions int32 [N] on latents [N, 7, 7, C]."""
    noise_key, random_key, coin_key = jax.random.split(key, 3)
    best = values(net.apply(variables, z, noise_key if noisy else None, method="q_log_probs")).argmax(-1)
    random = jax.random.randint(random_key, best.shape, 0, net.num_actions)
    return jnp.where(jax.random.bernoulli(coin_key, epsilon, best.shape), random, best).astype(jnp.int32)


def values(out: jax.Array) -> jax.Array:
    """Q [...] of a head's output [..., N]: the mean of C51's distribution, or with one atom the value itself."""
    return losses.expected_values(out, jnp.linspace(*SUPPORT, out.shape[-1])) if out.shape[-1] > 1 else out[..., 0]


def acting_params(view: TrainState, agent: ConfigDict) -> dict:
    """The parameters that act, in training and in evaluations: the Q target's with `target_acts`."""
    return view.extra["q_target"] if agent.target_acts else view.params


def behaviour(net: SGINet, agent: ConfigDict) -> Any:
    """The policy that collects: (view of the state, stack) -> (action, what the replay stores).

    Greedy under NoisyNet noise that is drawn anew with every update, with an epsilon that falls linearly. Stored is the newest
    frame, or with `cache_features` the latent as float16.
    """

    def policy(view: TrainState, stack: jax.Array) -> tuple[jax.Array, jax.Array]:
        variables = {"params": acting_params(view, agent), "batch_stats": view.extra["stats"]}
        z = encode_acting(net, variables, stack)
        fraction = jnp.clip(view.step / agent.epsilon_steps, 0, 1)
        epsilon = agent.epsilon[0] + fraction * (agent.epsilon[1] - agent.epsilon[0])
        action = choose(net, variables, z, key_for(view.seed, view.step, "act"), epsilon, noisy=net.noisy_std > 0)
        return action, z.astype(jnp.float16) if agent.cache_features else stack[..., -1]

    return policy


def evaluation_policy(net: SGINet, agent: ConfigDict, epsilon: float) -> Any:
    """The policy that evaluations measure: (state, stack uint8 [N, 84, 84, 4], key) -> actions int32 [N]."""

    def act(state: TrainState, stack: jax.Array, key: jax.Array) -> jax.Array:
        variables = {"params": acting_params(state, agent), "batch_stats": state.extra["stats"]}
        z = encode_acting(net, variables, stack)
        return choose(net, variables, z, key, epsilon, noisy=False)

    return act


class Draw(NamedTuple):
    """A sample from the replay."""

    slots: jax.Array  # int32 [B]
    weights: jax.Array  # float32 [B], importance weights; they multiply every loss


def update_loss(
    params: dict, extra: dict, draw: Draw, key: jax.Array, *, net: SGINet, config: ConfigDict, constrain: Any
) -> tuple[jax.Array, tuple[dict, dict, jax.Array]]:
    """The loss of one update, and (metrics, new statistics, priorities [B]).

    Args:
      extra: `TrainState.extra`: statistics, EMA target, replay, and the Q target's parameters (none: a copy of `params`).
      draw: the sampled slots and their weights.
      key: of augmentation and noise.
      constrain: shards an array over its rows.
    """
    agent, buffer, slots, stats = config.agent, extra["replay"], draw.slots, extra["stats"]
    target_params = extra.get("q_target", jax.lax.stop_gradient(params))
    horizon, gamma = annealed_return(agent, extra)
    names = ("online", "target", "next_target", "next_online", "noise", "target_noise")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))

    def augmented(name: str, images: jax.Array) -> jax.Array:
        return augment(keys[name], constrain(images), **config.augment)

    K = agent.jumps if agent.spr else 0
    images_BK = replay.stacked_observations(buffer, slots, K + 1)
    later = replay.stacked_observations(buffer, slots + horizon, 1)[:, 0]
    returns, discount = replay.n_step(buffer, slots, horizon, gamma, longest_horizon(agent))
    actions_BK = replay.at(buffer, "action", slots, range(max(K, 1)))

    variables = {"params": params, "batch_stats": stats}
    target_variables = {"params": target_params, "batch_stats": stats}
    z0, new_stats = _encode(net, variables, augmented("online", images_BK[:, 0]), agent.freeze_encoder)
    next_online, _ = _encode(net, variables, augmented("next_online", later), agent.freeze_encoder)
    next_target, _ = _encode(net, target_variables, augmented("next_target", later), agent.freeze_encoder)
    stats = {**stats, **new_stats}
    rl, q, priority = td(net, params, target_params, z0, next_online, next_target, actions_BK[:, 0], returns, discount, keys)
    metrics = {"rl": rl.mean(), "q": q.mean()}
    loss = rl
    if agent.spr:
        latents_KB, new = net.apply(
            {"params": params, "batch_stats": stats}, z0, actions_BK.T, train=True, method="rollout", mutable=["batch_stats"]
        )
        stats = {**stats, **new["batch_stats"]}
        images, alive = augmented("target", images_BK), replay.unbroken(buffer, slots, K)
        spr = _self_prediction(net, params, extra["spr_target"], images, latents_KB, alive, agent.freeze_encoder)
        loss = loss + agent.spr * spr
        metrics["spr"] = spr.mean()
    return (draw.weights * loss).mean(), (metrics, stats, priority**agent.priority_alpha)


def longest_horizon(agent: ConfigDict) -> int:
    """Largest n of the n-step returns that this agent can use, in agent steps."""
    return max(agent.n_step, agent.anneal.n_step if agent.anneal.updates else 0)


def annealed_return(agent: ConfigDict, extra: dict) -> tuple[jax.Array | int, jax.Array | float]:
    """Horizon n and discount of the n-step returns at this update.

    They move from `agent.anneal`'s to the agent's own, exponentially, over `anneal.updates` updates after a reset: n in its
    logarithm, rounded, and the discount in log(1 - discount) (BBF, Schwarzer et al. 2023).
    """
    start = agent.anneal
    if not start.updates:
        return agent.n_step, agent.discount
    share = jnp.clip(1 - extra["since_reset"] / start.updates, 0, 1)
    interpolate = lambda first, last: jnp.exp(share * jnp.log(first / last)) * last  # noqa: E731
    n = jnp.round(interpolate(start.n_step, agent.n_step)).astype(jnp.int32)
    return n, 1 - interpolate(1 - start.discount, 1 - agent.discount)


def cached_loss(
    params: dict, extra: dict, draw: Draw, key: jax.Array, *, net: SGINet, config: ConfigDict, constrain: Any
) -> tuple[jax.Array, tuple[dict, dict, jax.Array]]:
    """The counterpart of `update_loss` for a replay of latents: only the head learns, without augmentation."""
    agent, buffer, slots, stats = config.agent, extra["replay"], draw.slots, extra["stats"]
    target_params = extra.get("q_target", jax.lax.stop_gradient(params))
    keys = dict(zip(("noise", "target_noise"), jax.random.split(key), strict=True))
    returns, discount = replay.n_step(buffer, slots, agent.n_step, agent.discount, agent.n_step)
    action = buffer.action[slots]
    z0, later = (
        constrain(replay.at(buffer, "observation", slots, range(k, k + 1))[:, 0].astype(jnp.float32)) for k in (0, agent.n_step)
    )
    rl, q, priority = td(net, params, target_params, z0, later, later, action, returns, discount, keys)
    return (draw.weights * rl).mean(), ({"rl": rl.mean(), "q": q.mean()}, stats, priority**agent.priority_alpha)


def td(
    net: SGINet, params: dict, target_params: dict, z0: jax.Array, next_online: jax.Array, next_target: jax.Array,
    action: jax.Array, returns: jax.Array, discount: jax.Array, keys: dict,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Double-DQN loss [B], Q of the action taken [B] and its priority [B]: C51, or with one atom Huber's loss of values.

    Args:
      z0: latents [B, 7, 7, C] of the observations.
      next_online, next_target: latents n steps later, for the choice of the action and for its value.
      returns, discount: [B], of `replay.n_step`.
      keys: noise of `params` ('noise') and of `target_params` ('target_noise').
    """
    noisy = net.noisy_std > 0

    def score(p: dict, z: jax.Array, use: str) -> jax.Array:
        return net.apply({"params": p}, z, keys[use] if noisy else None, method="q_log_probs")

    online, later = score(params, next_online, "noise"), score(target_params, next_target, "target_noise")
    output = losses.at_action(score(params, z0, "noise"), action)
    if net.atoms == 1:
        best = losses.at_action(later, values(online).argmax(-1))[:, 0]
        error = output[:, 0] - jax.lax.stop_gradient(returns + discount * best)
        return optax.losses.huber_loss(error), output[:, 0], jax.lax.stop_gradient(jnp.abs(error))
    target = losses.double_dqn_target(online, later, returns, discount, jnp.linspace(*SUPPORT, net.atoms))
    return losses.cross_entropy(target, output), values(output), losses.kl_priority(target, output)


def _encode(net: SGINet, variables: dict, images: jax.Array, frozen: bool) -> tuple[jax.Array, dict]:
    """Latents and new statistics; a frozen encoder uses its running statistics and has no gradient."""
    if frozen:
        return jax.lax.stop_gradient(net.apply(variables, images, train=False, method="encode")), {}
    z, new = net.apply(variables, images, train=True, method="encode", mutable=["batch_stats"])
    return z, new["batch_stats"]


def _self_prediction(
    net: SGINet, params: dict, target: dict, images_BK: jax.Array, latents_KB: jax.Array, alive_BK: jax.Array, frozen: bool
) -> jax.Array:
    """The loss (1/K) sum_{k=1..K} (2 - 2 cos) per sample [B], steps after the episode's end left out."""
    B, steps = images_BK.shape[:2]
    flat = images_BK.swapaxes(0, 1).reshape(-1, *images_BK.shape[2:])
    z, _ = _encode(net, target, flat, frozen)
    prediction = net.apply({"params": params}, project(net, {"params": params}, latents_KB, "reward"), method="predict")
    loss_KB = losses.spr_loss(prediction, project(net, target, z.reshape(steps, B, *z.shape[1:]), "reward"))
    return (loss_KB[1:] * alive_BK.T[1:]).mean(0)
