"""What pretraining and fine-tuning do around their losses: targets, learning rates, transfer, populations, episodes' ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgi import finetune, pretrain
from sgi.agent.transfer import transfer
from tests.sgi.variants import load
from training import optim, population
from training.errors import UserError
from training.sharding import make_mesh
from training.testing import train


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    return train(load("pretrain:tiny"), workdir, stop_after=1), workdir


def fresh(config):
    """The state before the first step, and its method."""
    method = population.make(config, make_mesh(1))
    return jax.jit(method.init)(jnp.uint32(config.seed)), method


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b)))


def test_targets_after_one_update(pretrained):
    before, after = fresh(load("pretrain:tiny"))[0], pretrained[0]
    target, online = after.extra["spr_target"]["params"], before.params  # of before the update, which equals the initial target
    for name in ("advantage_1", "value_1"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), target["goal_head"][name], online["goal_head"][name]
        )
    kernel = lambda state, tree: np.asarray(tree["encoder"]["conv_2"]["kernel"])  # noqa: E731
    old, new = kernel(before, before.params), kernel(after, after.params)
    assert np.abs(new - old).max() > 0
    # The EMA of the SPR target has not seen the update yet; the Q target has, at rate 0.01.
    np.testing.assert_allclose(kernel(after, target), old, atol=1e-7)
    np.testing.assert_allclose(kernel(after, after.extra["q_target"]["params"]), 0.99 * old + 0.01 * new, atol=1e-7)


def test_later_targets_follow_with_a_delay_of_one(tmp_path):
    one = train(load("pretrain:tiny"), tmp_path, stop_after=1)
    two = train(load("pretrain:tiny"), tmp_path, stop_after=2)
    kernel = lambda tree: np.asarray(tree["encoder"]["conv_0"]["kernel"])  # noqa: E731
    expected = 0.99 * kernel(one.extra["spr_target"]["params"]) + 0.01 * kernel(one.params)
    np.testing.assert_allclose(kernel(two.extra["spr_target"]["params"]), expected, atol=1e-7)


def test_learning_rates_of_the_groups():
    config = load("finetune:sgi", net__encoder="S")
    state = jax.eval_shape(finetune.make(config, make_mesh(1)).init, jnp.uint32(0))
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), state.params)
    tx = optim.build(**config.optim)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    moved = {
        "encoder": updates["encoder"]["conv_0"]["kernel"],
        "first": updates["reward_head"]["advantage_1"]["kernel"],
        "dynamics": updates["dynamics"]["conv_1"]["kernel"],
        "second": updates["reward_head"]["value_2"]["kernel"],
        "predictor": updates["predictor"]["kernel"],
    }
    rates = {k: float(-v.ravel()[0]) for k, v in moved.items()}
    for name, rate in {"encoder": 1e-6, "first": 3e-5, "dynamics": 1e-4, "second": 1e-4, "predictor": 1e-4}.items():
        assert abs(rates[name] / rate - 1) < 1e-3, (name, rates[name])


def test_transfer(pretrained):
    before, workdir = pretrained
    config = load("finetune:tiny", seed=7)
    state = fresh(config)[0]
    moved = transfer(state, str(workdir), game="Pong", first_layers="goal")
    for name in ("encoder", "dynamics", "predictor"):
        assert same(moved.params[name], before.params[name]), name
    head, goal, start = moved.params["reward_head"], before.params["goal_head"], state.params["reward_head"]
    for name in ("advantage_1", "value_1"):
        means = [k for k in head[name] if "sigma" not in k]
        assert means and all(same(head[name][k], goal[name][k]) for k in means)
        sigmas = [k for k in head[name] if "sigma" in k]
        assert sigmas and all(same(head[name][k], start[name][k]) and float(jnp.abs(head[name][k]).min()) > 0 for k in sigmas)
        target = moved.extra["spr_target"]["params"]["reward_head"][name]
        saved = before.extra["spr_target"]["params"]["goal_head"][name]
        assert all(same(target[k], saved[k]) for k in means)
    assert same(head["advantage_2"], start["advantage_2"]) and same(moved.opt_state, state.opt_state)
    assert same(moved.extra["stats"], {k: before.extra["stats"][k] for k in moved.extra["stats"]})
    # Behaviour cloning trained all of the reward head.
    cloned = transfer(state, str(workdir), game="Pong", first_layers="reward").params["reward_head"]
    for name in ("advantage_1", "value_1", "advantage_2", "value_2"):
        means = [k for k in cloned[name] if "sigma" not in k]
        assert all(same(cloned[name][k], before.params["reward_head"][name][k]) for k in means)
    none = transfer(state, str(workdir), game="Pong", first_layers="none").params["reward_head"]
    assert same(none, start)


def test_weights_of_another_game_are_taken_with_a_warning(pretrained, caplog):
    state = fresh(load("finetune:tiny", env__game="Pong"))[0]
    with caplog.at_level("INFO"):
        transfer(state, str(pretrained[1]), game="Qbert", first_layers="goal")
    lines = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "training.runs"]
    assert lines == [
        ("INFO", f"weights of step 1 of 6 (stopped), Pong, from {pretrained[1]}"),
        ("WARNING", f"{pretrained[1]} is unfinished: step 1 of 6"),
        ("WARNING", f"{pretrained[1]} was trained on Pong, this run is on Qbert"),
    ]


def test_transfer_of_another_network_is_refused(pretrained):
    state = fresh(load("finetune:tiny", net__hidden=8))[0]
    with pytest.raises(UserError, match=r"shape .* there and .* here; config\.net and the game must be those of pretraining"):
        transfer(state, str(pretrained[1]), game="Pong", first_layers="goal")
    with pytest.raises(UserError, match="train there first"):
        transfer(state, "/nonexistent", game="Pong", first_layers="goal")


LONG = [pytest.param(spec, marks=pytest.mark.long) for spec in ("finetune:tiny_bbf", "curiosity:tiny")]


@pytest.mark.parametrize("spec", ["pretrain:tiny", "finetune:tiny", *LONG])
def test_population_equals_single_runs(tmp_path, spec):
    many = train(load(spec, population=2, mesh__data=2), tmp_path / "many", stop_after=3)
    single = train(load(spec, seed=1), tmp_path / "single", stop_after=3)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(single), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(x, y[1], rtol=2e-4, atol=2e-4, err_msg=str(path))


def test_frozen_encoder_does_not_move(tmp_path):
    config = load("finetune:tiny_cached")
    before, after = fresh(config)[0], train(config, tmp_path, stop_after=3)
    assert same(before.params["encoder"], after.params["encoder"]) and same(before.extra["stats"], after.extra["stats"])
    assert not same(before.params["reward_head"], after.params["reward_head"])
    assert after.extra["replay"].observation.dtype == jnp.float16


def test_what_cannot_be_cached():
    with pytest.raises(UserError, match=r"needs agent\.freeze_encoder=True"):
        population.make(load("finetune:tiny", agent__cache_features=True), make_mesh(1))


def test_replay_of_a_run_is_the_game(tmp_path):
    """The prefill and every later step are stored once, in order, with an episode's first frame marked."""
    state = train(load("finetune:tiny"), tmp_path)
    replay = state.extra["replay"]
    assert int(replay.count) == 40 + 5 and bool(replay.start[0]) and not replay.start[1:40].any()
    assert len({np.asarray(f).tobytes() for f in replay.observation[:45]}) > 20  # the game moves


def test_unknown_method_is_a_users_mistake():
    config = load("pretrain:tiny").copy_and_resolve_references()
    with config.unlocked():
        config.method = "sgi.nothing"
    with pytest.raises(UserError, match="is not a module with make"):
        population.make(config, make_mesh(1))


def test_warm_start_is_taken_once(pretrained, tmp_path):
    """A run that starts from another and is resumed equals a straight one: the weights are not loaded again."""
    config = load("finetune:tiny", sources__init=pretrained[1])
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=3)
    assert same(whole, train(config, tmp_path / "parts"))
    assert not same(whole.params, train(load("finetune:tiny"), tmp_path / "none").params)


VARIATIONS = {
    "S": {"loss__goal": 0.0, "loss__inverse": 0.0},
    "G, all goals": {"loss__spr": 0.0, "loss__inverse": 0.0, "loss__goal_all_to_all": True},
    "I": {"loss__goal": 0.0, "loss__spr": 0.0},
    "quirks": {"reference_quirks": True, "loss__goal_distance": "squared"},
    "linear cloning": {
        "loss__goal": 0.0,
        "loss__spr": 0.0,
        "loss__inverse": 0.0,
        "loss__bc": 1.0,
        "loss__bc_from_values": False,
    },
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_loss_can_stand_alone(name):
    config = load("pretrain:tiny", **VARIATIONS[name])
    state, method = fresh(config)
    net = pretrain.build_net(config)
    assert (net.goal, net.inverse, net.bc) == tuple(bool(config.loss[k]) for k in ("goal", "inverse", "bc"))
    new, metrics = jax.jit(method.step)(state, method.stream(()).next(), ())
    assert all(np.isfinite(v) for v in metrics.values())
    terms = {"spr": "S", "goal": "G", "inverse": "I", "bc": "cloning"}
    assert {k for k in terms if k in metrics} >= {k for k in terms if config.loss[k]}
    expected = sum(config.loss[k] * float(metrics[k]) for k in terms if config.loss[k])
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert not same(new.params["encoder"], state.params["encoder"])


@pytest.mark.parametrize("variant", ["finetune:tiny", "curiosity:tiny"])
def test_streams_close_their_games(variant):
    stream = fresh(load(variant))[1].stream(())
    assert stream.report() == {}
    for _ in range(2):
        stream.close()
    assert stream._env.closed
