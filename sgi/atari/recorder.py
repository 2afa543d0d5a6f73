"""A record of what a learner plays: its actions, not its frames.

A game is a function of its seed and its actions (`AtariVec`). So a run's whole experience, with frames, rewards and memory, is
its list of actions, saved with the stream's position. `python -m sgi.collect --policy learner` plays it again. Beside each
action stands a byte of checksum of the frame in which it was taken: another version of the emulator may play otherwise.
"""

import zlib

import numpy as np

from training.errors import UserError


class Recorder:
    """A record of the actions of N lanes and of checksums of their frames, step after step."""

    def __init__(self, lanes: int):
        self._lanes, self._bytes = lanes, bytearray()

    def add(self, stack: np.ndarray, action: np.ndarray) -> None:
        """Append a step: the stacks on the screen, uint8 [N, 4, 84, 84], and the actions taken there, int [N]."""
        self._bytes += np.stack([np.asarray(action, np.uint8), checksum(stack)], -1).tobytes()

    def get_state(self) -> np.ndarray:
        """All actions so far and the checksums of the frames in which they were taken: uint8 [T, N, 2]."""
        return np.frombuffer(bytes(self._bytes), np.uint8).reshape(-1, self._lanes, 2)

    def set_state(self, saved: np.ndarray | None) -> None:
        """Go on from what `get_state` returned. Raises UserError if `saved` is something else."""
        if not is_complete(saved):
            raise UserError("this run is of an older version, which recorded less of its play: start it in a new workdir")
        self._bytes = bytearray(saved.tobytes())


def is_complete(saved: np.ndarray | None) -> bool:
    """True for a whole record; an older version has none, or actions without checksums."""
    return saved is not None and saved.ndim == 3


def checksum(stack: np.ndarray) -> np.ndarray:
    """A byte for the newest frame of each stack, uint8 [N, 4, 84, 84] -> uint8 [N]."""
    return np.array([zlib.crc32(frames[-1]) & 0xFF for frames in stack], np.uint8)
