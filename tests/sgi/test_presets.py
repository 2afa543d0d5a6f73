"""The agents that others compare with: networks, annealing, resets, values instead of distributions."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgi import finetune
from sgi.agent import rainbow, replay, resets
from sgi.nets.sgi_net import SGINet
from tests.sgi import variants
from training.errors import UserError
from training.method import TrainState
from training.sharding import make_mesh, path_name


def load(variant, **overrides):
    return variants.load(f"finetune:{variant}", **overrides)


def init(net):
    x, action = jnp.zeros((1, 84, 84, 4)), jnp.zeros(1, jnp.int32)
    return jax.jit(lambda: net.init(jax.random.key(0), x, action, method="init_all")["params"])()


def shapes(variant):
    net = rainbow.build_net(load(variant))
    return net, jax.eval_shape(lambda: init(net))


@pytest.mark.parametrize(("variant", "channels", "hidden"), [("bbf", 128, 2048), ("sr_spr", 64, 512), ("der", 64, 512)])
def test_networks_have_the_published_sizes(variant, channels, hidden):
    net, params = shapes(variant)
    z = jax.eval_shape(lambda p, x: net.apply({"params": p}, x, False, method="encode"), params, jnp.zeros((2, 84, 84, 4)))
    assert z.shape == (2, 11, 11, channels)
    assert params["reward_head"]["hidden_1"]["kernel"].shape == (11 * 11 * channels, hidden)
    assert params["predictor"]["kernel"].shape == (hidden, hidden)
    assert "norm" not in params["dynamics"]
    assert ("kernel_sigma" in params["reward_head"]["hidden_1"]) == (variant == "der"), "noise costs memory"
    if variant == "bbf":  # 3 stages of a convolution and two blocks of two
        assert sum(x.ndim == 4 for x in jax.tree.leaves(params["encoder"])) == 15


def test_dopamines_agents_start_as_there():
    """DER and DrQ(eps) do not scale latents; DER's noise is .1/sqrt(inputs), for weights and biases."""
    highest, params = {}, {}
    for variant in ("der", "drq", "sr_spr"):
        net = rainbow.build_net(load(variant, net__width=0.125, net__hidden=8))
        params[variant] = init(net)
        x = jax.random.uniform(jax.random.key(1), (4, 84, 84, 4))
        highest[variant] = net.apply({"params": params[variant]}, x, False, method="encode").max((1, 2, 3))
    np.testing.assert_allclose(highest["sr_spr"], 1, rtol=1e-3)
    assert min(np.abs(highest[variant] - 1).min() for variant in ("der", "drq")) > 0.01
    for name, inputs in (("hidden_1", 11 * 11 * 8), ("value_2", 8)):
        for part in ("kernel_sigma", "bias_sigma"):
            np.testing.assert_allclose(params["der"]["reward_head"][name][part], 0.1 * inputs**-0.5, rtol=1e-6)


def test_one_atom_is_a_value_and_huber_its_loss():
    net = SGINet(3, "S-same", 0.125, "shared", 8, 1, noisy_std=0.0, goal=False, inverse=False)
    x = jax.random.uniform(jax.random.key(1), (4, 84, 84, 4))
    params = init(net)
    z = net.apply({"params": params}, x, False, method="encode")
    q = np.asarray(rainbow.values(net.apply({"params": params}, z, method="q_log_probs")))
    assert q.shape == (4, 3) and np.ptp(q) > 0
    action, returns, discount = jnp.array([0, 1, 2, 0]), jnp.array([0.1, 5.0, -4.0, 0.0]), jnp.array([0.9, 0.0, 0.5, 0.9])
    loss, q_taken, priority = rainbow.td(net, params, params, z, z, z, action, returns, discount, {})
    error = q[np.arange(4), action] - (returns + discount * q.max(1))
    np.testing.assert_allclose(q_taken, q[np.arange(4), action], rtol=1e-6)
    np.testing.assert_allclose(loss, np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(priority, np.abs(error), rtol=1e-5)


def test_horizon_and_discount_are_annealed():
    """BBF: 10 to 3 steps and .97 to .997, exponentially over 10,000 updates; then they stay."""
    agent = load("bbf").agent
    returns = [rainbow.annealed_return(agent, {"since_reset": jnp.int32(n)}) for n in (0, 5000, 10_000, 15_000)]
    assert [int(n) for n, _ in returns] == [10, round(30**0.5), 3, 3]
    np.testing.assert_allclose([g for _, g in returns], [0.97, 1 - (0.03 * 0.003) ** 0.5, 0.997, 0.997], rtol=1e-6)
    assert rainbow.annealed_return(load("spr").agent, {}) == (10, 0.99)


def test_a_shorter_horizon_of_the_same_program():
    rng = np.random.default_rng(0)
    buffer = replay.create(64, (1,), jnp.uint8)
    done = rng.random(30) < 0.2
    items = replay.Transition(
        np.zeros((30, 1), np.uint8), np.zeros(30, np.int32), rng.normal(size=30).astype(np.float32), done, np.zeros(30, bool)
    )
    buffer, slots = replay.add(buffer, jax.tree.map(jnp.asarray, items)), jnp.arange(20)
    for n in (1, 3, 6):
        same = jax.jit(replay.n_step, static_argnums=4)(buffer, slots, jnp.int32(n), 0.9, 6)
        np.testing.assert_allclose(same, replay.n_step(buffer, slots, n, 0.9, n), rtol=1e-5)


SMALL = {"net__width": 0.125, "net__hidden": 16, "batch": 8, "agent__prefill": 40, "agent__capacity": 256, "agent__n_step": 3}


@cache
def four_updates(variant):
    """The config of a small form of a preset, and its states after the prefill and after each of four updates of one a step."""
    options = {
        "spr": {"agent__jumps": 2},
        "der": {"agent__target_every": 3},
        "drq": {},
        "sr_spr": {"agent__jumps": 2, "agent__resets__every": 43, "agent__resets__until": 86},
    }
    config, rng = load(variant, **SMALL, agent__updates=1, **options[variant]), np.random.default_rng(0)

    def play_steps(steps):
        return replay.Transition(
            rng.integers(0, 256, (steps, 84, 84), dtype=np.uint8), rng.integers(0, 3, steps).astype(np.int32),
            rng.integers(-1, 2, steps).astype(np.float32), rng.random(steps) < 0.1, np.zeros(steps, bool),
        )  # fmt: skip

    method = finetune.make(config, make_mesh(1))
    step, states = jax.jit(method.step), [jax.jit(method.init)(jnp.uint32(0))]
    for steps in (40, 1, 1, 1, 1):
        state, metrics = step(states[-1], play_steps(steps), ())
        states.append(state)
        assert all(np.isfinite(x) for x in metrics.values())
    return config, states[1:]


def kernels(params):
    """Weights by their paths, without biases and noise scales."""
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"}


@pytest.mark.parametrize("variant", ["spr", "der", "drq", "sr_spr"])
def test_what_a_preset_learns(variant):
    config, (before, after, *_, last) = four_updates(variant)
    old, new = kernels(before.params), kernels(after.params)
    learned = {name.split("/")[0] for name in old if (old[name] != new[name]).any()}
    assert learned == {"encoder", "reward_head", *(("dynamics", "predictor") if config.agent.spr else ())}
    uniform = (last.extra["replay"].priority[:40] == 1).all()
    assert uniform == (variant == "drq")


def test_targets_that_copy_the_weights():
    """SPR: no Q target, and a self-prediction target of the weights before the update. DrQ(eps): no target at all."""
    _, states = four_updates("spr")
    actual, expected = kernels(states[2].extra["spr_target"]["params"]["encoder"]), kernels(states[1].params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert all("q_target" not in four_updates(variant)[1][0].extra for variant in ("spr", "drq"))


def test_a_target_that_is_copied_now_and_then():
    """The Q target of DER, here copied at every third update."""
    _, states = four_updates("der")
    for state, source in zip(states, [states[0]] * 3 + [states[3]] * 2, strict=True):
        jax.tree.map(np.testing.assert_array_equal, state.extra["q_target"], source.params)


def test_a_reset_in_a_run():
    """SR-SPR, here before the third update: the predictor is new, and the Q target follows at .005 before and after."""
    _, states = four_updates("sr_spr")
    assert [int(state.extra["since_reset"]) for state in states] == [0, 1, 2, 1, 2]
    target, weights = [kernels(s.extra["q_target"]) for s in states], [kernels(s.params) for s in states]
    for i in (1, 2, 4):
        for name, x in target[i].items():
            np.testing.assert_allclose(x, 0.995 * target[i - 1][name] + 0.005 * weights[i][name], atol=1e-7)
    moved = [np.abs(weights[i]["predictor/kernel"] - weights[i - 1]["predictor/kernel"]).max() for i in (2, 3, 4)]
    assert moved[1] > 100 * max(moved[0], moved[2])


@pytest.mark.parametrize("variant", ["tiny_bbf", "drq"])
def test_who_acts_in_training_is_evaluated(variant):
    """The Q target with `target_acts` (SR-SPR, BBF), else the network that learns; the other one is of no use here."""
    config = load(variant)
    net = rainbow.build_net(config)
    good = init(net)
    useless = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), good)
    params, target = (useless, good) if config.agent.target_acts else (good, useless)
    state = TrainState(jnp.int32(0), jnp.uint32(0), params, None, {"stats": {}, "q_target": target})
    stack = jax.random.randint(jax.random.key(1), (6, 84, 84, 4), 0, 256).astype(jnp.uint8)
    z = rainbow.encode_acting(net, {"params": good}, stack)
    best = rainbow.values(net.apply({"params": good}, z, method="q_log_probs")).argmax(-1)
    assert (best != 0).any()  # what NaN would choose
    chosen = rainbow.evaluation_policy(net, config.agent, 0.0)(state, stack, jax.random.key(2))
    np.testing.assert_array_equal(chosen, best)
    greedy = config.agent.copy_and_resolve_references()
    with greedy.unlocked():
        greedy.epsilon = (0.0, 0.0)
    np.testing.assert_array_equal(rainbow.behaviour(net, greedy)(state, stack)[0], best)


def test_when_resets_are_due():
    steps = np.arange(100_001)
    assert steps[resets.due(steps, 20_000, 100_000)].tolist() == [0, 20_000, 40_000, 60_000, 80_000]


def test_a_reset_shrinks_the_encoder_and_renews_the_rest():
    config = load("tiny_bbf")
    method = finetune.make(config, make_mesh(1))
    old = jax.jit(method.init)(jnp.uint32(0))
    old = old.replace(opt_state=jax.tree.map(lambda x: x + 1, old.opt_state), extra={**old.extra, "since_reset": jnp.int32(7)})
    doubled = jax.tree.map(lambda x: 2 * x + 1, old.extra["q_target"])  # another network than the one that learns
    old = old.replace(extra={**old.extra, "q_target": doubled})
    keys = []

    def threes(key):
        keys.append(jax.random.key_data(key).tolist())
        return jax.tree.map(lambda x: jnp.full_like(x, 3.0), old.params)

    tx = finetune.optim.build(**config.optim)
    new = resets.reset_weights(old, config.agent.resets, threes, tx)
    for path, x in jax.tree_util.tree_leaves_with_path(new.params):
        before = old.params
        for key in path:
            before = before[key.key]
        survives = path[0].key in resets.KEPT
        np.testing.assert_allclose(x, 0.5 * before + 1.5 if survives else np.full_like(x, 3.0), rtol=1e-6)
    for path, x in jax.tree_util.tree_leaves_with_path(new.opt_state):
        assert (np.asarray(x) == (1 if "kept/" in path_name(path) else 0)).all(), path_name(path)
    assert int(new.extra["since_reset"]) == 0
    for name, before in old.extra["q_target"].items():
        for x, y in zip(jax.tree.leaves(new.extra["q_target"][name]), jax.tree.leaves(before), strict=True):
            np.testing.assert_allclose(x, 0.5 * y + 1.5 if name in resets.KEPT else np.full_like(x, 3.0), rtol=1e-6)
    assert len(keys) == 2 and keys[0] != keys[1], "random weights of its own"
    jax.tree.map(np.testing.assert_array_equal, new.extra["spr_target"]["params"]["encoder"], new.extra["q_target"]["encoder"])


def test_mistakes_have_one_line():
    for variant, overrides, says in (
        ("spr", {"agent__target_acts": True}, "needs a target of its own"),
        ("bbf", {"sources__init": "somewhere"}, "net.head 'shared' has no pretrained form"),
        ("bbf", {"net__head": "triple"}, "head is 'triple'"),
        ("none", {"agent__resets__every": 5000}, "needs an optimiser group 'kept'"),
    ):
        with pytest.raises(UserError, match=says):
            config = load(variant, **overrides)
            finetune.check(config, make_mesh(1))
            jax.eval_shape(lambda config=config: init(rainbow.build_net(config)))
