"""Recorded play, mostly random: how long actions are held, what a row means, that it is replayable and repeatable."""

import json

import numpy as np
import pytest

from sgi.atari.emulator import AtariVec, record_ram
from sgi.atari.explore import held_actions
from sgi.collect import main
from sgi.recordings.dqn_replay import open_store
from sgi.recordings.record import POLICIES, Recording, play_lanes, record
from training.errors import UserError


def test_actions_are_uniform_and_held_for_a_geometric_time():
    actions = held_actions(np.random.default_rng(0), 120_000, 1000, 1 / 3)  # so many that neighbours differ
    np.testing.assert_allclose(np.bincount(actions // 100) / len(actions), 0.1, atol=0.01)
    holds = np.diff(np.flatnonzero(np.diff(actions, prepend=-1, append=-1)))
    np.testing.assert_allclose(holds.mean(), 3, atol=0.05)
    for length in (1, 2, 3):
        np.testing.assert_allclose((holds == length).mean(), (2 / 3) ** (length - 1) / 3, atol=0.01)


@pytest.fixture(scope="module")
def breakout(tmp_path_factory):
    """421 steps in two lanes of 211 and 210, in files of 300; Breakout, so that games end on the way."""
    root = tmp_path_factory.mktemp("recorded")
    summary = record(Recording("breakout", 421, seed=3, envs=2, chunk=300, ram=True), root)
    return root, summary, open_store(root, "breakout", cache=root / "cache")


def test_rows_are_what_the_environment_gave(breakout):
    """The recorded actions, played again: frame t is where action t was chosen, reward t what it earned."""
    _, summary, store = breakout
    env = AtariVec("breakout", 2, seed=3, life_loss=False)
    obs, _ = env.reset()
    frames, actions = store.frames(np.arange(421)), store.actions
    lives, episodes, scores = 5, 0, []
    for t in range(210):
        rows = np.array([t, 211 + t])
        np.testing.assert_array_equal(obs[:, -1], frames[rows])
        obs, reward, terminated, _, info = env.step(actions[rows])
        np.testing.assert_array_equal(store.rewards[rows], reward)
        np.testing.assert_array_equal(store.terminals[rows], terminated | (rows == 420))
        episodes, lives = episodes + terminated.sum(), min(lives, *info["lives"])
        scores += list(info["episode_return"][terminated])
    assert lives < 4 and episodes >= 1  # lives were lost without a terminal
    assert store.terminals[210] and store.starts[211]  # the lanes are kept apart
    assert (summary["game"], summary["steps"], summary["episodes"]) == ("Breakout", 421, len(scores))
    assert summary["mean_score"] == np.mean(scores)


def test_ram_belongs_to_the_frame(breakout):
    _, _, store = breakout
    env = AtariVec("breakout", 2, seed=3)
    env.reset()
    ram, _ = record_ram("breakout", env.noops[1], store.actions[211:230])
    np.testing.assert_array_equal(store.rows("ram", np.arange(211, 230)), ram)
    assert (np.diff(ram[:, 72].astype(int)) != 0).any()  # the paddle moves


def test_files_and_repetition(breakout, tmp_path, capsys):
    root, summary, _ = breakout
    assert len(summary["files"]) == 2 * 5 and all((root / path).exists() for path in summary["files"])
    assert {path.name for path in root.iterdir()} == {"Breakout", "cache"}  # no scratch is left
    arguments = ["--game", "Breakout", "--steps", "40", "--envs", "2", "--out"]
    for name in ("a", "b"):
        main([*arguments, str(tmp_path / name)])
    first, again = ([path.read_bytes() for path in sorted((tmp_path / name).rglob("*.gz"))] for name in ("a", "b"))
    assert first == again and len(first) == 4
    assert "40 steps" in capsys.readouterr().out


def test_a_policy_that_looks(tmp_path, monkeypatch):
    """A policy is a function: this one sees the stacks that led to each row, and is asked once for all lanes of a step."""
    observed = []

    def act(t, observation):
        observed.append(observation[:, -2:].copy())
        return np.array([t % 3, 17])

    monkeypatch.setitem(POLICIES, "mine", lambda *args: play_lanes(*args, act) | {"looks": len(observed)})
    done = record(Recording("boxing", 9, policy="mine", envs=2, ram=True), tmp_path)
    store = open_store(tmp_path, "boxing", cache=tmp_path / "cache")
    assert store.actions.tolist() == [0, 1, 2, 0, 1, 17, 17, 17, 17] and store.channels == ("ram",)
    lanes = np.stack(observed, 1)  # [lane, t, 2, 84, 84]
    np.testing.assert_array_equal(store.frames(np.arange(9)), [*lanes[0, :, 1], *lanes[1, :4, 1]])
    np.testing.assert_array_equal(lanes[:, 1:, 0], lanes[:, :-1, 1])
    assert (done["looks"], done["episodes"]) == (5, 0)
    saved = json.loads((tmp_path / "Boxing/1/collect.json").read_text())
    assert saved["settings"]["policy"] == "mine" and saved["summary"] == done


def test_recordings_from_before_there_were_policies_are_found(tmp_path, monkeypatch):
    made = record(Recording("boxing", 10, envs=2), tmp_path)
    path = tmp_path / "Boxing/1/collect.json"
    saved = json.loads(path.read_text())
    assert saved["settings"].pop("policy") == "random"
    path.write_text(json.dumps(saved))
    monkeypatch.setattr("sgi.recordings.record._record", None)
    assert record(Recording("boxing", 10, envs=2), tmp_path) == made


def test_the_explorer_from_the_command_line(tmp_path, capsys):
    main(["--game", "boxing", "--steps", "120", "--out", str(tmp_path), "--policy", "cells", "--max-cells", "50", "--ram"])
    store = open_store(tmp_path, "boxing", cache=tmp_path / "cache")
    assert store.num_frames == 120 and store.channels == ("ram",) and " cells; Boxing/1/" in capsys.readouterr().out


WRONG = [{"steps": 0}, {"envs": 0}, {"envs": 10}, {"chunk": 0}, {"run": 0}, {"seed": -1}, {"seed": 2**32}, {"repeat": 0.0}]


@pytest.mark.parametrize("wrong", [*WRONG, {"repeat": 1.5}], ids=str)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(UserError, match="collect needs"):
        Recording(**{"game": "pong", "steps": 9} | wrong).settings()


def test_nothing_is_overwritten_unasked(breakout, monkeypatch):
    root, summary, _ = breakout
    settings = {"seed": 3, "envs": 2, "chunk": 300, "ram": True}
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.gz")}
    monkeypatch.setattr("sgi.recordings.record.AtariVec", None)  # the same settings: nothing is played
    assert record(Recording("Breakout", 421, **settings), root) == summary
    with pytest.raises(UserError, match="--overwrite"):
        record(Recording("breakout", 421, **settings | {"seed": 4}), root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.gz")} == before
    with pytest.raises(UserError, match="envs"):
        record(Recording("breakout", 1, run=2, envs=2), root)
    monkeypatch.undo()
    monkeypatch.setattr("sgi.recordings.record._record", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record(Recording("breakout", 421), root, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.gz")} == before  # replaced only by a finished one
    monkeypatch.undo()
    record(Recording("breakout", 20, envs=1), root, overwrite=True)
    assert open_store(root, "breakout", cache=root / "cache").num_frames == 20
