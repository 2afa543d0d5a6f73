"""Pretraining examples: short windows of recorded play, with only the frames that the losses use.

Alignment: `action[k]` is the action taken AT observation k, so it leads from k to k + 1. A window never shows two episodes:
frames before the episode's first are black, observations after its last repeat the last one and are masked.
"""

import jax
import numpy as np

from sgi.atari.emulator import SIZE, STACK
from sgi.recordings.dqn_replay import Store
from training.data import uniforms
from training.errors import UserError


def window_spec(jumps: int, goal: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of one window (`Windows`), without the leading axis."""
    shapes = {
        "frames": ((STACK + jumps, SIZE, SIZE), np.uint8),
        "action": ((max(jumps, 1),), np.int32),
        "mask": ((jumps + 1,), np.float32),
        **({"goal": ((STACK, SIZE, SIZE), np.uint8)} if goal else {}),
    }
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}


class Windows:
    """A `training.data.Source` of windows over a Store.

    batch(...) gives
      frames   uint8 [B, STACK + K, 84, 84]   frame j belongs to observation j - STACK + 1
      action   int32 [B, max(K, 1)]
      mask     float32 [B, K + 1]             1 while observation k is in the episode of observation 0
      goal     uint8 [B, STACK, 84, 84]       the stack of a later observation (only with `goal_window`)

    Args:
      store: recorded frames, actions and terminals.
      jumps: K, the number of predicted steps.
      goal_window: goals are 2 .. goal_window - 1 steps ahead; None for no goals.
    """

    def __init__(self, store: Store, *, jumps: int, goal_window: int | None):
        self._store, self._jumps, self._goal_window = store, jumps, goal_window
        terminal = store.terminals.astype(bool)
        n = len(terminal)
        starts = np.flatnonzero(store.starts)
        self._first = np.repeat(starts, np.diff(np.append(starts, n)))
        self._last = np.repeat(np.append(starts[1:], n) - 1, np.diff(np.append(starts, n)))
        self._valid = np.flatnonzero((np.arange(n) < self._last) & ~terminal)
        if not len(self._valid):
            raise UserError("the recorded play holds no transition inside an episode: nothing to train on")

    def __len__(self) -> int:
        return len(self._valid)

    def start(self, indices: np.ndarray) -> np.ndarray:
        """The row of the store where each window's observation 0 lies."""
        return self._valid[indices]

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        start = self._valid[indices]
        steps = start[:, None] + np.arange(max(self._jumps, 1))
        last = self._last[start]
        result = {
            "frames": self._window(start, self._jumps),
            "action": self._store.actions[np.minimum(steps, last[:, None])].astype(np.int32),
            "mask": (start[:, None] + np.arange(self._jumps + 1) <= last[:, None]).astype(np.float32),
        }
        if self._goal_window is not None:
            ahead = 2 + np.floor(uniforms(seeds, 1)[:, 0] * (self._goal_window - 2)).astype(np.int64)
            result["goal"] = self._window(np.minimum(start + ahead, last), 0)
        return result

    def _window(self, start: np.ndarray, jumps: int) -> np.ndarray:
        index = start[:, None] + np.arange(1 - STACK, jumps + 1)
        first = self._first[start][:, None]
        frames = self._store.frames(np.clip(index, first, self._last[start][:, None]))
        frames[index < first] = 0
        return frames


def stack_frames(frames: np.ndarray, stack: int = STACK) -> np.ndarray:
    """Stacks of frames, oldest first: [B, stack + K, H, W] -> [B, K + 1, H, W, stack]. Works on numpy and jax arrays."""
    steps = frames.shape[1] - stack + 1
    index = np.arange(steps)[:, None] + np.arange(stack)
    return frames[:, index].transpose(0, 1, 3, 4, 2)
