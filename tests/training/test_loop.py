"""The loop on a toy method: exact resume, stopping, non-finite losses, metrics, populations, meshes."""

import json
import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training import loop, metrics, population
from training.errors import UserError
from training.method import Eval
from training.sharding import make_mesh
from training.testing import make, toy_config, train


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    return train(toy_config(mesh__data=1), workdir), workdir


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_resumed_run_equals_straight_run(straight, tmp_path, stop):
    train(toy_config(mesh__data=1), tmp_path, stop_after=stop)
    assert_same(straight[0], train(toy_config(mesh__data=1), tmp_path))


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_sharded_run_equals_one_device(straight, tmp_path, mesh):
    data, fsdp, tensor = mesh
    state = train(toy_config(mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor), tmp_path)
    assert_close(straight[0], state)
    if fsdp > 1:
        assert "fsdp" in state.params["hidden"].sharding.spec


def test_restore_onto_another_mesh(straight, tmp_path):
    train(toy_config(mesh__data=2, mesh__fsdp=4), tmp_path, stop_after=5)
    assert_close(straight[0], train(toy_config(mesh__data=1, mesh__fsdp=2), tmp_path))


def test_accumulation_averages_gradients(tmp_path):
    """Without dropout, four quarters of a batch give the update and the gradient norm of the whole."""
    whole = train(toy_config(mesh__data=1, dropout=0.0), tmp_path / "whole")
    parts = train(toy_config(mesh__data=1, dropout=0.0, accumulate=4), tmp_path / "parts")
    assert int(parts.extra["seen"]) == 48 and int(whole.extra["seen"]) == 12
    assert_close(whole.params, parts.params)
    norms = [
        [r["train/grad_norm"] for r in metrics.read_rows(tmp_path / n / "metrics.jsonl") if "train/loss" in r]
        for n in ("whole", "parts")
    ]
    np.testing.assert_allclose(*norms, rtol=1e-4)


def test_ema_after_two_steps(tmp_path):
    one = train(toy_config(mesh__data=1), tmp_path, stop_after=1)
    two = train(toy_config(mesh__data=1), tmp_path, stop_after=2)
    first, second = np.asarray(one.params["out"]), np.asarray(two.params["out"])  # `out` starts at 0
    np.testing.assert_allclose(two.extra["ema"]["out"], 0.9 * 0.1 * first + 0.1 * second, rtol=1e-5)


def test_population_equals_single_runs(straight, tmp_path):
    many = train(toy_config(mesh__data=2, mesh__fsdp=2, population=4), tmp_path / "population")
    assert many.params["out"].sharding.spec[0] == ("data", "fsdp")
    assert_close(straight[0], jax.tree.map(lambda x: x[0], many), 1e-4)
    other = train(toy_config(mesh__data=1, seed=3), tmp_path / "single")
    assert_close(other, jax.tree.map(lambda x: x[3], many), 1e-4)
    rows = metrics.read_rows(tmp_path / "population" / "metrics.jsonl")
    assert len(rows[-1]["eval/norm"]) == 4


def test_population_resumes_exactly(tmp_path):
    config = toy_config(mesh__data=2, population=2)
    whole = train(config, tmp_path / "a")
    train(config, tmp_path / "b", stop_after=5)
    assert_same(whole, train(config, tmp_path / "b"))


def test_metrics_rows_are_complete_and_not_repeated_after_a_resume(tmp_path):
    train(toy_config(mesh__data=1, checkpoint__every=4), tmp_path, stop_after=7)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 9, "train/loss": 1.0}\n{"step": 1')  # rows of a killed run, the last one torn
    train(toy_config(mesh__data=1), tmp_path)
    steps = [row["step"] for row in metrics.read_rows(path) if "train/loss" in row]
    assert steps == list(range(1, 13))
    assert [row["step"] for row in metrics.read_rows(path) if "eval/norm" in row] == [6, 12]


def test_checkpoints_kept(tmp_path):
    train(toy_config(mesh__data=1, checkpoint__every=1, checkpoint__keep_every=5), tmp_path)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [5, 10, 11, 12]


def test_non_finite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(metrics.NonFiniteLoss, match="at step 6"):
        train(toy_config(mesh__data=1, explode_at=6), tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4"]
    last = metrics.read_rows(tmp_path / "metrics.jsonl")[-1]
    assert last["step"] == 6 and np.isnan(last["train/loss"])
    assert json.loads((tmp_path / "run.json").read_text())["status"].startswith("failed")


def test_non_finite_gradient_is_not_saved(tmp_path):
    """A finite loss with a broken gradient, at a step that saves: the parameters are gone, so nothing may be written."""
    config = toy_config(mesh__data=1)
    mesh = make_mesh(1)
    method = make(config, mesh)

    def step(state, batch, consts):
        new, values = method.step(state, batch, consts)
        broken = new.step == 8
        params = jax.tree.map(lambda x: jnp.where(broken, jnp.nan, x), new.params)
        return new.replace(params=params), {**values, "grad_norm": jnp.where(broken, jnp.nan, values["grad_norm"])}

    with pytest.raises(metrics.NonFiniteLoss, match="grad_norm is nan at step 8"):
        loop.run(config, method._replace(step=step), mesh, str(tmp_path))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4"]


def test_sigterm_saves_and_leaves_normally(straight, tmp_path):
    config = toy_config(mesh__data=1, checkpoint__every=0)
    mesh = make_mesh(1)
    method = make(config, mesh)

    def signalled(consts):
        stream = method.stream(consts)
        draws, original = [], stream.next

        def next_then_signal(state=None):
            draws.append(1)
            if len(draws) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(state)

        stream.next = next_then_signal
        return stream

    state = loop.run(config, method._replace(stream=signalled), mesh, str(tmp_path))
    assert int(state.step) == 5
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "preempted"
    assert_same(straight[0], train(config, tmp_path))


def test_another_config_in_the_same_workdir_is_refused(tmp_path):
    train(toy_config(mesh__data=1), tmp_path, stop_after=2)
    with pytest.raises(UserError, match=r"optim\.lr: 0\.01 there, 0\.5 here"):
        train(toy_config(mesh__data=1, optim__lr=0.5), tmp_path)
    assert int(train(toy_config(mesh__data=1, steps=3), tmp_path).step) == 3  # the length of a run may change


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="pip install tensorboardX"):
        train(toy_config(mesh__data=1, log__tensorboard=True), tmp_path)


def test_a_url_is_no_workdir():
    with pytest.raises(UserError, match="is a URL"):
        train(toy_config(mesh__data=1), "gs://bucket/run")


def test_no_retracing_after_the_first_step(tmp_path):
    config = toy_config(mesh__data=1)
    mesh = make_mesh(1)
    method = make(config, mesh)
    traces = []
    counted = method._replace(step=lambda *args: (traces.append(1), method.step(*args))[1])
    loop.run(config, counted, mesh, str(tmp_path))
    assert len(traces) == 1


class Watched:
    """A stream that counts its closings, and reports a number."""

    def __init__(self, inner):
        self._inner, self.closed = inner, 0
        for name in ("next", "reads", "get_state", "set_state"):
            setattr(self, name, getattr(inner, name))

    def close(self):
        self.closed += 1
        self._inner.close()

    def report(self):
        return {"time/games": 0.25}


@pytest.mark.parametrize("explode_at", [0, 6])
def test_the_stream_is_closed_also_after_a_failure_and_its_numbers_are_logged(tmp_path, explode_at):
    config, mesh, opened = toy_config(mesh__data=1, explode_at=explode_at), make_mesh(1), []
    method = make(config, mesh)

    def open_watched(consts):
        opened.append(Watched(method.stream(consts)))
        return opened[0]

    try:
        loop.run(config, method._replace(stream=open_watched), mesh, str(tmp_path))
    except metrics.NonFiniteLoss:
        assert explode_at
    assert [stream.closed for stream in opened] == [1]
    rows = [row for row in metrics.read_rows(tmp_path / "metrics.jsonl") if "train/loss" in row]
    assert all(row["time/games"] == 0.25 and row["time/data"] >= 0 for row in rows)


def test_a_stream_that_fails_to_close_does_not_keep_a_checkpoint_from_being_written(tmp_path):
    config, mesh = toy_config(mesh__data=1), make_mesh(1)
    method = make(config, mesh)

    def open_broken(consts):
        stream = Watched(method.stream(consts))
        stream.close = lambda: 1 / 0
        return stream

    with pytest.raises(ZeroDivisionError):
        loop.run(config, method._replace(stream=open_broken), mesh, str(tmp_path))
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "done"
    assert (tmp_path / "digests" / "12.json").exists()


def test_consts_are_made_once_and_handed_to_stream_step_warm_and_evaluations(tmp_path):
    config, mesh, seen = toy_config(mesh__data=1, steps=3), make_mesh(1), []
    method = make(config, mesh)

    def consts():
        seen.append("made")
        return {"scale": jnp.float32(2)}

    def stream(consts):
        seen.append(("stream", float(consts["scale"])))
        return method.stream(consts)

    def warm(state, consts):
        seen.append(("warm", float(consts["scale"])))
        return state

    def step(state, batch, consts):
        state, numbers = method.step(state, batch, consts)
        return state, {**numbers, "scale": consts["scale"]}

    def evaluate(state, consts, step):
        seen.append(("eval", float(consts["scale"])))
        return {}

    changed = {"consts": consts, "stream": stream, "warm": warm, "step": step, "evals": {"eval": Eval(0, evaluate)}}
    loop.run(config, method._replace(**changed), mesh, str(tmp_path))
    assert seen == ["made", ("stream", 2.0), ("warm", 2.0), ("eval", 2.0)]
    assert metrics.read_rows(tmp_path / "metrics.jsonl")[0]["train/scale"] == 2.0


def test_sizes_of_the_data_fill_in_zeros_and_contradict_others(monkeypatch):
    monkeypatch.setattr("training.testing.sizes", lambda config: {"width": 48, "data.words": 7}, raising=False)
    config = toy_config()
    with config.unlocked():
        config.width, config.data = 0, {"words": 7}
    assert (population.measured(config).width, config.width) == (48, 0)
    with config.unlocked():
        config.width = 32
    with pytest.raises(UserError, match=r"config\.width is 32, but the data have 48"):
        population.measured(config)
