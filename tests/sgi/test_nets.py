"""The SGI networks: sizes, initialisation, normalisation, noise, heads, and which convolutions reach which platform."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgi.nets import layers, losses, sgi_net
from sgi.nets.layers import BatchNorm, NoisyDense, depthwise3x3, minmax
from sgi.nets.sgi_net import SGINet
from sgi.reference.state_dict import variable_shapes
from tests.sgi.random_weights import random_variables
from training.errors import UserError

QUICK = {"xla_backend_optimization_level": 0}  # compiling is what takes time here
SMALL = {"num_actions": 3, "encoder": "S-bn", "width": 0.125, "hidden": 8, "atoms": 11}


def run(function, *args):
    """One program instead of one for each operation."""
    return jax.jit(function, compiler_options=QUICK)(*args)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture
def small():
    """A small net, its variables, and latents [4, 7, 7, C]."""
    net = SGINet(**SMALL)
    return net, random_variables(net), jnp.asarray(np.random.default_rng(1).random((4, 7, 7, 8), np.float32))


@pytest.mark.parametrize(("encoder", "size"), [("S", 77_984), ("M", 136_472), ("L", 893_104)])
def test_encoder_parameters(encoder, size):
    assert count(variable_shapes(SGINet(6, encoder, hidden=8))["params"]["encoder"]) == size


def test_other_parameters():
    params = variable_shapes(SGINet(18, bc=True))["params"]
    assert set(params) == {"encoder", "dynamics", "reward_head", "goal_head", "predictor", "inverse", "bc"}
    assert set(params["goal_head"]) == {"advantage_1", "value_1", "advantage_2", "value_2", "bias", "conditioner"}
    assert count(params["dynamics"]) == 84_352
    # 3x3 convolutions 64 -> 128 -> 128, then 7*7*128 -> 2 streams x (bias, scale) x 512
    assert count(params["goal_head"]["conditioner"]) == (9 * 64 + 1) * 128 + (9 * 128 + 1) * 128 + (49 * 128 + 1) * 2048
    assert count(params["predictor"]) == 1025 * 1024
    assert count(params["inverse"]) == 2049 * 256 + 257 * 18
    assert set(variable_shapes(SGINet(18, goal=False, inverse=False))["params"]) == {
        "encoder",
        "dynamics",
        "reward_head",
        "predictor",
    }


def test_feature_maps():
    """84 -> 28 -> 14 -> 7, and the width factor."""

    def features(x):
        net = sgi_net.ResNet((16, 32, 32), 3, 2)
        return net.init_with_output(jax.random.key(0), x, False, capture_intermediates=True)[1]["intermediates"]

    maps = jax.eval_shape(features, jnp.zeros((2, 84, 84, 4)))
    shapes = [maps[f"group{g}_block{b}"]["__call__"][0].shape for g in range(3) for b in (0, 2)]
    assert shapes == [(2, 28, 28, 16)] * 2 + [(2, 14, 14, 32)] * 2 + [(2, 7, 7, 32)] * 2
    half = variable_shapes(SGINet(6, "S", width=0.5))["params"]["encoder"]
    assert [half[f"conv_{i}"]["bias"].size for i in range(3)] == [16, 32, 32]


def test_unknown_encoder_is_a_user_error():
    with pytest.raises(UserError, match="choose one of S, S-bn, S-same, impala, M, L"):
        variable_shapes(SGINet(6, "resnet"))


def test_outputs_and_precision():
    """With bfloat16 products the parameters, statistics and outputs are still float32."""
    net = SGINet(**SMALL, bc=True, dtype=jnp.bfloat16)
    variables = variable_shapes(net)

    def everything(variables, x, action, key):
        def run(net):
            z = net.encode(x, train=True)
            z_K = net.rollout(z, action, train=True)
            y = net.project(z, "goal")
            goal = sgi_net.flatten(z)
            outputs = [z_K, y, net.predict(y), net.inverse_logits(y, y), net.bc_logits(y)]
            return [*outputs, net.q_log_probs(z, key), net.goal_q_log_probs(z, goal, key)]

        return net.apply(variables, method=run, mutable=["batch_stats"])

    args = jnp.zeros((2, 84, 84, 4)), jnp.zeros((5, 2), jnp.int32), jax.random.key(0)
    outputs, moved = jax.eval_shape(everything, variables, *args)
    assert [o.shape for o in outputs] == [(6, 2, 7, 7, 8), (2, 16), (2, 16), (2, 3), (2, 3), (2, 3, 11), (2, 3, 11)]
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, outputs, moved))} == {jnp.dtype("float32")}


def test_block_initialisation():
    block = sgi_net.InvertedResidual(64, stride=2, expansion=2, depth=9)
    p = run(partial(block.init, train=False), jax.random.key(0), jnp.zeros((1, 2, 2, 32)))["params"]
    for name, std in {"expand": (2 / 64) ** 0.5, "depthwise": (2 / (9 * 64)) ** 0.5, "project": (2 / 64) ** 0.5}.items():
        np.testing.assert_allclose(np.std(p[name]["kernel"]), std * 9**-0.25, rtol=0.1)
    np.testing.assert_allclose(np.std(p["skip"]["kernel"]), (2 / (64 * 4)) ** 0.5, rtol=0.1)
    for name, fan_in in {"expand": 32, "depthwise": 9, "project": 64, "skip": 128}.items():
        assert 0.8 * fan_in**-0.5 < np.abs(p[name]["bias"]).max() <= fan_in**-0.5
    assert not p["project_norm"]["scale"].any()
    assert (p["expand_norm"]["scale"] == 1).all()


def test_head_initialisation():
    head = sgi_net.DuelingHead(num_actions=3, hidden=8, atoms=11, noisy_std=0.5)
    p = run(head.init, jax.random.key(0), jnp.zeros((1, 7, 7, 8)))["params"]
    for name, fan_in, features in (("advantage_1", 392, 8), ("value_1", 392, 8), ("advantage_2", 8, 33), ("value_2", 8, 11)):
        for mean in ("kernel", "bias"):
            assert 0.5 * fan_in**-0.5 < np.abs(p[name][mean]).max() <= fan_in**-0.5
        np.testing.assert_allclose(p[name]["kernel_sigma"], 0.5 * fan_in**-0.5, rtol=1e-6)
        np.testing.assert_allclose(p[name]["bias_sigma"], 0.5 * features**-0.5, rtol=1e-6)
    assert not p["bias"].any()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_depthwise_forms_agree(stride):
    """Nine shifted sums = the grouped convolution, output and both gradients."""
    rng = np.random.default_rng(stride)
    x, w = rng.normal(size=(2, 12, 9, 5)).astype(np.float32), rng.normal(size=(3, 3, 1, 5)).astype(np.float32)

    def value_and_gradients(form, x, w):
        return form(x, w), jax.grad(lambda x, w: jnp.sin(form(x, w)).sum(), (0, 1))(x, w)

    ours = run(partial(value_and_gradients, lambda x, w: depthwise3x3(x, w, stride)), x, w)
    grouped = run(partial(value_and_gradients, lambda x, w: layers._depthwise_by_groups(x, w, stride)), x, w)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours, grouped)


def test_platforms():
    """The TPU program holds the nine plain depthwise convolutions and their gradients; the CPU program no grouped one."""
    net = SGINet(3, "M", width=0.125, hidden=8, atoms=11, goal=False, inverse=False)
    variables = variable_shapes(net)

    def loss(params, stats, x):
        def run(net):
            return net.q_log_probs(net.encode(x, train=True))[:, 0, 0].sum()

        return net.apply({"params": params, "batch_stats": stats}, method=run)

    traced = jax.jit(jax.grad(loss)).trace(variables["params"], variables["batch_stats"], jnp.zeros((2, 84, 84, 4)))

    def convolutions(platform):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
        return len(lines), sum("feature_group_count = 1 " not in line for line in lines)

    assert convolutions("tpu") == (27, 18)  # gradients by the kernel count as 'batch_group_count' convolutions
    assert convolutions("cpu") == (0, 0)


def test_batch_norm_follows_pytorch():
    x = np.random.default_rng(0).normal(2, 4, (3, 2, 2, 5)).astype(np.float32)
    norm, zeros, ones = BatchNorm(), np.zeros(5, np.float32), np.ones(5, np.float32)
    variables = {"params": {"scale": 3 * ones, "bias": zeros}, "batch_stats": {"mean": zeros, "var": ones}}

    def all_uses(variables, x):
        y, moved = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        frozen = norm.apply(variables, x, train=True)
        return y, moved["batch_stats"], frozen, norm.apply({**variables, **moved}, x, train=False)

    y, moved, frozen, running = run(all_uses, variables, x)
    flat = x.reshape(-1, 5)
    expected = 3 * (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 5), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(frozen, y)
    np.testing.assert_allclose(moved["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moved["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    expected = 3 * (flat - moved["mean"]) / np.sqrt(moved["var"] + 1e-5)
    np.testing.assert_allclose(running.reshape(-1, 5), expected, rtol=1e-4, atol=1e-5)


def test_rollout_moves_statistics_at_every_step(small):
    net, variables, z = small
    actions = jnp.array([[0, 1, 2, 0], [1, 1, 0, 2]])

    def both_ways(variables, z):
        step = partial(net.apply, train=True, method="dynamics", mutable=["batch_stats"])
        one, first = step(variables, z, actions[0])
        two, second = step({**variables, **first}, one, actions[1])
        rollout = net.apply(variables, z, actions, train=True, method="rollout", mutable=["batch_stats"])
        return rollout, (jnp.stack([z, one, two]), second), first

    rollout, steps, first = run(both_ways, variables, z)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), rollout, steps)
    mean = [stats["batch_stats"]["dynamics"]["norm"]["mean"] for stats in (variables, first, steps[1])]
    assert np.abs(mean[1] - mean[0]).max() > 1e-3 and np.abs(mean[2] - mean[1]).max() > 1e-3


def test_action_matters(small):
    net, variables, z = small
    same = jnp.broadcast_to(z[:1], (3, *z.shape[1:]))
    after = run(lambda v, z: net.apply(v, z, jnp.array([0, 1, 1]), train=False, method="dynamics"), variables, same)
    assert np.abs(after[0] - after[1]).max() > 1e-2
    np.testing.assert_allclose(after[1], after[2], rtol=1e-5)


def test_minmax_spans_the_unit_interval():
    scale = np.array([1e-2, 1, 10, 100, 1000])[:, None, None, None]
    x = (np.random.default_rng(0).normal(size=(5, 3, 3, 2)) * scale).astype(np.float32)
    exact, ours = (y.reshape(5, -1) for y in run(lambda x: (minmax(x, eps=0.0), minmax(x)), x))
    assert not exact.min(1).any()
    np.testing.assert_allclose(exact.max(1), 1, rtol=2e-7)
    np.testing.assert_allclose(ours, exact, atol=1e-3)


def test_minmax_gradient_goes_to_one_extreme_each():
    x, g = np.array([[3.0, 1.0, 3.0, 2.0, 1.0]]), np.array([[0.3, -1.0, 0.5, 2.0, 0.7]])
    gradient = run(jax.grad(lambda x: (minmax(x, eps=0.0) * g).sum()), x)[0]
    y, spread = np.array([1.0, 0.0, 1.0, 0.5, 0.0]), 2.0
    expected = g[0] / spread
    expected[0] -= (g[0] * y).sum() / spread  # through the first maximum
    expected[1] -= (g[0] * (1 - y)).sum() / spread  # through the first minimum
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_minmax_of_a_constant_is_finite():
    value, gradient = run(jax.value_and_grad(lambda x: minmax(x).sum()), jnp.full((2, 4), 7.0))
    assert value == 0 and np.isfinite(gradient).all()
    assert np.isnan(run(partial(minmax, eps=0.0), jnp.ones((1, 3)))).all()  # what the quirk means


def test_gradient_scale_is_for_the_q_values_only(small, monkeypatch):
    net, variables, z = small

    def gradients(variables, z):
        def gradient(method, *args):
            return jax.grad(lambda z: jnp.sin(net.apply(variables, z, *args, method=method)).sum())(z)

        return gradient("q_log_probs"), gradient("goal_q_log_probs", sgi_net.flatten(z)), gradient("project", "reward")

    scaled, same = run(lambda v, z: (gradients(v, z), layers.scale_gradient(z, 0.7)), variables, z)
    monkeypatch.setattr(sgi_net, "ENCODER_GRADIENT_SCALE", 1.0)
    plain = run(lambda v, z: gradients(v, z), variables, z)
    np.testing.assert_array_equal(same, z)
    for s, p, factor in zip(scaled, plain, (2**-0.5, 2**-0.5, 1), strict=True):
        np.testing.assert_allclose(s, factor * p, rtol=1e-4, atol=1e-7)


def test_projection_is_the_hidden_layer_of_both_streams(small):
    net, variables, z = small
    for name in ("goal", "reward"):
        head = variables["params"][f"{name}_head"]
        streams = [np.asarray(z).reshape(4, -1) @ head[n]["kernel"] + head[n]["bias"] for n in ("advantage_1", "value_1")]
        y = run(lambda v, z, name=name: net.apply(v, z, name, method="project"), variables, z)
        np.testing.assert_allclose(y, np.concatenate(streams, 1), rtol=1e-4, atol=1e-5)


def test_noise(small):
    net, variables, z = small
    z = z.at[1].set(z[0])

    def scores(variables, z):
        def score(key):
            return net.apply(variables, z, key, method="q_log_probs")

        one, two = jax.random.key(1), jax.random.key(2)
        return score(None), score(one), score(two), score(one)

    mean, a, b, again = run(scores, variables, z)
    np.testing.assert_array_equal(a, again)
    assert min(np.abs(x - y).max() for x, y in ((a, b), (a, mean), (b, mean))) > 1e-3
    np.testing.assert_allclose(a[0], a[1], rtol=1e-6)  # one draw for the whole batch
    np.testing.assert_allclose(np.exp(a).sum(-1), 1, rtol=1e-5)


def test_noise_is_factorised():
    layer = NoisyDense(400, 1.0)
    rng = np.random.default_rng(0)
    p = {"kernel": rng.normal(size=(5, 400)), "bias": rng.normal(size=400)}
    p |= {"kernel_sigma": rng.uniform(1, 2, (5, 400)), "bias_sigma": rng.uniform(1, 2, 400)}
    inputs = np.concatenate([np.zeros((1, 5)), np.eye(5)])
    out = np.asarray(run(lambda p: layer.apply({"params": p}, inputs, jax.random.key(0)), p))
    f_out = (out[0] - p["bias"]) / p["bias_sigma"]
    noise = (out[1:] - out[0] - p["kernel"]) / p["kernel_sigma"]
    f_in = np.median(noise / f_out, 1)
    np.testing.assert_allclose(noise, np.outer(f_in, f_out), atol=1e-3)
    gaussian = np.sign(f_out) * f_out**2  # f(e) = sign(e) sqrt|e|
    np.testing.assert_allclose([gaussian.mean(), gaussian.std(), (np.abs(gaussian) < 1).mean()], [0, 1, 0.683], atol=0.12)


def test_noise_is_another_in_every_layer(small):
    net, variables, z = small
    keys = []

    def spy(function, args, kwargs, context):
        if isinstance(context.module, NoisyDense):
            keys.append(jax.random.key_data(args[1]))
        return function(*args, **kwargs)

    def outputs(variables, z):
        with nn.intercept_methods(spy):
            net.apply(variables, z, jax.random.key(0), method="q_log_probs")
            net.apply(variables, z, sgi_net.flatten(z), jax.random.key(0), method="goal_q_log_probs")
        return jnp.stack(keys)

    assert len(np.unique(run(outputs, variables, z), axis=0)) == 8


def test_goal_head_value_stream(small):
    """The value stream learns from its own hidden layer; the quirk drops it, as in the reference."""
    net, variables, z = small

    def gradient(net):
        def score(params):
            out = net.apply({**variables, "params": params}, z, sgi_net.flatten(z), method="goal_q_log_probs")
            return jnp.sin(out).sum()

        return run(jax.grad(score), variables["params"])["goal_head"]["value_1"]["kernel"]

    assert np.abs(gradient(net)).max() > 1e-6
    assert not gradient(SGINet(**SMALL, quirks=True)).any()


def test_training_stays_finite():
    """Jitted updates of S + I + G with BatchNorm and ReLU before the min-max scaling, one observation blank.

    With `x.max()` in place of the argmax form in `minmax` every encoder parameter is NaN after two updates.
    """
    net = SGINet(**SMALL)
    support = jnp.linspace(-10, 10, 11)
    images = jnp.asarray(np.random.default_rng(0).random((2, 4, 84, 84, 4), np.float32)).at[:, 0].set(0)
    action = jnp.array([0, 1, 2, 0])
    variables = random_variables(net)

    def loss(params, stats, key):
        def online(net):
            z = net.encode(images[0], train=True)
            return z, net.project(net.rollout(z, action[None], train=True).reshape(8, *z.shape[1:])).reshape(2, 4, -1)

        def ema(net):
            z = net.encode(images.reshape(8, 84, 84, 4), train=True)
            return z.reshape(2, 4, *z.shape[1:]), net.project(z).reshape(2, 4, -1)

        weights = {"params": params, "batch_stats": stats}
        (z, y), moved = net.apply(weights, method=online, mutable=["batch_stats"])
        z_ema, y_ema = jax.lax.stop_gradient(net.apply(weights, method=ema))
        spr = losses.spr_loss(net.apply(weights, y[1], method="predict"), y_ema[1]).mean()
        inverse = losses.inverse_loss(net.apply(weights, y[0], y_ema[1], method="inverse_logits"), action).mean()
        goals = losses.perturb_goals(key, sgi_net.flatten(z_ema[1]))
        reward = losses.goal_reward(sgi_net.flatten(z_ema[0]), sgi_net.flatten(z_ema[1]), goals, jnp.ones(4), 0.99)
        later = net.apply(weights, z_ema[1], goals, method="goal_q_log_probs")
        target = losses.double_dqn_target(later, later, reward, jnp.full(4, 0.99), support)
        now = losses.at_action(net.apply(weights, z, goals, method="goal_q_log_probs"), action)
        return spr + inverse + losses.cross_entropy(target, now).mean(), moved["batch_stats"]

    @partial(jax.jit, compiler_options=QUICK)
    def update(params, stats, key):
        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, stats, key)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient), stats, value

    params, stats, values = variables["params"], variables["batch_stats"], []
    for step in range(8):
        params, stats, value = update(params, stats, jax.random.key(step))
        values.append(float(value))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, stats)))
    assert values[-1] < values[0]
