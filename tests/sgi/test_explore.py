"""The explorer: cells, the archive, and recordings that an emulator can play again."""

from types import SimpleNamespace

import numpy as np
import pytest

from sgi.atari.emulator import num_actions, record_ram, single_game
from sgi.atari.explore import NOOPS, Archive, Place, _burst, cell_of
from sgi.recordings.dqn_replay import open_store
from sgi.recordings.record import Recording, record
from training.errors import UserError


def test_cells_are_the_mean_grey_of_8_by_11_areas():
    frame = np.random.default_rng(0).integers(256, size=(84, 84), dtype=np.uint8)
    fine = np.repeat(np.repeat(frame.astype(np.int64), 8, 0), 11, 1)  # 672 x 924: 84 x 84 of these in each area
    means = fine.reshape(8, 84, 11, 84).mean((1, 3))
    np.testing.assert_array_equal(np.frombuffer(cell_of(frame), np.uint8).reshape(8, 11), np.floor(means / 32))
    for grey in (0, 31, 32, 224, 255):
        assert cell_of(np.full((84, 84), grey, np.uint8)) == bytes([grey // 32]) * 88


def frame(number):
    return np.full((84, 84), 32 * number, np.uint8)


def test_rarely_visited_cells_are_picked_more_often():
    archive = Archive(limit=10)
    for number, visits in enumerate((1, 3, 8)):
        for visit in range(visits):
            archive.visit(frame(number), lambda number=number, visit=visit: Place(None, number, visit))
    rng = np.random.default_rng(0)
    picked = [archive.pick(rng) for _ in range(20_000)]
    assert all(place.score == 0 for place in picked)  # the first visit's place is kept
    weights = 1 / np.sqrt([2, 4, 9])
    np.testing.assert_allclose(np.bincount([p.frame for p in picked]) / 20_000, weights / weights.sum(), atol=0.01)


def test_a_full_archive_counts_on_but_keeps_no_more_places():
    archive = Archive(limit=2)
    for number in (0, 1, 2, 3, 2):
        archive.visit(frame(number), lambda number=number: Place(None, number, 0.0))
    assert len(archive.seen) == 4
    rng = np.random.default_rng(0)
    assert {archive.pick(rng).frame for _ in range(200)} == {0, 1}


STEPS = 700


@pytest.fixture(scope="module")
def pacman(tmp_path_factory):
    root = tmp_path_factory.mktemp("explored")
    summary = record(Recording("ms_pacman", STEPS, policy="cells", seed=1, burst=100, ram=True, chunk=500), root)
    return summary, open_store(root, "ms_pacman", cache=root / "cache")


def test_every_row_can_be_played_from_the_start(pacman):
    """An episode begins at the first row of its cell: so the actions from the game's start to any row are known."""
    summary, store = pacman
    everything = np.arange(STEPS)
    frames, ram, actions = store.frames(everything), store.rows("ram", everything), store.actions
    first, paths = {}, []
    for t in everything:
        cell = cell_of(frames[t])
        if t == 0:
            paths.append([])
        elif store.terminals[t - 1]:
            paths.append(paths[first[cell]])
            np.testing.assert_array_equal(frames[t], frames[first[cell]])
            np.testing.assert_array_equal(ram[t], ram[first[cell]])
        else:
            paths.append([*paths[t - 1], actions[t - 1]])
        first.setdefault(cell, t)
    assert summary["cells"] == len(first) > 50
    ale = single_game("ms_pacman")
    noops = next(n for n in range(1, NOOPS + 1) if ale.act(0) == 0 and (ale.getRAM() == ram[0]).all())
    ends = np.flatnonzero(store.terminals)
    assert max(len(paths[t]) for t in ends) > 100  # a game goes on from one return to the next
    for t in ends[-3:]:
        played_ram, played = record_ram("ms_pacman", noops, [*paths[t], 0])
        np.testing.assert_array_equal(played[-1], frames[t])
        np.testing.assert_array_equal(played_ram[-1], ram[t])
    assert ends[-1] == STEPS - 1 and np.diff(ends)[:-1].min() >= 50 and np.diff(ends, prepend=-1).max() <= 100
    assert len(np.unique(actions)) == num_actions("ms_pacman") and (np.diff(actions) == 0).mean() > 0.5  # held


def test_game_over_ends_an_episode_and_scores_count_from_the_start(tmp_path):
    """Breakout, always from its start: so an episode that ends early is a whole game."""
    done = record(Recording("breakout", 900, policy="cells", max_cells=1, burst=800, ram=True), tmp_path)
    store = open_store(tmp_path, "breakout", cache=tmp_path / "cache")
    ends = np.flatnonzero(store.terminals)
    over = np.diff(ends, prepend=-1) < 400
    over[-1] = False
    assert done["episodes"] == over.sum() > 1
    assert (store.rows("ram", ends)[over, 57] == 1).all()  # the last life
    games = [store.rewards[begin : end + 1].sum() for begin, end in zip([0, *(ends + 1)], ends, strict=False)]
    assert done["mean_score"] == np.mean(np.array(games)[over]) > 0


def test_the_score_goes_with_the_place():
    def screen():
        return np.zeros((210, 160), np.uint8)

    state = SimpleNamespace(
        restoreState=lambda state: None, getRAM=lambda: np.zeros(128), act=lambda action: 1, game_over=lambda: False,
        getScreenGrayscale=screen, cloneState=lambda: "here",
    )  # fmt: skip
    archive = Archive(limit=5)
    rows, score = _burst(state, Place("there", frame(7), 10.0), [0], np.zeros(3, int), archive)
    assert score == 10 + 3 * 4 and rows["reward"].tolist() == [4, 4, 4]
    assert {place.score for place in archive._places} == {10, 14}


def test_deterministic_in_the_seed(pacman, tmp_path):
    _, store = pacman
    for seed in (1, 2):
        record(Recording("ms_pacman", 200, policy="cells", burst=100, seed=seed, run=seed), tmp_path)
    one, two = (open_store(tmp_path, "ms_pacman", [(run, 0)], cache=tmp_path / "cache") for run in (1, 2))
    whole = np.arange(200)  # a shorter recording is the start of a longer one
    np.testing.assert_array_equal(one.frames(whole), store.frames(whole))
    np.testing.assert_array_equal(one.actions, store.actions[:200])
    np.testing.assert_array_equal(one.rewards, store.rewards[:200])
    assert one.channels == () and (one.actions != two.actions).any()


def test_limits_and_settings(tmp_path, monkeypatch):
    few = record(Recording("ms_pacman", 200, policy="cells", burst=100, max_cells=1), tmp_path)
    store = open_store(tmp_path, "ms_pacman", cache=tmp_path / "cache")
    starts = store.frames(np.flatnonzero(store.starts))
    assert few["cells"] > 1 and len(starts) > 1 and (starts == starts[0]).all()  # always back to the same place
    monkeypatch.setitem(record.__globals__["POLICIES"], "cells", None)  # found, not played again
    assert record(Recording("ms_pacman", 200, policy="cells", burst=100, max_cells=1), tmp_path) == few
    for change in ({"max_cells": 2}, {"burst": 99}, {"policy": "random", "envs": 1}):
        with pytest.raises(UserError, match="--overwrite"):
            record(Recording("ms_pacman", 200, **{"policy": "cells", "burst": 100, "max_cells": 1} | change), tmp_path)
    for wrong in ({"envs": 2}, {"max_cells": 0}, {"burst": 0}):
        with pytest.raises(UserError, match="max_cells"):
            record(Recording("ms_pacman", 200, policy="cells", **wrong), tmp_path)
    with pytest.raises(UserError, match="no policy 'best': random, cells"):
        record(Recording("ms_pacman", 200, policy="best"), tmp_path)
