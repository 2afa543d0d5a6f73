"""Random play, recorded in the DQN Replay layout: the data of SGI-R (Schwarzer et al. 2021).

    python -m sgi.collect --game boxing --steps 20000 --out recordings [--seed 0 --envs 8 --ram]

Each action is drawn uniformly and held for Geom(1/3) steps (1, 2, ...; mean 3). The reference holds it for one step more
than it draws (1 + Geom); here the number drawn is the number held. No sticky actions, unclipped rewards, `terminal` = the game
is over (or was cut at 27,000 steps), not a lost life.

The lanes are played side by side and stored one after another: first all steps of lane 0, then those of lane 1. The last row
of a lane is marked terminal although its game went on, so that no window of frames runs from one lane into the next.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from launch.cli import guarded
from sgi.atari import SIZE, AtariVec, display_name, num_actions, record_ram
from sgi.dqn_replay import Writer
from training.errors import UserError

BLOCK = 4096  # rows handed to the writer at once
RECORD = "collect.json"  # beside replay_logs: settings and summary, written last


def held_actions(rng: np.random.Generator, steps: int, actions: int, repeat: float) -> np.ndarray:
    """int64 [steps]: uniform actions, each held for a number of steps drawn from Geom(`repeat`), of mean 1 / repeat."""
    holds = rng.geometric(repeat, size=steps)  # enough: each lasts a step at least
    return np.repeat(rng.integers(actions, size=steps), holds)[:steps]


def collect(
    game: str,
    steps: int,
    out: str | Path,
    *,
    seed: int = 0,
    envs: int = 8,
    run: int = 1,
    chunk: int = 1_000_000,
    repeat: float = 1 / 3,
    ram: bool = False,
    full_actions: bool = False,
    overwrite: bool = False,
) -> dict:
    """Records `steps` agent steps in all, under {out}/{Game}/{run}, and returns what was recorded.

    Returns `game`, `steps`, `episodes` (finished ones), `mean_score` of these (None if there are none), `seconds`,
    `steps_per_second` of the play alone, and `files`, relative to `out`.

    The recording depends on the settings only, appears whole or not at all, and is not made twice: a folder that holds one of
    the same settings is left as it is. Raises UserError if it holds anything else, unless `overwrite`.
    While it runs it takes 7 kB of disk a step in `out`, and 7 kB for each row of a chunk; memory stays flat.
    With `ram` the console's memory at each frame is stored too, as kind `ram` uint8 [n, 128].
    """
    game, out = display_name(game), Path(out)
    if not 1 <= envs <= steps or min(chunk, run) < 1 or seed < 0 or not 0 < repeat <= 1:
        raise UserError("collect needs 1 <= envs <= steps, chunk >= 1, run >= 1, seed >= 0 and 0 < repeat <= 1")
    settings = {
        "game": game, "steps": steps, "seed": seed, "envs": envs, "run": run, "chunk": chunk, "repeat": repeat, "ram": ram,
        "full_actions": full_actions,
    }  # fmt: skip
    target = out / game / str(run)
    if not overwrite and (found := _existing(target, settings)):
        return found
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".collecting-", dir=out) as scratch:
        summary = _record(settings, Path(scratch))
        made = Path(scratch) / game / str(run)
        (made / RECORD).write_text(json.dumps({"settings": settings, "summary": summary}, indent=1) + "\n")
        target.parent.mkdir(exist_ok=True)
        if overwrite:
            shutil.rmtree(target, ignore_errors=True)
        try:
            made.rename(target)
        except OSError:
            if (found := _existing(target, settings)) is None:
                raise
            return found  # another process was quicker
    return summary


def _existing(target: Path, settings: dict) -> dict | None:
    """The summary of a finished recording of the same settings; None if there is nothing at all."""
    if not target.exists() or not any(target.iterdir()):
        return None
    if (target / RECORD).exists():
        record = json.loads((target / RECORD).read_text())
        if record["settings"] == settings:
            return record["summary"]
    raise UserError(f"{target} holds something else: give --overwrite, another --out or another --run")


def _record(settings: dict, root: Path) -> dict:
    game, steps, lanes, full = (settings[key] for key in ("game", "steps", "envs", "full_actions"))
    began = time.perf_counter()
    rows = -(-steps // lanes)
    rngs = [np.random.default_rng(np.random.SeedSequence((settings["seed"], lane))) for lane in range(lanes)]
    actions = np.stack([held_actions(rng, rows, num_actions(game, full), settings["repeat"]) for rng in rngs])
    with tempfile.TemporaryFile(dir=root) as spill:
        frames = np.memmap(spill, np.uint8, "w+", shape=(lanes, rows, SIZE, SIZE))
        env = AtariVec(game, lanes, seed=settings["seed"], life_loss=False, full_action_space=full)
        ready = time.perf_counter()
        rewards, terminals, starts, scores = _play(env, actions, frames)
        played = time.perf_counter() - ready
        env.close()
        with Writer(root, game, settings["run"], settings["chunk"]) as writer:
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
                    arrays["ram"] = np.concatenate([*_memory(game, starts[lane], actions[lane], frames[lane], full)])[:count]
                for begin in range(0, count, BLOCK):
                    writer.append(**{kind: array[begin : begin + BLOCK] for kind, array in arrays.items()})
    return {
        "game": game,
        "steps": steps,
        "episodes": len(scores),
        "mean_score": float(np.mean(scores)) if scores else None,
        "seconds": round(time.perf_counter() - began, 2),
        "steps_per_second": round(lanes * rows / played, 1),
        "files": [str(path.relative_to(root)) for path in writer.files],
    }


def _play(env: AtariVec, actions, frames):
    """Plays actions [N, T] and fills frames [N, T, 84, 84].

    -> rewards float32 [N, T], terminals bool [N, T], [(first row, no-ops) of each game] of each lane, scores of finished games
    """
    rewards, terminals, scores = np.zeros(actions.shape, np.float32), np.zeros(actions.shape, bool), []
    observation, _ = env.reset()
    starts = [[(0, int(noops))] for noops in env.noops]
    for t in range(actions.shape[1]):
        frames[:, t] = observation[:, -1]
        observation, rewards[:, t], terminated, truncated, info = env.step(actions[:, t])
        terminals[:, t] = terminated | truncated
        for lane in np.flatnonzero(terminals[:, t]):
            scores.append(float(info["episode_return"][lane]))
            starts[lane].append((t + 1, int(env.noops[lane])))
    return rewards, terminals, starts, scores


def _memory(game, starts, actions, frames, full) -> Iterator[np.ndarray]:
    """RAM uint8 [n, 128] of each game of one lane, by playing it again."""
    ends = [*(begin for begin, _ in starts[1:]), len(actions)]
    for (begin, noops), end in zip(starts, ends, strict=True):
        if begin < end:
            memory, seen = record_ram(game, noops, actions[begin:end], full_action_space=full)
            if not np.array_equal(seen, frames[begin:end]):
                raise RuntimeError(f"{game}: the game from row {begin} did not play the same way twice")
            yield memory


def main(argv: list[str]) -> None:
    """The command line: records, and prints one line about it."""
    parser = argparse.ArgumentParser(prog="python -m sgi.collect", description=__doc__.split("\n")[0])
    parser.add_argument("--game", required=True, help="'boxing' or 'Boxing'")
    parser.add_argument("--steps", type=int, required=True, help="agent steps in all")
    parser.add_argument("--out", required=True, help="root of the DQN Replay layout")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--envs", type=int, default=8, help="lanes played side by side")
    parser.add_argument("--run", type=int, default=1, help="the layout's run number")
    parser.add_argument("--chunk", type=int, default=1_000_000, help="rows in one file")
    parser.add_argument("--repeat", type=float, default=1 / 3, help="p of the geometric hold; mean 1/p steps")
    parser.add_argument("--ram", action="store_true", help="store the console's memory too")
    parser.add_argument("--full-actions", action="store_true", help="all 18 actions")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    done = collect(**vars(parser.parse_args(argv)))
    score = "no game finished" if done["mean_score"] is None else f"mean score {done['mean_score']:.1f}"
    rate = f"{done['steps_per_second']:.0f} steps/s"
    print(f"{done['game']}: {done['steps']} steps at {rate}, {done['episodes']} episodes, {score};", *done["files"])


if __name__ == "__main__":
    guarded(main)
