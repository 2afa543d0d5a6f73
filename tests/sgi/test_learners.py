"""What runs played, as data: a learner's own transitions to the bit, a trained agent's games."""

import numpy as np
import pytest

from sgi.agent import learners
from sgi.atari.recorder import Recorder
from sgi.collect import collect_run, main
from sgi.recordings.dqn_replay import open_store
from sgi.recordings.source import open_data
from tests.sgi.variants import load
from training.errors import UserError
from training.runs import Run
from training.testing import train


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The workdir of a tiny agent that was stopped and resumed in between."""
    workdir = tmp_path_factory.mktemp("tuned")
    config = load("finetune:tiny", env__game="Breakout", agent__prefill=200, env__sticky=0.25)
    train(config, workdir, stop_after=3)
    train(config, workdir)
    return workdir


def test_a_learners_data_are_what_its_replay_holds(tuned, tmp_path):
    done = collect_run("learner", str(tuned), tmp_path, ram=True)
    store, replay = open_store(tmp_path, "Breakout"), Run(tuned).arrays()["extra"]["replay"]
    n = int(replay["count"])
    assert done["steps"] == n == store.num_frames == 200 + 5
    np.testing.assert_array_equal(store.frames(np.arange(n)), replay["observation"][:n])
    np.testing.assert_array_equal(store.actions, replay["action"][:n])
    np.testing.assert_array_equal(np.sign(store.rewards), replay["reward"][:n])
    assert replay["done"][:n].sum() > store.terminals[:-1].sum(), "a lost life is no end of a game"
    assert store.rows("ram", [0, n - 1]).shape == (2, 128)
    assert collect_run("learner", str(tuned), tmp_path, ram=True) == done, "made once"


def test_a_curious_learners_lanes_follow_each_other(tmp_path):
    config = load("curiosity:tiny", steps=2, batch=2)
    train(config, tmp_path / "run")
    collect_run("learner", str(tmp_path / "run"), tmp_path / "data", steps=20)
    store, played = open_store(tmp_path / "data", "Pong"), learners.load_record(str(tmp_path / "run"), 0)
    assert played.shape == (12, 2, 2)
    np.testing.assert_array_equal(store.actions, np.concatenate([played[:10, 0, 0], played[:10, 1, 0]]))
    np.testing.assert_array_equal(np.flatnonzero(store.terminals), [9, 19])


def test_a_member_of_a_population_has_its_own_data(tmp_path):
    train(load("finetune:tiny", population=2, seed=5), tmp_path / "both")
    train(load("finetune:tiny", seed=6), tmp_path / "one")
    for name, workdir, member in (("a", "both", 1), ("b", "one", 0), ("c", "both", 0)):
        collect_run("learner", str(tmp_path / workdir), tmp_path / name, steps=40, member=member)
    a, b, c = (open_store(tmp_path / name, "Pong") for name in "abc")
    np.testing.assert_array_equal(a.frames(np.arange(40)), b.frames(np.arange(40)))
    assert (a.actions != c.actions).any()


def test_an_agents_games(tuned, tmp_path):
    for name, epsilon in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        collect_run("checkpoint", str(tuned), tmp_path / name, steps=60, epsilon=epsilon, envs=2, seed=7)
    a, b, c = (open_store(tmp_path / name, "Breakout") for name in "abc")
    np.testing.assert_array_equal(a.actions, b.actions)
    assert len(set(c.actions.tolist())) == 4 > len(set(a.actions[:20].tolist())), "random, and an agent that has learned little"


def test_a_run_without_a_whole_record_is_not_resumed():
    for saved in (None, np.zeros((5, 1), np.uint8)):
        with pytest.raises(UserError, match="older version, which recorded less of its play"):
            Recorder(1).set_state(saved)


def test_an_emulator_that_plays_otherwise_is_noticed(tuned, tmp_path, monkeypatch):
    """Another version of ale-py, as another number of no-ops: the first frames differ."""
    options = learners.settings("learner", str(tuned), 0, 0.0, None)
    options["env"]["noop_max"] = 1
    monkeypatch.setattr(learners, "settings", lambda *_: dict(options))
    with pytest.raises(UserError, match=r"saw other frames than these at its step \d+: replay it with its own ale-py"):
        collect_run("learner", str(tuned), tmp_path)
    assert not list(tmp_path.iterdir()), "nothing half-made is left"


def test_pretraining_reads_several_learners_as_checkpoints_of_runs(tuned, tmp_path):
    for run in (1, 2):
        collect_run("learner", str(tuned), tmp_path, steps=50 * run, run=run)
    data = load("pretrain:tiny", data__dir=tmp_path, data__game="Breakout", data__shards="1/0,2/0").data
    assert open_data(data).num_frames == 150


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "learner"}, "give --workdir"),
        ({"policy": "learner", "workdir": "RUN", "game": "Pong"}, "no --game"),
        ({"policy": "learner", "workdir": "RUN", "steps": 10**6}, "has recorded 205"),
        ({"policy": "learner", "workdir": "RUN", "member": 1}, "members 0..0"),
        ({"policy": "checkpoint", "workdir": "RUN"}, "needs --steps"),
        ({"policy": "checkpoint", "workdir": "RUN", "steps": 9, "epsilon": 2.0}, "from 0 to 1"),
        ({"policy": "checkpoint", "workdir": "nowhere", "steps": 9}, "no run in nowhere"),
        ({"policy": "random", "steps": 9}, "needs --game"),
        ({"policy": "random", "game": "Pong"}, "needs --steps"),
    ],
)
def test_errors_name_the_way_out(tuned, tmp_path, options, message):
    flags = [f"--{name}={tuned if value == 'RUN' else value}" for name, value in options.items()]
    with pytest.raises(UserError, match=message):
        main([*flags, f"--out={tmp_path}"])
