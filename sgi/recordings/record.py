"""Recordings of play on the emulator, in the DQN Replay layout: what to record, who plays, and files that appear whole.

Several lanes are played side by side and stored one after another: first all steps of lane 0, then those of lane 1. The last
row of a lane is marked terminal although its game went on, so that no window of frames runs from one lane into the next; so is
the row before the policy `cells` goes back.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from sgi.atari import explore
from sgi.atari.emulator import SIZE, AtariVec, display_name, num_actions, record_ram
from sgi.atari.explore import BURST, MAX_CELLS, held_actions
from sgi.recordings.dqn_replay import Writer
from training.errors import UserError

BLOCK = 4096  # rows handed to the writer at once
RECORD = "collect.json"  # beside replay_logs: settings and summary, written last

# A policy plays `settings["steps"]` steps and calls `write(observation=, action=, reward=, terminal=[, ram=])` with rows in the
# order in which they are to be stored, any number at once. The path is a folder for temporary files. It returns its part of the
# summary: `episodes`, `mean_score`, `steps_per_second` and what else it counts.
Player = Callable[[dict, Path, Callable[..., None]], dict]


class Recording(NamedTuple):
    """The settings of a recording, on which alone its result depends.

    game           'boxing', 'Boxing'.
    steps          Agent steps in all.
    policy         Who plays: a name of `POLICIES`, or of those that are handed to `record`.
    seed           Seed of the games and of the policy.
    envs           Lanes; 8 unless given, and of the policy `cells` 1.
    run, chunk     The layout's run number, and the rows of one file.
    repeat         p of the geometric hold of an action, whose mean is 1/p steps.
    ram            Store the console's memory at each frame too, as kind `ram` uint8 [n, 128].
    full_actions   All 18 actions instead of the minimal set.
    max_cells      Cells that `cells` can go back to, 16 kB of memory each.
    burst          Steps at most until `cells` goes back, and half of that at least.
    more           Settings of a policy of one's own.
    """

    game: str
    steps: int
    policy: str = "random"
    seed: int = 0
    envs: int | None = None
    run: int = 1
    chunk: int = 1_000_000
    repeat: float = 1 / 3
    ram: bool = False
    full_actions: bool = False
    max_cells: int = MAX_CELLS
    burst: int = BURST
    more: Mapping[str, Any] = MappingProxyType({})

    def settings(self) -> dict[str, Any]:
        """The recording as a flat dict, as it is saved beside the data. Raises UserError for values that cannot be."""
        cells = self.policy == "cells"
        if cells and (self.envs not in (None, 1) or min(self.max_cells, self.burst) < 1):
            raise UserError("the policy cells needs envs = 1, max_cells >= 1 and burst >= 1")
        envs = (1 if cells else 8) if self.envs is None else self.envs
        fits = 1 <= envs <= self.steps and min(self.chunk, self.run) >= 1
        if not fits or not 0 <= self.seed < 2**32 or not 0 < self.repeat <= 1:
            raise UserError("collect needs 1 <= envs <= steps, chunk >= 1, run >= 1, 0 <= seed < 2^32 and 0 < repeat <= 1")
        settings = {
            "game": display_name(self.game), "steps": self.steps, "seed": self.seed, "envs": envs, "run": self.run,
            "chunk": self.chunk, "repeat": self.repeat, "ram": self.ram, "full_actions": self.full_actions,
            "policy": self.policy, **self.more,
        }  # fmt: skip
        return settings | ({"max_cells": self.max_cells, "burst": self.burst} if cells else {})


def record(recording: Recording, out: str | Path, *, play: Player | None = None, overwrite: bool = False) -> dict:
    """Record under {out}/{Game}/{run}, and return what was recorded.

    It appears whole or not at all, and is not made twice: a folder that holds a recording of the same settings is left as it
    is. While it runs it takes 7 kB of disk a step in `out`, and 7 kB for each row of a chunk; memory stays flat.

    Args:
      play: the policy; default: the one of `POLICIES` that the recording names.
      overwrite: replace whatever the folder holds.

    Returns:
      `game`, `steps`, `episodes` (finished ones), `mean_score` of these (None if there are none), `seconds`,
      `steps_per_second` of the play alone, `cells` seen (by `cells`), and `files`, relative to `out`.

    Raises:
      UserError: values that cannot be, or a folder that holds something else.
    """
    if play is None and recording.policy not in POLICIES:
        raise UserError(f"no policy {recording.policy!r}: {', '.join(POLICIES)}")
    settings, out = recording.settings(), Path(out)
    game, run = settings["game"], str(settings["run"])
    target = out / game / run
    if not overwrite and (summary := _finished_summary(target, settings)):
        return summary
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".collecting-", dir=out) as scratch:
        summary = _record(settings, Path(scratch), play or POLICIES[recording.policy])
        staging = Path(scratch) / game / run
        (staging / RECORD).write_text(json.dumps({"settings": settings, "summary": summary}, indent=1) + "\n")
        target.parent.mkdir(exist_ok=True)
        if overwrite:
            shutil.rmtree(target, ignore_errors=True)
        try:
            staging.rename(target)
        except OSError:
            if (summary := _finished_summary(target, settings)) is None:  # another process
                raise
            return summary
    return summary


def _finished_summary(target: Path, settings: dict) -> dict | None:
    """The summary of a finished recording of the same settings; None if the folder is empty or absent.

    Raises UserError if it holds anything else.
    """
    if not target.exists() or not any(target.iterdir()):
        return None
    if (target / RECORD).exists():
        record = json.loads((target / RECORD).read_text())
        if {"policy": "random"} | record["settings"] == settings:  # old files lack the key
            return record["summary"]
    raise UserError(f"{target} holds something else: give --overwrite, another --out or another --run")


def _record(settings: dict, root: Path, policy: Player) -> dict:
    began = time.perf_counter()
    with Writer(root, settings["game"], settings["run"], settings["chunk"]) as writer:
        summary = policy(settings, root, writer.append)
    return {
        "game": settings["game"],
        "steps": settings["steps"],
        **summary,
        "seconds": round(time.perf_counter() - began, 2),
        "files": [str(path.relative_to(root)) for path in writer.files],
    }


def play_random(settings: dict, scratch: Path, write: Callable[..., None]) -> dict:
    """The policy `random`: each action is held for Geom(`repeat`) steps; see `play_lanes`."""
    lanes, rows = settings["envs"], -(-settings["steps"] // settings["envs"])
    choices = num_actions(settings["game"], settings["full_actions"])
    rngs = [np.random.default_rng(np.random.SeedSequence((settings["seed"], lane))) for lane in range(lanes)]
    actions = np.stack([held_actions(rng, rows, choices, settings["repeat"]) for rng in rngs])
    return play_lanes(settings, scratch, write, lambda t, _: actions[:, t])


def play_lanes(settings: dict, scratch: Path, write: Callable[..., None], act: Callable[[int, np.ndarray], np.ndarray]) -> dict:
    """Play `envs` lanes of `AtariVec` side by side, and write one after another.

    Args:
      settings: of `Recording.settings`; `env` may hold options of `AtariVec`.
      scratch: folder for the frames, until they are written.
      write: takes arrays of rows, a keyword a kind.
      act: (t, observation uint8 [N, 4, 84, 84]) -> actions int [N].
    """
    game, steps, lanes, full = (settings[key] for key in ("game", "steps", "envs", "full_actions"))
    rows = -(-steps // lanes)
    with tempfile.TemporaryFile(dir=scratch) as spill:
        frames = np.memmap(spill, np.uint8, "w+", shape=(lanes, rows, SIZE, SIZE))
        options = {"life_loss": False, **settings.get("env", {}), "full_action_space": full}
        env = AtariVec(game, lanes, seed=settings["seed"], **options)
        began = time.perf_counter()
        actions, rewards, terminals, starts, scores = _play(env, act, frames)
        seconds = time.perf_counter() - began
        for lane in range(lanes):
            count = steps // lanes + (lane < steps % lanes)
            terminals[lane, count - 1] = True
            arrays = {
                "observation": frames[lane, :count],
                "action": actions[lane, :count],
                "reward": rewards[lane, :count],
                "terminal": terminals[lane, :count],
            }
            if settings["ram"]:
                arrays["ram"] = np.concatenate([*_memory(env, starts[lane], actions[lane], frames[lane])])[:count]
            for begin in range(0, count, BLOCK):
                write(**{kind: array[begin : begin + BLOCK] for kind, array in arrays.items()})
        env.close()
    return {
        "episodes": len(scores),
        "mean_score": float(np.mean(scores)) if scores else None,
        "steps_per_second": round(lanes * rows / seconds, 1),
    }


POLICIES: dict[str, Player] = {"random": play_random, "cells": explore.play}


def _play(env: AtariVec, act, frames):
    """Play T steps and fill frames [N, T, 84, 84].

    Returns actions int64 [N, T], rewards float32 [N, T], terminals bool [N, T], for each lane [(first row, no-ops, emulator's
    seed) of each game], and the scores of finished games
    """
    shape, scores = frames.shape[:2], []
    actions, rewards, terminals = np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, bool)
    observation, _ = env.reset()
    starts = [[(0, int(env.noops[lane]), int(env.seeds[lane]))] for lane in range(env.num_envs)]
    for t in range(shape[1]):
        frames[:, t], actions[:, t] = observation[:, -1], act(t, observation)
        observation, rewards[:, t], _, truncated, info = env.step(actions[:, t])
        terminals[:, t] = info["game_over"] | truncated
        for lane in np.flatnonzero(terminals[:, t]):
            scores.append(float(info["episode_return"][lane]))
            starts[lane].append((t + 1, int(env.noops[lane]), int(env.seeds[lane])))
    return actions, rewards, terminals, starts, scores


def _memory(env: AtariVec, starts, actions, frames) -> Iterator[np.ndarray]:
    """The RAM uint8 [n, 128] of each game of one lane, by playing it again."""
    ends = [*(begin for begin, *_ in starts[1:]), len(actions)]
    for (begin, noops, seed), end in zip(starts, ends, strict=True):
        if begin < end:
            options = {"full_action_space": env.full_action_space, "sticky": env.sticky, "seed": seed}
            memory, replayed = record_ram(env.game, noops, actions[begin:end], **options)
            if not np.array_equal(replayed, frames[begin:end]):
                raise RuntimeError(f"{env.game}: the game from row {begin} did not play the same way twice")
            yield memory
