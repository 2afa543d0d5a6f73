"""Windows of recorded play: alignment, masks, goals."""

from types import SimpleNamespace

import numpy as np
import pytest

from sgi.recordings.trajectories import Windows, stacks
from training.errors import UserError

ENDS = [9, 10, 29]  # last rows of three episodes; the second has one row


def store(ends=ENDS):
    n = ends[-1] + 1
    terminals = np.isin(np.arange(n), ends)
    frames = np.arange(1, n + 1, dtype=np.uint8)[:, None, None] * np.ones((84, 84), np.uint8)
    starts = np.insert(terminals[:-1], 0, True)
    return SimpleNamespace(terminals=terminals, starts=starts, actions=np.arange(n), frames=lambda i: frames[i])


def rows(windows, uniform=0.0):
    batch = windows.batch(np.arange(len(windows)), np.full((len(windows), 1), uniform))
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
    images = stacks(frames)
    assert images.shape == (1, 3, 2, 2, 4)
    np.testing.assert_array_equal(images[0, :, 0, 0], [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]])


def test_nothing_to_learn_from():
    with pytest.raises(UserError, match="no transition inside an episode"):
        Windows(store([0, 1, 2]), jumps=1, goal_window=None)
