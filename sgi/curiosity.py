"""Curiosity-driven play (Burda et al. 2019, "Large-scale study of curiosity-driven learning"): the agent of SGI's data set E.

PPO whose only reward is how badly a forward model predicts the next observation's features; the features are those that tell
which action was taken (inverse dynamics). No reward of the game and no end of a game reaches the agent. One step of the loop is
a stretch of T steps of N games, then `epochs` passes over it.

What the agent played is recorded: `python -m sgi.collect --policy learner --workdir RUN` makes a data set of it.

Legend: N games, T steps, A actions, H width.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from sgi.agent.rollouts import Rollout, RolloutStream, observations, rollout_spec
from sgi.atari.emulator import SIZE, STACK, AtariVec, num_actions
from sgi.nets.layers import Conv, Dense
from sgi.nets.sgi_net import flatten, scale_channels
from training import optim
from training.advantages import gae
from training.errors import UserError
from training.method import Method, TrainState
from training.rng import key_for
from training.sharding import BATCH, batch_ways, check_batch

CHANNELS = (32, 64, 64)
RESIDUAL_BLOCKS = 4
TINY = 1e-7


class Features(nn.Module):
    """Nature CNN with leaky ReLUs and a linear layer: normalised images [M, 84, 84, 4] -> [M, H]."""

    hidden: int
    width: float

    @nn.compact
    def __call__(self, x):
        for i, (features, size, stride) in enumerate(
            zip(scale_channels(CHANNELS, self.width), (8, 4, 3), (4, 2, 1), strict=True)
        ):
            x = nn.leaky_relu(Conv(features, size, stride, xavier=True, name=f"conv_{i}")(x), 0.2)
        return Dense(self.hidden, xavier=True, name="linear")(flatten(x))


class Actor(nn.Module):
    """Images [M, 84, 84, 4] -> logits [M, A], values [M]."""

    num_actions: int
    hidden: int
    width: float

    @nn.compact
    def __call__(self, x):
        y = Features(self.hidden, self.width, name="features")(x)
        for i in range(2):
            y = nn.relu(Dense(self.hidden, xavier=True, name=f"linear_{i}")(y))
        return Dense(self.num_actions, 0.01, xavier=True, name="policy")(y), Dense(1, xavier=True, name="value")(y)[:, 0]


class Inverse(nn.Module):
    """Features before and after, [M, H] each -> logits [M, A] of the action between."""

    num_actions: int
    hidden: int

    @nn.compact
    def __call__(self, before, after):
        y = nn.relu(Dense(self.hidden, xavier=True, name="linear_0")(jnp.concatenate([before, after], -1)))
        return Dense(self.num_actions, xavier=True, name="linear_1")(y)


class Forward(nn.Module):
    """Features [M, H] and one-hot actions [M, A] -> predicted features [M, H]: four residual blocks that all see the action."""

    hidden: int

    @nn.compact
    def __call__(self, x, action):
        def dense(y, name):
            return Dense(self.hidden, xavier=True, name=name)(jnp.concatenate([y, action], -1))

        out = x.shape[-1]
        y = nn.leaky_relu(dense(x, "first"), 0.2)
        for i in range(RESIDUAL_BLOCKS):
            y = y + dense(nn.leaky_relu(dense(y, f"block{i}_1"), 0.2), f"block{i}_2")
        return Dense(out, xavier=True, name="last")(jnp.concatenate([y, action], -1))


class Nets(nn.Module):
    """The four networks; `config.net` has hidden and width."""

    num_actions: int
    hidden: int
    width: float

    def setup(self):
        self.actor = Actor(self.num_actions, self.hidden, self.width)
        self.features = Features(self.hidden, self.width)
        self.inverse = Inverse(self.num_actions, self.hidden)
        self.forward = Forward(self.hidden)

    def act(self, x):
        return self.actor(x)

    def embed(self, x):
        return self.features(x)

    def inverse_logits(self, before, after):
        return self.inverse(before, after)

    def error(self, before, after, action):
        """Mean squared error of the forward model, [M]; features are given, not learned here."""
        before, after = jax.lax.stop_gradient((before, after))
        return jnp.square(self.forward(before, jax.nn.one_hot(action, self.num_actions)) - after).mean(-1)

    def init_all(self, x):
        self.act(x)
        y = self.embed(x)
        self.inverse_logits(y, y)
        self.error(y, y, jnp.zeros(x.shape[0], jnp.int32))


def games(config: ConfigDict, lanes: int, seed: int) -> AtariVec:
    """The games of a config, `lanes` of them side by side, in which a lost life goes unnoticed."""
    env = config.env
    return AtariVec(
        env.game, lanes, seed=seed, noop_max=env.noop_max, max_steps=env.max_steps, sticky=env.sticky,
        full_action_space=env.full_action_space, life_loss=False,
    )  # fmt: skip


def acting_part(state: TrainState) -> TrainState:
    """The part of the state that the policy reads."""
    extra = {"pixels": state.extra["pixels"]}
    return TrainState(step=state.step, seed=state.seed, params={"actor": state.params["actor"]}, opt_state=None, extra=extra)


def normalise(x_uint8: jax.Array, pixels: dict) -> jax.Array:
    """Normalised pixels (x - mean) / std; the mean is an image, the deviation one number, both of random play."""
    return (x_uint8.astype(jnp.float32) - pixels["mean"]) / pixels["std"]


def behaviour(net: Nets) -> Any:
    """The policy that plays: actions drawn from the softmax."""

    def policy(view: TrainState, stack: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        logits, value = net.apply({"params": view.params}, normalise(stack, view.extra["pixels"]), method="act")
        key = jax.random.fold_in(key_for(view.seed, view.step, "act"), t)
        action = jax.random.categorical(key, logits).astype(jnp.int32)
        return action, log_prob(logits, action), value

    return policy


def log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    """Log-probabilities [M] of actions [M] under logits [M, A]."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)[:, 0]


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """The agent that `config` describes, and the games it plays."""
    tx, agent = optim.build(**config.optim), config.agent
    check_batch(config.batch, mesh)
    if config.batch % agent.minibatches:
        raise UserError(f"batch of {config.batch} games does not split into {agent.minibatches} agent.minibatches")
    check_batch(config.batch // agent.minibatches, mesh)
    net = Nets(num_actions(config.env.game, full=config.env.full_action_space), **config.net)
    spec = rollout_spec(config.batch, agent.horizon, mesh)

    def init(seed: jax.Array) -> TrainState:
        params = net.init(key_for(seed, 0, "init"), jnp.zeros((1, SIZE, SIZE, STACK)), method="init_all")["params"]
        extra = {
            "pixels": {"mean": jnp.zeros((SIZE, SIZE, STACK)), "std": jnp.float32(255)},
            "discounted": jnp.zeros(config.batch),  # sum of past rewards of each game
            "moments": {"mean": jnp.float32(0), "var": jnp.float32(1), "count": jnp.float32(1e-4)},
        }
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params), extra=extra)

    def warm(state: TrainState, consts: Any) -> TrainState:
        """The state with the pixel statistics of random play, by which observations are normalised."""
        return state.replace(extra={**state.extra, "pixels": random_pixels(config)})

    def shard(x: jax.Array) -> jax.Array:  # rows of a minibatch are spread anew
        return x if batch_ways(mesh) == 1 else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, BATCH))

    def step(state: TrainState, batch: Rollout, consts: Any) -> tuple[TrainState, dict]:
        params, opt_state, pixels = state.params, state.opt_state, state.extra["pixels"]

        def surprise(part: int) -> jax.Array:
            rows = jax.tree.map(lambda x: shard(x[part :: agent.minibatches]), batch)
            return forward_errors(net, params, embed(net, params, normalised_observations(rows, pixels)), rows.action)

        # All rewards before any learning; in parts, to save memory.
        reward = jnp.stack([surprise(i) for i in range(agent.minibatches)], 1).reshape(batch.action.shape)
        discounted, moments = running_moments(reward, state.extra["discounted"], state.extra["moments"], agent.discount)
        advantage, returns = advantages(reward / jnp.sqrt(moments["var"]), batch.value, agent.discount, agent.lam)
        advantage = (advantage - advantage.mean()) / (advantage.std() + TINY)
        data = {"rollout": batch, "advantage": advantage, "returns": returns}
        key = key_for(state.seed, state.step, "shuffle")
        grad_fn = jax.grad(partial(loss_fn, net=net, agent=agent, pixels=pixels), has_aux=True)

        def update(carry: tuple, rows: jax.Array) -> tuple[tuple, dict]:
            params, opt_state = carry
            grads, metrics = grad_fn(params, jax.tree.map(lambda x: shard(x[rows]), data))
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), {**metrics, "grad_norm": optax.tree.norm(grads)}

        orders = jnp.stack([jax.random.permutation(jax.random.fold_in(key, e), config.batch) for e in range(agent.epochs)])
        (params, opt_state), metrics = jax.lax.scan(
            update, (params, opt_state), orders.reshape(agent.epochs * agent.minibatches, -1), unroll=agent.unroll
        )
        metrics = {
            **jax.tree.map(lambda x: x.mean(), metrics),
            "curiosity": reward.mean(),
            "game_reward": batch.reward.sum(1).mean(),  # of a stretch; the agent does not see it
            "games_begun": batch.start[:, :-1].sum(),
        }
        extra = {**state.extra, "discounted": discounted, "moments": moments}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, extra=extra), metrics

    def stream(consts: Any) -> RolloutStream:
        return RolloutStream(games(config, config.batch, config.seed), behaviour(net), spec, view=acting_part)

    return Method(spec=spec, init=init, step=step, stream=stream, warm=warm)


def normalised_observations(batch: Rollout, pixels: dict) -> jax.Array:
    """The observations of stretches, normalised: [n, T + 1, 84, 84, 4]."""
    return normalise(observations(batch.frames, batch.start), pixels)


def embed(net: Nets, params: dict, images: jax.Array) -> jax.Array:
    """Features [n, T + 1, H] of normalised observations [n, T + 1, 84, 84, 4]."""
    y = net.apply({"params": params}, images.reshape(-1, *images.shape[2:]), method="embed")
    return y.reshape(*images.shape[:2], -1)


def forward_errors(net: Nets, params: dict, features: jax.Array, action: jax.Array) -> jax.Array:
    """Squared errors [n, T] of the forward model on features [n, T + 1, H]."""
    before, after = (x.reshape(-1, x.shape[-1]) for x in (features[:, :-1], features[:, 1:]))
    return net.apply({"params": params}, before, after, action.ravel(), method="error").reshape(action.shape)


def advantages(reward: jax.Array, value: jax.Array, discount: float, lam: float) -> tuple[jax.Array, jax.Array]:
    """Advantages and returns [N, T] of rewards [N, T] and values [N, T + 1]; games never end."""
    last = discount * value[:, -1]  # `gae` takes the value after the last step to be 0
    return gae(reward.at[:, -1].add(last), value[:, :-1], discount, lam)


def running_moments(reward: jax.Array, discounted: jax.Array, moments: dict, discount: float) -> tuple[jax.Array, dict]:
    """Discounted sums of past rewards [N] after T more steps, and the running moments of all of them (Chan et al. 1979)."""

    def forward(total: jax.Array, r: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = total * discount + r
        return total, total

    discounted, sums = jax.lax.scan(forward, discounted, reward.T)
    old, new = moments["count"], float(reward.size)
    count, delta = old + new, sums.mean() - moments["mean"]
    var = (moments["var"] * old + sums.var() * new + delta**2 * old * new / count) / count
    return discounted, {"mean": moments["mean"] + delta * new / count, "var": var, "count": count}


def loss_fn(params: dict, data: dict, *, net: Nets, agent: ConfigDict, pixels: dict) -> tuple[jax.Array, dict]:
    """The sum of PPO's loss, the inverse model's and the forward model's, on whole stretches of a minibatch of games."""
    batch: Rollout = data["rollout"]
    images = normalised_observations(batch, pixels)
    action = batch.action.ravel()
    logits, value = net.apply({"params": params}, images[:, :-1].reshape(-1, *images.shape[2:]), method="act")
    ratio = jnp.exp(log_prob(logits, action) - batch.log_prob.ravel())
    advantage = data["advantage"].ravel()
    policy = jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1 - agent.clip, 1 + agent.clip)).mean()
    value_loss = 0.5 * jnp.square(value - data["returns"].ravel()).mean()
    entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum(-1).mean()
    features = embed(net, params, images)
    before, after = (x.reshape(-1, x.shape[-1]) for x in (features[:, :-1], features[:, 1:]))
    guess = net.apply({"params": params}, before, after, method="inverse_logits")
    inverse = -log_prob(guess, action).mean()
    forward = forward_errors(net, params, features, batch.action).mean()
    loss = policy + value_loss - agent.entropy * entropy + inverse + forward
    return loss, {
        "loss": loss, "policy": policy, "value": value_loss, "entropy": entropy, "inverse": inverse, "forward": forward,
        "inverse_accuracy": (guess.argmax(-1) == action).mean(), "clipped": (jnp.abs(ratio - 1) > agent.clip).mean(),
    }  # fmt: skip


def random_pixels(config: ConfigDict) -> dict:
    """Mean image and mean deviation of a pixel in `agent.normalise` steps of random play."""
    lanes = 8
    env = games(config, lanes, config.seed)
    stack, _ = env.reset()
    rng = np.random.default_rng([config.seed, 0x0B5])
    total, squares, count = np.zeros(stack.shape[1:]), np.zeros(stack.shape[1:]), 0
    for _ in range(-(-config.agent.normalise // lanes)):
        stack, *_ = env.step(rng.integers(env.single_action_space.n, size=lanes))
        total += stack.sum(0, dtype=np.float64)
        squares += np.square(stack, dtype=np.float64).sum(0)
        count += lanes
    env.close()
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0)).mean()
    return {"mean": jnp.asarray(mean.transpose(1, 2, 0), jnp.float32), "std": jnp.float32(max(deviation, 1.0))}
