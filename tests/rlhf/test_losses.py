"""Every loss and its gradient against a loop over rows and tokens in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import advantages, losses
from rlhf_jax.algorithms.masks import masked_sum
from training.errors import UserError

MASK = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], bool)


def draw(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def tree(x):
    return jax.tree.map(np.asarray, x)


def run(function, *args):
    """One program instead of one for each operation: compiling is what takes time here."""
    return tree(jax.jit(function)(*args))


def central(function, x, eps=1e-3):
    """Gradient by central differences, in double precision."""
    x = np.asarray(x, float)
    found = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += eps
        down[index] -= eps
        found[index] = (function(up) - function(down)) / (2 * eps)
    return found


# PPO


def slow_ppo(logp, old, adv, mask, clip, weight):
    total, held, count = 0.0, 0, 0
    for i, t in zip(*np.nonzero(mask), strict=True):
        ratio = math.exp(logp[i, t] - old[i, t])
        a = adv[i, t]
        free, cut = -a * ratio, -a * min(max(ratio, 1 - clip), 1 + clip)
        total += weight[i, t] * max(free, cut)
        held += cut > free
        count += 1
    return total / count, held / count


def test_ppo_policy():
    logp, old, adv, weight = draw(0, 3, 4, scale=0.3), draw(1, 3, 4, scale=0.3), draw(2, 3, 4), np.exp(draw(3, 3, 4))
    expected, held = slow_ppo(logp, old, adv, MASK, 0.2, weight)
    assert 0 < held < 1
    function = jax.jit(jax.value_and_grad(lambda x: losses.ppo_policy(x, old, adv, MASK, weight=weight), has_aux=True))
    (loss, stats), gradient = tree(function(logp))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, central(lambda x: slow_ppo(x, old, adv, MASK, 0.2, weight)[0], logp), atol=1e-4)
    change = (logp - old)[MASK]
    np.testing.assert_allclose(stats["clip_fraction"], held, rtol=1e-6)
    np.testing.assert_allclose(stats["approx_kl"], np.mean(change**2) / 2, rtol=1e-5)
    np.testing.assert_allclose(stats["ratio"], np.exp(change).mean(), rtol=1e-5)
    np.testing.assert_allclose(stats["ratio_max"], max(1, np.exp(change).max()), rtol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),  # a good token is not raised beyond 1.2
        (1.5, -1.0, 1.5, 1.5),  # but a bad one comes down from anywhere
        (0.5, -1.0, 0.8, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (1.1, 1.0, -1.1, -1.1),
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, loss, slope):
    def function(x):
        return losses.ppo_policy(x, jnp.zeros(1), jnp.array([advantage]), jnp.array([True]))[0]

    value, gradient = run(jax.value_and_grad(function), np.log([ratio]))
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, [slope], rtol=1e-5, atol=1e-7)


def test_ppo_ignores_padding():
    logp, old, adv = draw(4, 3, 4), draw(5, 3, 4), draw(6, 3, 4)
    bad = [np.where(MASK, x, y) for x, y in ((logp, 300), (old, -300), (adv, np.nan))]
    function = jax.jit(jax.value_and_grad(lambda x, old, adv: losses.ppo_policy(x, old, adv, MASK)[0]))
    (loss, gradient), (same, same_gradient) = tree((function(logp, old, adv), function(*bad)))
    np.testing.assert_array_equal(loss, same)
    np.testing.assert_array_equal(gradient, same_gradient)
    assert not gradient[~MASK].any() and gradient[MASK].any()


def test_constants_get_no_gradient():
    logp, old, adv, score = draw(7, 3, 4), draw(8, 3, 4), draw(9, 3, 4), draw(10, 3, 4)
    functions = (
        lambda old, adv: losses.ppo_policy(logp, old, adv, MASK)[0],
        lambda old, adv: losses.rloo(logp[:, 0], old[:, 0], adv[:, 0])[0],
        lambda old, adv: losses.ppo_value(logp, old, adv, MASK)[0],
        lambda old, adv: losses.reinforce(logp + 0 * old, adv)[0],
        lambda ref, _: losses.dpo(logp[:, 0], logp[:, 1], ref[:, 0], ref[:, 1], 0.1)[0],
        lambda ref, _: losses.copg(logp, ref, score, 0.1)[0],
    )
    for gradient in jax.tree.leaves(run(lambda *x: [jax.grad(f, (0, 1))(*x) for f in functions], old, adv)):
        assert not gradient.any()


def slow_value(values, old, returns, mask, clip):
    total, held, count = 0.0, 0, 0
    for i, t in zip(*np.nonzero(mask), strict=True):
        v, o, r = values[i, t], old[i, t], returns[i, t]
        free, cut = (v - r) ** 2, (min(max(v, o - clip), o + clip) - r) ** 2
        total += max(free, cut)
        held += cut > free
        count += 1
    return total / count / 2, held / count


@pytest.mark.parametrize("clip", [0.2, None])
def test_ppo_value(clip):
    values, old, returns = draw(11, 3, 4, scale=0.5), draw(12, 3, 4, scale=0.5), draw(13, 3, 4)
    slow = lambda v: slow_value(v, old, returns, MASK, 1e9 if clip is None else clip)  # noqa: E731
    expected, held = slow(values)
    function = jax.jit(jax.value_and_grad(lambda v: losses.ppo_value(v, old, returns, MASK, clip=clip), has_aux=True))
    (loss, stats), gradient = function(values)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(stats["clip_fraction"], held, rtol=1e-6)
    np.testing.assert_allclose(gradient, central(lambda v: slow(v)[0], values), atol=1e-4)
    assert (held > 0) == (clip is not None)


# RLOO, REINFORCE, CoPG


def slow_rloo(logp, old, adv, mask, weight, clip=0.2):
    total = 0.0
    for i in range(len(logp)):
        ratio = math.exp(sum(logp[i, t] - old[i, t] for t in range(logp.shape[1]) if mask[i, t]))
        total += weight[i] * max(-adv[i] * ratio, -adv[i] * min(max(ratio, 1 - clip), 1 + clip))
    return total / len(logp)


def test_rloo_ratio_is_of_the_sequence():
    logp, old, adv = draw(15, 3, 4, scale=0.2), draw(16, 3, 4, scale=0.2), draw(17, 3)
    weight = np.array([0.5, 1.0, 2.0])

    def function(x):
        return losses.rloo(masked_sum(x, MASK), masked_sum(old, MASK), adv, weight=weight)

    (loss, stats), gradient = jax.jit(jax.value_and_grad(function, has_aux=True))(logp)
    np.testing.assert_allclose(loss, slow_rloo(logp, old, adv, MASK, weight), rtol=1e-5)
    np.testing.assert_allclose(gradient, central(lambda x: slow_rloo(x, old, adv, MASK, weight), logp), atol=1e-4)
    ratios = np.exp(np.where(MASK, logp - old, 0).sum(-1))
    np.testing.assert_allclose(stats["ratio"], ratios.mean(), rtol=1e-5)
    # one row of three tokens, each 10 % likelier: 1.1^3, clipped at 1.2; a mean of token ratios would give 1.1
    row = jnp.full(3, math.log(1.1))
    np.testing.assert_allclose(losses.rloo(row.sum()[None], jnp.zeros(1), jnp.ones(1), clip=1)[0], -(1.1**3), rtol=1e-5)
    np.testing.assert_allclose(losses.rloo(row.sum()[None], jnp.zeros(1), jnp.ones(1))[0], -1.2, rtol=1e-5)
    np.testing.assert_allclose(losses.ppo_policy(row, jnp.zeros(3), jnp.ones(3), jnp.ones(3, bool))[0], -1.1, rtol=1e-5)


def test_reinforce():
    logp, adv = draw(18, 3), draw(19, 3)
    loss, gradient = run(jax.value_and_grad(lambda x: losses.reinforce(x, adv)[0]), logp)
    np.testing.assert_allclose(loss, -sum(a * x for a, x in zip(adv, logp, strict=True)) / 3, rtol=1e-5)
    np.testing.assert_allclose(gradient, -adv / 3, rtol=1e-6)
    tokens, adv = draw(20, 3, 4), draw(21, 3, 4)
    expected = -sum(adv[i, t] * tokens[i, t] for i, t in zip(*np.nonzero(MASK), strict=True)) / MASK.sum()
    np.testing.assert_allclose(losses.reinforce(tokens, adv, MASK)[0], expected, rtol=1e-5)


def test_on_policy_losses_have_the_policy_gradient():
    """At ratio 1 PPO, RLOO and REINFORCE have one gradient, whatever the advantage."""
    logp, adv = draw(22, 5), draw(23, 5)
    functions = (
        lambda x: losses.reinforce(x, adv)[0],
        lambda x: losses.ppo_policy(x, logp, adv, np.ones(5, bool))[0],
        lambda x: losses.rloo(x, logp, adv)[0],
    )
    for gradient in run(lambda x: [jax.grad(f)(x) for f in functions], logp):
        np.testing.assert_allclose(gradient, -adv / 5, rtol=1e-6)


@pytest.mark.parametrize("k", [2, 4])
def test_copg(k):
    logp, ref, score, beta = draw(24, 3, k), draw(25, 3, k), draw(26, 3, k), 0.3

    def slow(x):
        total = 0.0
        for p in range(3):
            for i in range(k):
                for j in range(i + 1, k):
                    h = (x[p, i] - ref[p, i]) - (x[p, j] - ref[p, j])
                    total -= (score[p, i] - score[p, j]) * h - beta / 2 * h**2
        return total / (k - 1) / (3 * k)

    loss, gradient = run(jax.value_and_grad(lambda x: losses.copg(x, ref, score, beta)[0]), logp)
    np.testing.assert_allclose(loss, slow(logp), rtol=1e-4)
    np.testing.assert_allclose(gradient, central(slow, logp), atol=1e-4)
    current = advantages.rloo(score - beta * (logp - ref))
    np.testing.assert_allclose(gradient, -current / (3 * k), rtol=1e-4, atol=1e-6)  # REINFORCE with that advantage
    with pytest.raises(UserError, match="at least 2 samples"):
        losses.copg(logp[:, :1], ref[:, :1], score[:, :1], beta)


def test_copg_with_scores_half_apart_is_ipo():
    logp, ref, beta = draw(27, 3, 2), draw(28, 3, 2), 0.3
    score = np.tile([0.5, 0.0], (3, 1))
    ours = run(jax.grad(lambda x: losses.copg(x, ref, score, beta)[0]), logp)
    ipo = run(jax.grad(lambda x: losses.ipo(x[:, 0], x[:, 1], ref[:, 0], ref[:, 1], beta)[0]), logp)
    np.testing.assert_allclose(ours, beta / 4 * ipo, rtol=1e-5, atol=1e-6)


# Preferences


def test_best_worst():
    scores = jnp.array([[1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    pairs = tree(losses.best_worst(scores))
    np.testing.assert_array_equal(pairs.best, [1, 0, 1, 0])
    np.testing.assert_array_equal(pairs.worst, [0, 0, 0, 1])
    np.testing.assert_array_equal(pairs.tied, [False, True, False, False])
    assert pairs.best.dtype == np.int32


def slow_preference(kind, c, r, rc, rr, beta):
    total = 0.0
    for i in range(len(c)):
        h = (c[i] - r[i]) - (rc[i] - rr[i])
        total += math.log1p(math.exp(-beta * h)) if kind == "dpo" else (h - 1 / (2 * beta)) ** 2
    return total / len(c)


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_preference_losses(kind):
    c, r, rc, rr = (draw(seed, 4, scale=3) for seed in (29, 30, 31, 32))
    function = jax.jit(jax.value_and_grad(lambda c, r: getattr(losses, kind)(c, r, rc, rr, 0.1), (0, 1), has_aux=True))
    (loss, stats), (to_c, to_r) = tree(function(c, r))
    np.testing.assert_allclose(loss, slow_preference(kind, c, r, rc, rr, 0.1), rtol=1e-5)
    np.testing.assert_allclose(to_c, central(lambda x: slow_preference(kind, x, r, rc, rr, 0.1), c), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(to_r, -to_c, rtol=1e-6)
    h = (c - r) - (rc - rr)
    assert 0 < (h > 0).mean() < 1
    np.testing.assert_allclose(stats["accuracy"], (h > 0).mean())
    np.testing.assert_allclose(stats["chosen_reward"], 0.1 * (c - rc).mean(), rtol=1e-5)
    np.testing.assert_allclose(stats["rejected_reward"], 0.1 * (r - rr).mean(), rtol=1e-5)
    np.testing.assert_allclose(stats["margin"], 0.1 * h.mean(), rtol=1e-5)
    assert stats["tie_rate"] == 0


def test_dpo_raises_chosen_and_lowers_rejected():
    c, r, rc, rr = (draw(seed, 4) for seed in (33, 34, 35, 36))
    to_c, to_r = run(jax.grad(lambda c, r: losses.dpo(c, r, rc, rr, 0.1)[0], (0, 1)), c, r)
    assert (to_c < 0).all() and (to_r > 0).all()


def test_dpo_beta():
    """At the start (policy = reference) the loss is log 2 and the gradient beta / 2; beta scales h."""
    zero, h = np.zeros(1), np.array([2.0])
    function = jax.jit(jax.value_and_grad(lambda c, beta: losses.dpo(c, zero, zero, zero, beta)[0]))
    for beta in (0.03, 0.1):
        loss, gradient = function(zero, beta)
        np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
        np.testing.assert_allclose(gradient, [-beta / 2], rtol=1e-6)
    np.testing.assert_allclose(function(3 * h, 0.1)[0], function(h, 0.3)[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_tied_prompts_teach_nothing(kind):
    logp, ref = draw(37, 3, 4), draw(38, 3, 4)
    scores = jnp.array([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    best, worst, tied = losses.best_worst(scores)

    def function(x, drop, known):
        pick = lambda x, index: jnp.asarray(x)[jnp.arange(len(x)), index]  # noqa: E731
        return getattr(losses, kind)(
            pick(x, best),
            pick(x, worst),
            pick(ref, best),
            pick(ref, worst),
            0.1,
            tied=tied if known else None,
            drop_ties=drop,
        )

    def each(x):
        return [
            jax.value_and_grad(function, has_aux=True)(x, *flags) for flags in ((False, True), (True, True), (False, False))
        ]

    ((loss, stats), kept), ((dropped_loss, _), dropped), (_, unknown) = run(each, logp)
    assert not kept[1:].any() and kept[0].any()  # exactly zero
    np.testing.assert_array_equal(kept, unknown)  # best == worst cancels by itself when both come from one forward pass
    np.testing.assert_allclose(dropped, 3 * kept, rtol=1e-6)
    np.testing.assert_allclose(stats["tie_rate"], 2 / 3, rtol=1e-6)
    constant = {"dpo": math.log(2), "ipo": 25.0}[kind]  # what a tied pair adds to the loss: h = 0
    np.testing.assert_allclose(dropped_loss, 3 * loss - 2 * constant, rtol=1e-5)


def test_tied_flag_alone_is_enough():
    """Best and worst of a tied prompt through two forward passes may differ in the last bit: the flag still gives zero."""
    c, r, tied = draw(39, 2), draw(40, 2), np.array([True, False])
    to_c, to_r = run(jax.grad(lambda c, r: losses.dpo(c, r, c, 2 * r, 0.1, tied=tied)[0], (0, 1)), c, r)
    assert to_c[0] == 0 and to_r[0] == 0 and to_c[1] != 0
    loss, stats = run(lambda c, r: losses.dpo(c, r, c, r, 0.1, tied=np.array([True, True]), drop_ties=True), c, r)
    assert loss == 0 and stats["tie_rate"] == 1


def test_best_of_n():
    logp = draw(41, 3)
    loss, gradient = run(jax.value_and_grad(lambda x: losses.best_of_n(x)[0]), logp)
    np.testing.assert_allclose(loss, -sum(logp) / 3, rtol=1e-6)
    np.testing.assert_allclose(gradient, [-1 / 3] * 3, rtol=1e-6)


def test_ratio_mode():
    behaviour, recomputed = jnp.array([-1.0, -2.0, -3.0]), jnp.array([-1.5, -2.0, -1.0])
    old, weight = losses.ratio_mode("behaviour", behaviour)
    np.testing.assert_array_equal(old, behaviour)
    assert weight == 1
    old, weight = losses.ratio_mode("recompute", behaviour, recomputed)
    np.testing.assert_array_equal(old, recomputed)
    assert weight == 1
    old, weight = losses.ratio_mode("decoupled", behaviour, recomputed)
    np.testing.assert_array_equal(old, recomputed)
    np.testing.assert_allclose(weight, [math.exp(-0.5), 1, math.exp(2)], rtol=1e-6)
    old, weight = losses.ratio_mode("tis", behaviour, recomputed, cap=4.0)
    np.testing.assert_array_equal(old, recomputed)
    np.testing.assert_allclose(weight, [math.exp(-0.5), 1, 4], rtol=1e-6)
    _, weight = losses.ratio_mode("decoupled", behaviour, recomputed, mask=jnp.array([True, True, False]))
    assert weight[2] == 1


def test_ratio_mode_weights_are_constants():
    def function(x, mode):
        return losses.ratio_mode(mode, jnp.zeros(2), x, cap=100.0)[1].sum()

    for mode in ("decoupled", "tis"):
        assert not run(jax.grad(lambda x, mode=mode: function(x, mode)), np.array([0.5, 1.0])).any()


def test_decoupled_ppo_at_the_start_is_importance_sampling():
    """With logp = prox the gradient is -A w ratio / n: the policy gradient under the behaviour's samples, unclipped."""
    logp, behaviour, adv = draw(42, 3), draw(43, 3), draw(44, 3)

    def function(x):
        old, weight = losses.ratio_mode("decoupled", behaviour, logp)
        return losses.ppo_policy(x, old, adv, jnp.ones(3, bool), weight=weight)[0]

    np.testing.assert_allclose(run(jax.grad(function), logp), -adv * np.exp(logp - behaviour) / 3, rtol=1e-5)


def test_ratio_mode_mistakes():
    with pytest.raises(UserError, match="unknown ratio mode 'old'"):
        losses.ratio_mode("old", jnp.zeros(1))
    with pytest.raises(UserError, match="'tis' needs the log-probs recomputed"):
        losses.ratio_mode("tis", jnp.zeros(1))


def test_losses_over_a_population_and_devices():
    """A vmap over seeds, and rows sharded over devices, change nothing."""
    logp, old, adv = draw(46, 2, 8, 4, scale=0.3), draw(47, 2, 8, 4, scale=0.3), draw(48, 2, 8, 4)
    mask = np.random.default_rng(49).random((8, 4)) < 0.7
    single = [run(lambda *x: losses.ppo_policy(*x, mask)[0], logp[i], old[i], adv[i]) for i in range(2)]
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    ours = jax.jit(jax.vmap(lambda *x: losses.ppo_policy(*x, mask)[0]))(*(jax.device_put(x, spec) for x in (logp, old, adv)))
    np.testing.assert_allclose(ours, single, rtol=1e-5)
