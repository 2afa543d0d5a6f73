"""Exploration without rewards or a network: held random actions, and Go-Explore's archive of cells (Ecoffet et al. 2021).

The archive is a cheap stand-in for SGI's exploratory data, which a curiosity-driven agent made (Burda et al. 2019). A cell is
what a frame looks like from afar: shrunk to 11x8 in 8 grey levels. The first emulator state of each cell is kept. Again and
again: pick a cell with probability proportional to 1 / sqrt(visits + 1), where `visits` counts the rows recorded in it; go back
to its state; take burst/2 to burst steps of held random actions. Each return begins an episode: the row before it is terminal,
as is the last row before a game over. A game is not cut at 27,000 steps.

How far it gets depends on `burst`. Cells in 20,000 rows, means of 3 seeds: Boxing 7,246 with bursts of 50-100 steps, 8,122 with
200-400, 7,493 by random play; Ms. Pac-Man 4,925, 7,414 and 5,832. Short bursts stay near the start of the game.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ale_py import ALEState

from sgi.atari.emulator import SIZE, agent_step, area_resize, single_game

WIDTH, HEIGHT, LEVELS = 11, 8, 8
BURST = 400  # steps at most from one return to the next, and half of that at least
NOOPS = 30  # raw frames at most before the first step, as in `AtariVec`
MAX_CELLS = 20_000  # cells with a saved state, 16 kB each


def held_actions(rng: np.random.Generator, steps: int, actions: int, repeat: float) -> np.ndarray:
    """Uniform actions, int64 [steps], each held for a number of steps drawn from Geom(`repeat`), of mean 1 / repeat."""
    holds = rng.geometric(repeat, size=steps)  # `steps` of them are enough: each lasts a step at least
    return np.repeat(rng.integers(actions, size=steps), holds)[:steps]


def cell_of(frame: np.ndarray) -> bytes:
    """The cell of a frame uint8 [84, 84]: the mean grey of each of 8x11 areas, rounded down to 0..7, a byte each."""
    areas = _ROWS @ frame.astype(np.float64) @ _COLUMNS  # whole numbers below 2^53: exact in any order
    return np.floor_divide(areas * LEVELS, 256 * SIZE * SIZE).astype(np.uint8).tobytes()


def _shares(parts: int) -> np.ndarray:
    """The share of each pixel in each of `parts` equal parts, float64 [parts, 84], in units of 1/parts of a pixel."""
    begin = np.arange(SIZE) * parts
    edges = np.arange(parts + 1)[:, None] * SIZE
    return np.maximum(np.minimum(begin + parts, edges[1:]) - np.maximum(begin, edges[:-1]), 0).astype(np.float64)


_ROWS, _COLUMNS = _shares(HEIGHT), _shares(WIDTH).T


class Place(NamedTuple):
    """The emulator's state, the frame on the screen and the score of the game so far: enough to go on from a cell."""

    state: ALEState
    frame: np.ndarray
    score: float


class Archive:
    """Cells seen, and for the first `limit` of them a place and how often they were visited."""

    def __init__(self, limit: int):
        self.seen: dict[bytes, int] = {}  # -> index of the place, or `limit`
        self._places: list[Place] = []
        self._visits = np.zeros(limit + 1)

    def visit(self, frame: np.ndarray, place: Callable[[], Place]) -> None:
        """Count a visit to the frame's cell, and keep `place()` if it is the first."""
        index = self.seen.setdefault(cell_of(frame), len(self._places))
        if index == len(self._places) and index < len(self._visits) - 1:
            self._places.append(place())
        self._visits[index] += 1

    def pick(self, rng: np.random.Generator) -> Place:
        chances = np.cumsum(1 / np.sqrt(self._visits[: len(self._places)] + 1))
        return self._places[np.searchsorted(chances[:-1], rng.random() * chances[-1], "right")]


def play(settings: dict, scratch: Path, write: Callable[..., None]) -> dict:
    """A policy of `sgi.recordings.record`: it explores for `steps` agent steps, one emulator, deterministic in `seed`.

    Its summary has `cells`, the number of different ones recorded.
    """
    ale = single_game(settings["game"])
    actions = ale.getLegalActionSet() if settings["full_actions"] else ale.getMinimalActionSet()
    rng = np.random.default_rng(np.random.SeedSequence((settings["seed"], 0)))
    for _ in range(rng.integers(1, NOOPS + 1)):
        ale.act(actions[0])
    place = Place(ale.cloneState(), area_resize(ale.getScreenGrayscale()), 0.0)
    archive, scores, remaining, seconds = Archive(settings["max_cells"]), [], settings["steps"], 0.0
    longest = settings["burst"]
    while remaining:
        began = time.perf_counter()
        burst = held_actions(rng, rng.integers(longest - longest // 2, longest + 1), len(actions), settings["repeat"])
        rows, score = _burst(ale, place, actions, burst[:remaining], archive)
        scores += [score] if ale.game_over() else []
        remaining -= len(rows["action"])
        place = archive.pick(rng)
        seconds += time.perf_counter() - began
        write(**{kind: rows[kind] for kind in rows if kind != "ram" or settings["ram"]})
    return {
        "episodes": len(scores),
        "mean_score": float(np.mean(scores)) if scores else None,
        "steps_per_second": round(settings["steps"] / seconds, 1),
        "cells": len(archive.seen),
    }


def _burst(ale, place, actions, burst, archive):
    """Go to a place and take the actions of a burst there, until a game over: (rows, score of the game at their end)."""
    ale.restoreState(place.state)
    frame, score = place.frame, place.score
    frames, ram, rewards = [], [], []
    for action in burst:
        archive.visit(frame, lambda frame=frame, score=score: Place(ale.cloneState(), frame, score))
        frames.append(frame)
        ram.append(ale.getRAM())
        reward, screen = agent_step(ale, actions[action])
        frame, score = area_resize(screen), score + reward
        rewards.append(reward)
        if ale.game_over():
            break
    count = len(frames)
    rows = {"observation": np.stack(frames), "action": burst[:count], "reward": np.array(rewards, np.float32)}
    return rows | {"terminal": np.arange(count) == count - 1, "ram": np.stack(ram)}, score
