"""What a learner plays, kept as its actions alone.

A game is a function of its seed and its actions (`AtariVec`). So a run's whole experience, with frames, rewards and memory, is
its list of actions: a byte a step, saved with the stream's position. `python -m sgi.collect --policy learner` plays it again.
"""

import numpy as np

from training.errors import UserError


class Recorder:
    """Actions of N lanes, step after step."""

    def __init__(self, lanes: int):
        self._lanes, self._bytes = lanes, bytearray()

    def add(self, action: np.ndarray) -> None:
        """int [N]."""
        self._bytes += np.asarray(action, np.uint8).tobytes()

    def get_state(self) -> np.ndarray:
        """uint8 [T, N]: all actions so far."""
        return np.frombuffer(bytes(self._bytes), np.uint8).reshape(-1, self._lanes)

    def set_state(self, saved: np.ndarray | None) -> None:
        """None: a checkpoint of before actions were recorded."""
        if saved is None:
            raise UserError("this run was saved by an older version, which recorded no actions: start it in a new workdir")
        self._bytes = bytearray(np.asarray(saved, np.uint8).tobytes())
