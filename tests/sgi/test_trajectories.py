"""Windows of recorded play: alignment, masks, goals."""

import pickle
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sgi.formats import convert
from sgi.recordings import trajectories
from sgi.recordings.open import open_play
from sgi.recordings.record import Recording, record
from sgi.recordings.trajectories import Windows, stack_frames, window_spec
from training.data import DatasetStream
from training.errors import UserError
from training.sharding import batch_spec, make_mesh

ENDS = [9, 10, 29]  # last rows of three episodes; the second has one row


def store(ends=ENDS):
    n = ends[-1] + 1
    terminals = np.isin(np.arange(n), ends)
    frames = np.arange(1, n + 1, dtype=np.uint8)[:, None, None] * np.ones((84, 84), np.uint8)
    starts = np.insert(terminals[:-1], 0, True)
    return SimpleNamespace(terminals=terminals, starts=starts, actions=np.arange(n), frames=lambda i: frames[i])


def rows(windows, uniform=None):
    """Where each window begins, and the windows; `uniform`: what every row draws instead of a random number."""
    with pytest.MonkeyPatch.context() as patch:
        if uniform is not None:
            patch.setattr(trajectories, "uniforms", lambda seeds, k: np.full((len(seeds), k), uniform))
        batch = windows.batch(np.arange(len(windows)), np.arange(len(windows), dtype=np.uint64))
    return windows.start(np.arange(len(windows))), batch


def test_valid_starts_have_a_transition():
    start, _ = rows(Windows(store(), jumps=2, goal_window=None))
    assert set(start) == set(range(30)) - {9, 10, 29}


def test_frames_actions_and_masks_stay_in_the_episode():
    start, batch = rows(Windows(store(), jumps=3, goal_window=None))
    assert "goal" not in batch
    first, last = np.array([0] * 10 + [10] + [11] * 19), np.array([9] * 10 + [10] + [29] * 19)
    for i, t in enumerate(start):
        for j in range(-3, 4):
            expected = 0 if t + j < first[t] else min(t + j, last[t]) + 1
            assert batch["frames"][i, j + 3, 0, 0] == expected
        assert list(batch["mask"][i]) == [float(t + k <= last[t]) for k in range(4)]
        assert list(batch["action"][i]) == [min(t + k, last[t]) for k in range(3)]  # action k is taken at observation k


@pytest.mark.parametrize("uniform", [0.0, 0.5, 0.999999])
def test_goals_are_later_observations_of_the_same_episode(uniform):
    start, batch = rows(Windows(store(), jumps=1, goal_window=10), uniform)
    last = np.where(start <= 9, 9, 29)
    ahead = 2 + int(uniform * 8)
    np.testing.assert_array_equal(batch["goal"][:, 3, 0, 0], np.minimum(start + ahead, last) + 1)
    assert 2 <= ahead <= 9


def test_stacks_are_oldest_first():
    frames = np.arange(6)[None, :, None, None] * np.ones((1, 1, 2, 2))
    images = stack_frames(frames)
    assert images.shape == (1, 3, 2, 2, 4)
    np.testing.assert_array_equal(images[0, :, 0, 0], [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]])


def test_nothing_to_learn_from():
    with pytest.raises(UserError, match="no transition inside an episode"):
        Windows(store([0, 1, 2]), jumps=1, goal_window=None)


@pytest.mark.parametrize(("jumps", "goal"), [(0, None), (2, 10)])
def test_windows_are_what_their_spec_says(jumps, goal):
    _, batch = rows(Windows(store(), jumps=jumps, goal_window=goal))
    spec = window_spec(jumps, goal is not None)
    assert {name: (x.shape[1:], x.dtype) for name, x in batch.items()} == {name: (x.shape, x.dtype) for name, x in spec.items()}


def test_goals_depend_on_the_rows_seed():
    windows = Windows(store([200]), jumps=1, goal_window=50)
    index = np.full(64, 3)
    one = windows.batch(index, np.arange(64, dtype=np.uint64))["goal"]
    assert len(np.unique(one[:, 3, 0, 0])) > 20
    np.testing.assert_array_equal(windows.batch(index[:5], np.arange(5, dtype=np.uint64))["goal"], one[:5])


@pytest.mark.parametrize("form", ["dqn", "arrayrecord"])
def test_worker_processes_make_the_same_batches(form, tmp_path):
    record(Recording("pong", 120, envs=2), tmp_path / "dqn")
    if form == "arrayrecord":
        convert(str(tmp_path / "dqn"), tmp_path / form, "pong")
    recorded = open_play(tmp_path / form, "pong", cache=tmp_path / "cache")
    windows = Windows(recorded, jumps=2, goal_window=10)
    assert len(pickle.dumps(windows)) < recorded.num_frames * 100  # a frame has 7,056 bytes
    spec = batch_spec(window_spec(2, True), 8, make_mesh(1))
    batches = []
    for workers in (0, 1):
        stream = DatasetStream(windows, spec, seed=1, workers=workers)
        batches.append([jax.device_get(stream.next(None)) for _ in range(3)])
        stream.close()
    jax.tree.map(np.testing.assert_array_equal, *batches)
