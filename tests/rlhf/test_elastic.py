"""Elastic Reset: closed forms, schedules, what is left alone, and buffers under donation."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import elastic
from training import config as configs
from training.errors import UserError

CONFIG = Path(__file__).parents[2] / "configs" / "rlhf" / "rl.py"


def params():
    return {"policy": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([1.0, -1.0])}, "value": {"w": jnp.array([5.0])}}


def filled(value, tree):
    return jax.tree.map(lambda x: jnp.full_like(x, value), tree)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_closed_form():
    """SGD on a constant gradient g: theta_t = theta_0 - lr g t, so theta_bar_n = theta_0 - lr g sum_t (1 - eta) eta^(n-t) t."""
    eta, lr, n, g = 0.9, 0.5, 7, 2.0
    theta = {"w": jnp.array([1.0, 3.0])}
    tx = optax.sgd(lr)
    opt_state, ema, start = tx.init(theta), elastic.snapshot(theta), elastic.snapshot(theta)

    @jax.jit
    def step(theta, ema, opt_state):
        updates, opt_state = tx.update({"w": jnp.full(2, g)}, opt_state, theta)
        theta = optax.apply_updates(theta, updates)
        return theta, elastic.ema_update(ema, theta, eta), opt_state

    for _ in range(n):
        theta, ema, opt_state = step(theta, ema, opt_state)
    moved = lr * g * sum((1 - eta) * eta ** (n - t) * t for t in range(1, n + 1))
    np.testing.assert_allclose(ema["w"], [1 - moved, 3 - moved], rtol=1e-5)
    np.testing.assert_allclose(theta["w"], [1 - lr * g * n, 3 - lr * g * n], rtol=1e-6)
    back, average, _ = elastic.reset(theta, ema, start, opt_state, True)
    equal(back, ema)
    equal(average, start)


def test_adam_state_survives_bit_by_bit():
    theta, tx = params(), optax.adam(0.1)
    opt_state = tx.init(theta)
    updates, opt_state = tx.update(filled(0.3, theta), opt_state, theta)
    theta = optax.apply_updates(theta, updates)
    start = params()
    back, ema, after = jax.jit(elastic.reset)(theta, filled(7.0, theta), start, opt_state, jnp.array(True))
    equal(back, filled(7.0, theta))
    equal(ema, start)
    equal(after, opt_state)
    assert int(after[0].count) == 1


@pytest.mark.parametrize(
    ("to", "params_at", "ema_at"), [("elastic", 2.0, 3.0), ("ema", 2.0, 2.0), ("init", 3.0, 3.0), ("none", 1.0, 2.0)]
)
def test_targets(to, params_at, ema_at):
    now, ema, init = (filled(x, params()) for x in (1.0, 2.0, 3.0))
    function = jax.jit(partial(elastic.reset, to=to))
    theta, average, _ = function(now, ema, init, (), True)
    equal((theta, average), (filled(params_at, now), filled(ema_at, now)))
    theta, average, _ = function(now, ema, init, (), False)
    equal((theta, average), (now, ema))


def test_unknown_target():
    with pytest.raises(UserError, match="unknown reset 'soft'"):
        elastic.reset(params(), params(), params(), (), True, to="soft")


def test_policy_only():
    """The value network is neither averaged nor reset."""
    now = filled(1.0, params())
    start = {"policy": filled(3.0, now["policy"])}
    ema = jax.jit(elastic.ema_update)({"policy": filled(2.0, now["policy"])}, now, 0.75)
    equal(ema, {"policy": filled(1.75, now["policy"])})
    theta, average, _ = elastic.reset(now, ema, start, (), True)
    equal(theta, {"policy": filled(1.75, now["policy"]), "value": now["value"]})
    equal(average, start)


def test_reset_critic():
    """A start that also holds the value network sends it back there, from no average of its own."""
    now, start = filled(1.0, params()), filled(3.0, params())
    ema = {"policy": filled(2.0, now["policy"])}
    for to, policy, average_at in (("elastic", 2.0, 3.0), ("ema", 2.0, 2.0), ("init", 3.0, 3.0)):
        theta, average, _ = elastic.reset(now, ema, start, (), True, to=to)
        equal(theta, {"policy": filled(policy, now["policy"]), "value": start["value"]})
        equal(average, {"policy": filled(average_at, now["policy"])})


def test_keys_that_the_parameters_lack():
    with pytest.raises(UserError, match=r"averages \['lora'\]"):
        elastic.ema_update({"lora": jnp.ones(2)}, params(), 0.9)
    with pytest.raises(UserError, match=r"averages \['policy'\]"):
        elastic.reset(params(), {"policy": params()["policy"]}, {}, (), True)


def test_restarted_optimiser_keeps_the_schedule():
    theta = params()
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(optax.linear_schedule(0.1, 0.0, 10)),
    )
    fresh = tx.init(theta)
    _, used = tx.update(filled(0.3, theta), fresh, theta)
    _, _, after = jax.jit(lambda s, f: elastic.reset(theta, theta, theta, s, True, fresh_opt_state=f))(used, fresh)
    equal(after[1], fresh[1])  # moments and their count
    assert int(used[1].count) == 1 and np.asarray(used[1].mu["policy"]["w"]).any()
    assert int(after[2].count) == 1  # the learning rate goes on falling
    _, _, unchanged = jax.jit(lambda s, f: elastic.reset(theta, theta, theta, s, False, fresh_opt_state=f))(used, fresh)
    equal(unchanged, used)


def test_average_is_float32():
    theta = {"w": jnp.full(2, 1.0, jnp.bfloat16), "n": jnp.array([3])}
    ema = elastic.snapshot(theta)
    assert ema["w"].dtype == jnp.float32 and ema["n"].dtype == jnp.int32
    theta = {"w": jnp.full(2, 1.5, jnp.bfloat16), "n": jnp.array([4])}
    ema = elastic.ema_update(ema, theta, 0.995)
    np.testing.assert_allclose(ema["w"], 1.0025, rtol=1e-6)  # bfloat16 would still read 1
    np.testing.assert_array_equal(ema["n"], [4])
    back, _, _ = elastic.reset(theta, ema, elastic.snapshot(theta), (), True)
    assert back["w"].dtype == jnp.bfloat16
    with pytest.raises(UserError, match="average of the weights is bfloat16"):
        elastic.ema_update(theta, theta, 0.995)


def test_due():
    index = np.arange(7)
    np.testing.assert_array_equal(jax.jit(lambda i: elastic.due(i, 3))(index), [0, 0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(jax.jit(lambda i: elastic.due(i, 3, True))(index), [1, 0, 0, 1, 0, 0, 1])
    assert not np.asarray(elastic.due(index, 0, True)).any()
    assert bool(elastic.due(6, 3)) and not bool(elastic.due(0, 3))
    with pytest.raises(UserError, match="every -1 iterations"):
        elastic.due(0, -1)


def published(variant):
    """The published settings, as the configs have them."""
    return configs.load(f"{CONFIG}:{variant}").elastic


def test_golden_schedules():
    """After which iterations, counted from 1: IMDB's 50, StackLLaMA's 600."""
    resets = lambda o, n: (np.flatnonzero(elastic.due(np.arange(n), o.every, o.at_zero)) + 1).tolist()  # noqa: E731
    assert resets(published("imdb_elastic"), 50) == [1, 18, 35]
    assert resets(published("qa_elastic"), 600) == [261, 521]


@pytest.mark.parametrize(
    ("variant", "cadence", "updates", "weight"),
    [
        ("imdb_elastic", "iteration", 17, 0.082),
        ("qa_elastic", "epoch", 260, 0.728),
        ("qa_elastic", "epoch", 1040, 0.995),
        ("small_imdb_elastic", "step", 200, 0.866),
        ("small_imdb_elastic_often", "step", 100, 0.867),
    ],
)
def test_weight_of_new_policies_in_the_average(variant, cadence, updates, weight):
    """How far the EMA goes between two resets: one update an IMDB iteration, one to four a StackLLaMA batch."""
    options = published(variant)
    assert options.cadence == cadence
    ema, theta = {"w": jnp.zeros(1)}, {"w": jnp.ones(1)}
    move = lambda _, e: elastic.ema_update(e, theta, options.decay)  # noqa: E731
    ema = jax.jit(lambda ema: jax.lax.fori_loop(0, updates, move, ema))(ema)
    np.testing.assert_allclose(ema["w"], weight, atol=6e-4)


def pointers(tree):
    return {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)}


@pytest.mark.parametrize("to", ["elastic", "ema", "init"])
@pytest.mark.parametrize("where", ["traced", "constant", "eager"])
def test_buffers_survive_donation(to, where):
    """A donating step after a reset must find the start alive, and two different buffers for parameters and average."""
    theta = params()
    start, ema = elastic.snapshot(theta), elastic.snapshot(theta)
    assert len(pointers([theta, start, ema])) == 9

    def reset(theta, ema, start, do):
        return elastic.reset(theta, ema, start, (), do, to=to)[:2]

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(theta, ema):
        theta = jax.tree.map(lambda x: x - 1, theta)
        return theta, elastic.ema_update(ema, theta, 0.5)

    @partial(jax.jit, donate_argnums=(0, 1), static_argnums=(3,) if where == "constant" else ())
    def step_and_reset(theta, ema, start, do):
        return reset(*step(theta, ema), start, do)

    moved, average = 0.0, 0.0  # the same, for one number that starts at 0
    for do in (False, True, True, False, True):
        if where == "eager":
            theta, ema = reset(*step(theta, ema), start, do)
        else:
            theta, ema = step_and_reset(theta, ema, start, do)
        assert len(pointers([theta, ema, start])) == 9
        moved -= 1
        average = (average + moved) / 2
        if do:
            moved, average = {"elastic": (average, 0.0), "ema": (average, average), "init": (0.0, 0.0)}[to]
        equal(theta, jax.tree.map(lambda x, moved=moved: x + moved, params()))
        equal(ema, jax.tree.map(lambda x, average=average: x + average, params()))
    equal(start, params())


def test_snapshot_inside_jit_is_a_copy():
    theta = params()
    start, ema = jax.jit(lambda x: (elastic.snapshot(x), elastic.snapshot(x)))(theta)
    assert len(pointers([theta, start, ema])) == 9


def test_sharded():
    """A reset keeps the parameters' sharding and mixes no rows."""
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    theta = {"w": jax.device_put(np.arange(8.0, dtype=np.float32), sharding)}
    start = elastic.snapshot(theta)
    assert start["w"].sharding == sharding
    ema = jax.jit(elastic.ema_update)(start, jax.tree.map(lambda x: 2 * x, theta), 0.5)
    back, _, _ = jax.jit(elastic.reset)(theta, ema, start, (), jnp.array(True))
    assert back["w"].sharding.is_equivalent_to(sharding, 1)
    np.testing.assert_allclose(back["w"], 1.5 * np.arange(8))
