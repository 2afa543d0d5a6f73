"""Losses against loops over rows and tokens; which terms of the objective reach which part of the game."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax.translation import losses, nets, objective
from rlhf_jax.translation.corpus import END, PAD
from rlhf_jax.translation.pretrain import translation_loss
from training import config as configs

CONFIG = str(Path(__file__).parents[2] / "configs/rlhf/translation.py")
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 1, (3, 4, 6)).astype(np.float32)
TOKENS = np.array([[4, 5, END, PAD], [END, PAD, PAD, PAD], [3, 3, 4, 5]], np.int32)
MASK = TOKENS != PAD
LENGTHS = (3, 1, 4)


def log_softmax(x):
    return x - np.log(np.exp(x).sum())


def test_a2c_equals_loops():
    reward, baseline = RNG.normal(size=3).astype(np.float32), RNG.normal(size=(3, 4)).astype(np.float32)
    policy, value, entropy = [], [], []
    for b, n in enumerate(LENGTHS):
        p, v, h = 0, 0, 0
        for t in range(n):
            lp = log_softmax(LOGITS[b, t])
            p -= (reward[b] - baseline[b, t]) * lp[TOKENS[b, t]] / n
            v += (reward[b] - baseline[b, t]) ** 2 / n
            h -= (np.exp(lp) * lp).sum() / n
        policy, value, entropy = [*policy, p], [*value, v], [*entropy, h]

    @jax.jit
    def run(logits, baseline):
        goal = losses.returns(reward, np.zeros((3, 4), np.float32), MASK)
        return losses.a2c(losses.log_prob(logits, TOKENS), losses.entropy(logits), baseline, goal, MASK)

    np.testing.assert_allclose(run(LOGITS, baseline), [np.mean(policy), np.mean(value), np.mean(entropy)], rtol=1e-5)
    # The baseline learns from the value loss alone: 2 (b - R) / tokens / rows; the policy loss takes it as given.
    grads = jax.jit(jax.jacrev(lambda b: run(LOGITS, b)))(baseline)
    expected = [[2 * (baseline[b, t] - reward[b]) / n / 3 * (t < n) for t in range(4)] for b, n in enumerate(LENGTHS)]
    np.testing.assert_allclose(grads.value, expected, rtol=1e-5)
    assert not np.any(grads.policy) and not np.any(grads.entropy)


def test_policy_gradient_is_advantage_times_score():
    goal, baseline = np.float32([[2] * 4, [-1] * 4, [0.5] * 4]), np.full((3, 4), 0.25, np.float32)

    def policy(logits):
        return losses.a2c(losses.log_prob(logits, TOKENS), losses.entropy(logits), baseline, goal, MASK).policy

    grad = jax.jit(jax.grad(policy))(LOGITS)
    for b, n in enumerate(LENGTHS):
        for t in range(4):
            score = np.eye(6)[TOKENS[b, t]] - np.exp(log_softmax(LOGITS[b, t]))
            expected = -(goal[b, t] - 0.25) * score / n / 3 * (t < n)
            np.testing.assert_allclose(grad[b, t], expected, atol=1e-6)


def test_returns_subtract_the_penalties_still_to_come():
    penalty = np.float32([[1, 2, 4, 100], [3, 100, 100, 100], [1, 1, 1, 1]])
    goals = np.asarray(losses.returns(np.float32([10, 20, 0]), penalty, MASK))
    np.testing.assert_allclose(goals[0, :3], [3, 4, 6])
    np.testing.assert_allclose(goals[1, :1], [17])
    np.testing.assert_allclose(goals[2], [-4, -3, -2, -1])


def test_divergence_and_cross_entropy():
    other = RNG.normal(0, 1, LOGITS.shape).astype(np.float32)
    p, q = (np.apply_along_axis(log_softmax, -1, x) for x in (LOGITS, other))
    np.testing.assert_allclose(losses.divergence(LOGITS, other), (np.exp(p) * (p - q)).sum(-1), atol=1e-5)
    tokens = [-p[b, t, TOKENS[b, t]] for b, n in enumerate(LENGTHS) for t in range(n)]
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, TOKENS), np.mean(tokens), rtol=1e-5)


def test_normalised_rewards():
    rewards = np.asarray(losses.normalise(np.float32([1, 2, 3, 6])))
    np.testing.assert_allclose(rewards, (np.array([1, 2, 3, 6]) - 3) / np.sqrt(3.5), rtol=1e-5)


# The objective


SIZES = {"sender": nets.Sizes(7, 6, 3, 4), "receiver": nets.Sizes(6, 8, 3, 4)}
FR = np.array([[4, 5, END], [6, END, PAD]], np.int32)
DE = np.array([[4, 7, END], [5, END, PAD]], np.int32)


def init():
    agents = {name: nets.init_agent(jax.random.key(0), sizes) for name, sizes in SIZES.items()}
    return {**agents, "value": nets.init_value(jax.random.key(1), SIZES["sender"])}


def weights(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), jax.eval_shape(init))


PARAMS, START_PARAMS = weights(1), weights(2)


def play(batch=None, **overrides):
    """Loss, metrics and gradients of one step of the game."""
    values = {k.replace("__", "."): str(v) for k, v in overrides.items()}
    config = configs.load(CONFIG + ":tiny_game", {"message.longest": "4", **values})
    loss = functools.partial(objective.play_loss, config=config)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    start = {"start": {k: START_PARAMS[k] for k in SIZES}}
    (total, (metrics, _)), grads = run(PARAMS, batch or {"game": (FR, DE)}, KEY, start, ())
    norms = {name: float(sum(np.square(x).sum() for x in jax.tree.leaves(tree))) for name, tree in grads.items()}
    return float(total), {k: float(v) for k, v in metrics.items()}, grads, norms


KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def plain():
    return play()


def test_total_is_the_weighted_sum(plain):
    total, m, _, _ = plain
    np.testing.assert_allclose(total, -m["reward"] + m["policy"] + 10 * m["value"] - 0.001 * m["entropy"], rtol=1e-5)
    assert m["reward"] < 0 < m["entropy"] and 3 <= m["length"] <= 4 and m["kl"] == 0


def test_frozen_english_trains_the_receiver_alone(plain):
    total, m, grads, norms = play(estimator="none")
    assert norms["sender"] == norms["value"] == 0 < norms["receiver"]
    np.testing.assert_allclose(total, -m["reward"], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads["receiver"], plain[2]["receiver"])


def test_reward_does_not_depend_on_the_sender_but_through_tokens():
    """Without policy and entropy terms nothing of A2C may reach the sender; Gumbel choices do."""
    off = {"loss__policy": 0.0, "loss__entropy": 0.0}
    assert play(**off)[3]["sender"] == 0
    assert play(estimator="gumbel", **off)[3]["sender"] > 0


def test_kl_penalty_enters_the_returns(plain):
    _, m, _, _ = play(loss__kl=0.5)
    assert m["kl"] != 0 and m["reward"] == plain[1]["reward"]
    assert m["value"] != plain[1]["value"] and m["policy"] != plain[1]["policy"]


def test_normalised_rewards_change_the_policy_and_not_the_receiver(plain):
    _, m, grads, _ = play(normalise=True)
    assert m["reward"] == plain[1]["reward"] and m["policy"] != plain[1]["policy"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads["receiver"], plain[2]["receiver"])


def test_supervised_terms_are_added(plain):
    """Multitask and S2P: the game's loss plus each agent's own cross-entropy."""
    en = np.array([[5, 4, END], [5, END, PAD]], np.int32)
    batch = {"game": (FR, DE), "sender": (FR, en), "receiver": (en, DE)}
    total, m, _, _ = play(batch, supervised__sender=2.0, supervised__receiver=1.0)
    supervised = 2 * jax.jit(translation_loss)(PARAMS["sender"], FR, en) + jax.jit(translation_loss)(PARAMS["receiver"], en, DE)
    np.testing.assert_allclose(m["supervised"], supervised, rtol=1e-5)
    np.testing.assert_allclose(total, plain[0] + supervised, rtol=1e-5)


def test_students_learn_the_teachers_greedy_english():
    config = configs.load(CONFIG + ":tiny_sil", {"message.longest": "4"})
    loss = functools.partial(objective.imitation_loss, config=config)
    students, teachers = ({k: params[k] for k in SIZES} for params in (PARAMS, START_PARAMS))
    (total, _), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(students, {"game": (FR, DE)}, KEY, (), teachers)
    message = jax.jit(lambda a: objective.search.greedy(a, nets.encode(a, FR), length=4, shortest=3))(teachers["sender"])
    sender = jax.jit(translation_loss)(PARAMS["sender"], FR, message)
    receiver = jax.jit(translation_loss)(PARAMS["receiver"], message, DE)
    np.testing.assert_allclose(total, sender + receiver, rtol=1e-5)
    assert all(np.any(x) for x in (grads["sender"]["decoder"]["out"]["bias"], grads["receiver"]["decoder"]["out"]["bias"]))
