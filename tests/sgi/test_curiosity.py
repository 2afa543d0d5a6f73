"""The curious agent: observations, rewards and their scale, learning, and what it plays."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.sgi.curiosity import get_config
from sgi import curiosity
from sgi.agent.rollouts import Rollout, observations
from sgi.agent.transfer import load_pretrained
from sgi.atari.emulator import AtariVec, num_actions
from tests.sgi.variants import load
from training import population
from training.errors import UserError
from training.runs import Run
from training.sharding import make_mesh
from training.testing import train


def play(lanes: int = 2, steps: int = 40):
    """Random steps with early game ends -> observations [N, T + 1, 84, 84, 4], frames and starts of one stretch."""
    env = AtariVec("pong", lanes, seed=3, max_steps=13, life_loss=False)
    observed, start = [env.reset()[0]], [np.ones(lanes, bool)]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        stack, _, over, cut, _ = env.step(rng.integers(6, size=lanes))
        observed.append(stack)
        start.append(over | cut)
    observed = np.stack(observed, 1)
    frames = np.concatenate([observed[:, 0], observed[:, 1:, -1]], 1)
    return np.moveaxis(observed, 2, -1), frames, np.stack(start, 1)


@pytest.mark.parametrize("first", [0, 5, 12, 14])
def test_observations_are_those_of_the_emulator(first):
    """A stretch that begins anywhere, in mid-game or just after a start."""
    observed, frames, start = play()
    stretch = np.concatenate([np.moveaxis(observed[:, first], -1, 1), frames[:, 4 + first :]], 1)
    np.testing.assert_array_equal(observations(jnp.asarray(stretch), jnp.asarray(start[:, first:])), observed[:, first:])


def test_reward_moments_are_those_of_all_discounted_sums():
    rng = np.random.default_rng(1)
    rewards = rng.exponential(size=(3, 50)).astype(np.float32)
    total, sums = np.zeros(3), []
    for r in rewards.T:
        total = 0.9 * total + r
        sums.append(total)
    discounted, moments = jnp.zeros(3), {"mean": jnp.float32(0), "var": jnp.float32(1), "count": jnp.float32(1e-4)}
    for part in (rewards[:, :20], rewards[:, 20:]):
        discounted, moments = curiosity.running_moments(part, discounted, moments, 0.9)
    np.testing.assert_allclose(discounted, total, rtol=1e-5)
    np.testing.assert_allclose(moments["mean"], np.mean(sums), rtol=1e-4)
    np.testing.assert_allclose(moments["var"], np.var(sums), rtol=1e-4)


def test_advantages_look_beyond_the_stretch():
    rng = np.random.default_rng(2)
    reward, value = rng.normal(size=(2, 5)), rng.normal(size=(2, 6))
    expected, following = np.zeros((2, 5)), np.zeros(2)
    for t in range(4, -1, -1):
        following = reward[:, t] + 0.9 * value[:, t + 1] - value[:, t] + 0.9 * 0.8 * following
        expected[:, t] = following
    advantage, returns = curiosity.advantages(jnp.asarray(reward), jnp.asarray(value), 0.9, 0.8)
    np.testing.assert_allclose(advantage, expected, rtol=1e-5)
    np.testing.assert_allclose(returns, expected + value[:, :-1], rtol=1e-5)


def small_net():
    net = curiosity.Nets(4, 8, 0.125)
    image = jnp.zeros((1, 84, 84, 4))
    return net, jax.jit(lambda: net.init(jax.random.key(0), image, method="init_all")["params"])()


def test_the_forward_model_teaches_no_features_and_policy_no_model():
    net, params = small_net()
    rng = np.random.default_rng(0)
    n, T = 2, 3
    batch = Rollout(
        frames=jnp.asarray(rng.integers(0, 255, (n, 4 + T, 84, 84), np.uint8)),
        start=jnp.zeros((n, T + 1), bool),
        action=jnp.asarray(rng.integers(4, size=(n, T)), jnp.int32),
        log_prob=jnp.full((n, T), -np.log(4.0)),
        value=jnp.zeros((n, T + 1)),
        reward=jnp.zeros((n, T)),
    )
    pixels = {"mean": jnp.zeros((84, 84, 4)), "std": jnp.float32(255)}

    def forward_only(params):
        return curiosity.forward_errors(
            net, params, curiosity.embed(net, params, curiosity.normalised_observations(batch, pixels)), batch.action
        ).mean()

    grads = jax.jit(jax.grad(forward_only))(params)
    assert not any(np.any(g) for g in jax.tree.leaves(grads["features"]))
    assert any(np.any(g) for g in jax.tree.leaves(grads["forward"]))

    data = {"rollout": batch, "advantage": jnp.ones((n, T)), "returns": jnp.zeros((n, T))}
    agent = get_config("tiny").agent
    whole = jax.jit(jax.value_and_grad(partial(curiosity.loss_fn, net=net, agent=agent, pixels=pixels), has_aux=True))
    (_, metrics), grads = whole(params, data)
    parts = metrics["policy"] + metrics["value"] - agent.entropy * metrics["entropy"] + metrics["inverse"] + metrics["forward"]
    np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-6)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    assert any(np.any(g) for g in jax.tree.leaves(grads["features"])), "the inverse model teaches the features"


def test_the_loss_by_hand():
    """Ratios on both sides of the clip, advantages of both signs; the inverse model sees before, then after."""
    net, params = small_net()
    rng = np.random.default_rng(3)
    n, T = 2, 4
    frames = rng.integers(0, 255, (n, 4 + T, 84, 84), np.uint8)
    start, action = np.zeros((n, T + 1), bool), rng.integers(4, size=(n, T))
    pixels = {"mean": jnp.zeros((84, 84, 4)), "std": jnp.float32(255)}
    images = np.asarray(curiosity.normalise(observations(jnp.asarray(frames), jnp.asarray(start)), pixels))
    logits, value = net.apply({"params": params}, images[:, :-1].reshape(-1, 84, 84, 4), method="act")
    logits, value = np.asarray(logits, np.float64), np.asarray(value, np.float64)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    rows, a = np.arange(n * T), action.ravel()
    ratio = np.array([0.5, 0.5, 2.0, 2.0, 1.02, 0.98, 1.2, 0.8])
    advantage, returns = np.array([1.0, -1.0, 2.0, -2.0, 1.0, -1.0, -0.5, 0.5]), rng.normal(size=n * T)
    batch = Rollout(
        frames=jnp.asarray(frames), start=jnp.asarray(start), action=jnp.asarray(action, jnp.int32),
        log_prob=jnp.asarray((log_softmax[rows, a] - np.log(ratio)).reshape(n, T), jnp.float32),
        value=jnp.zeros((n, T + 1)), reward=jnp.zeros((n, T)),
    )  # fmt: skip
    data = {"rollout": batch, "advantage": jnp.asarray(advantage.reshape(n, T)), "returns": jnp.asarray(returns.reshape(n, T))}
    _, metrics = curiosity.loss_fn(params, data, net=net, agent=get_config("tiny").agent, pixels=pixels)
    clipped = np.minimum(advantage * ratio, advantage * np.clip(ratio, 0.9, 1.1))
    y = np.asarray(net.apply({"params": params}, images.reshape(-1, 84, 84, 4), method="embed")).reshape(n, T + 1, -1)
    before, after = y[:, :-1].reshape(n * T, -1), y[:, 1:].reshape(n * T, -1)
    guess = np.asarray(net.apply({"params": params}, before, after, method="inverse_logits"), np.float64)
    expected = {
        "policy": -clipped.mean(),
        "value": ((value - returns) ** 2).mean() / 2,
        "entropy": -(np.exp(log_softmax) * log_softmax).sum(1).mean(),
        "inverse": -(guess - np.log(np.exp(guess).sum(1, keepdims=True)))[rows, a].mean(),
        "clipped": 6 / 8,
    }
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=2e-4, atol=1e-5, err_msg=name)


def test_rewards_are_the_errors_before_learning_in_the_order_of_the_games():
    config, mesh = load("curiosity:tiny", agent__minibatches=4), make_mesh(1)
    method = population.make(config, mesh)
    stream = method.stream(())
    state = jax.jit(lambda: method.init(jnp.uint32(0)))()
    batch = stream.next(state)
    net = curiosity.Nets(num_actions("pong"), **config.net)
    images = curiosity.normalised_observations(batch, state.extra["pixels"])
    reward = curiosity.forward_errors(net, state.params, curiosity.embed(net, state.params, images), batch.action)
    discounted, _ = curiosity.running_moments(reward, jnp.zeros(8), state.extra["moments"], config.agent.discount)
    new, metrics = jax.jit(method.step)(state, batch, ())
    np.testing.assert_allclose(new.extra["discounted"], discounted, rtol=1e-4)
    np.testing.assert_allclose(metrics["curiosity"], reward.mean(), rtol=1e-4)


def test_actions_are_recorded_across_a_restart(tmp_path):
    config = load("curiosity:tiny")
    train(config, tmp_path / "a", stop_after=4)
    train(config, tmp_path / "a")
    train(config, tmp_path / "b")
    a, b = (Run(tmp_path / name).stream_state()["played"] for name in "ab")
    assert a.shape == (6 * config.agent.horizon, config.batch, 2)
    np.testing.assert_array_equal(a, b)
    assert Run(tmp_path / "a").arrays()["extra"]["pixels"]["std"] > 1, "random play was looked at"


def test_play_is_no_pretrained_encoder(tmp_path):
    train(load("curiosity:tiny"), tmp_path, stop_after=1)
    with pytest.raises(UserError, match=r"is a run of sgi\.curiosity, not of sgi\.pretrain or sgi\.finetune"):
        load_pretrained(str(tmp_path), "Pong")


def test_games_must_split_into_minibatches():
    with pytest.raises(UserError, match="minibatches"):
        population.make(load("curiosity:tiny", agent__minibatches=3), make_mesh(1))
