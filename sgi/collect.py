"""Play recorded on the emulator, in the DQN Replay layout.

    python -m sgi.collect --game boxing --steps 20000 --out recordings [--policy random --seed 0 --envs 8 --ram]

Policies
    random   the data of SGI-R (Schwarzer et al. 2021): each action is drawn uniformly and held for Geom(1/3) steps (1, 2, ...;
             mean 3). The reference holds it for one step more than it draws (1 + Geom); here it is the number drawn
    cells    explores from places seen before, reward-free: `sgi.atari.explore`
    learner  what a fine-tuning or curiosity run did as it learned, played again: `--policy learner --workdir RUN`. SGI-W is
             the first part of several such runs, SGI-E a curious one's. Game, lanes, seed and rules are the run's
    checkpoint  a fine-tuned agent, epsilon-greedy, that learns no more: `--policy checkpoint --workdir RUN --epsilon 0.05`

No sticky actions (unless the run had them), unclipped rewards, `terminal` = the game is over (or was cut at 27,000 steps), not
a lost life.

Several lanes are played side by side and stored one after another: first all steps of lane 0, then those of lane 1. The last
row of a lane is marked terminal although its game went on, so that no window of frames runs from one lane into the next; so is
the row before `cells` goes back.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sgi.agent import learners
from sgi.atari import explore
from sgi.atari.emulator import SIZE, AtariVec, display_name, num_actions, record_ram
from sgi.atari.explore import BURST, MAX_CELLS, held_actions
from sgi.recordings.dqn_replay import Writer
from training.cli import guarded
from training.errors import UserError

BLOCK = 4096  # rows handed to the writer at once
RECORD = "collect.json"  # beside replay_logs: settings and summary, written last

# A policy plays `settings["steps"]` steps and calls `write(observation=, action=, reward=, terminal=[, ram=])` with rows in the
# order in which they are to be stored, any number at once. The path is a folder for temporary files. It returns its part of the
# summary: `episodes`, `mean_score`, `steps_per_second` and what else it counts.
Policy = Callable[[dict, Path, Callable[..., None]], dict]


def collect(
    game: str | None,
    steps: int | None,
    out: str | Path,
    *,
    policy: str = "random",
    workdir: str | None = None,
    member: int = 0,
    epsilon: float = 0.05,
    seed: int = 0,
    envs: int | None = None,
    run: int = 1,
    chunk: int = 1_000_000,
    repeat: float = 1 / 3,
    ram: bool = False,
    full_actions: bool = False,
    max_cells: int = MAX_CELLS,
    burst: int = BURST,
    overwrite: bool = False,
) -> dict:
    """Records `steps` agent steps in all, under {out}/{Game}/{run}, and returns what was recorded.

    Returns `game`, `steps`, `episodes` (finished ones), `mean_score` of these (None if there are none), `seconds`,
    `steps_per_second` of the play alone, `cells` found (by `cells`), and `files`, relative to `out`.

    The recording depends on the settings only, appears whole or not at all, and is not made twice: a folder that holds one of
    the same settings is left as it is. Raises UserError if it holds anything else, unless `overwrite`.
    While it runs it takes 7 kB of disk a step in `out`, and 7 kB for each row of a chunk; memory stays flat.
    With `ram` the console's memory at each frame is stored too, as kind `ram` uint8 [n, 128]. `envs`: lanes, 8 unless given;
    the policy `cells` has one. `max_cells`: those that `cells` can go back to, 16 kB of memory each; `burst`: steps at most
    until it goes back, and half of that at least. `workdir`, `member` of a population: the run of `learner` and `checkpoint`,
    where `game` may be None; `learner` has the run's lanes and seed, and plays all that it did where `steps` is None.
    """
    if policy not in POLICIES:
        raise UserError(f"no policy {policy!r}: {', '.join(POLICIES)}")
    own = {}
    if policy in learners.POLICIES:
        if workdir is None or game is not None:
            raise UserError(f"the policy {policy} plays a run's game: give --workdir, and no --game")
        own = learners.settings(policy, workdir, member, epsilon, steps)
        game, steps, full_actions = own.pop("game"), own.pop("steps"), own.pop("full_actions")
        seed, envs = own.pop("seed", seed), own.pop("envs", envs)
    if game is None or steps is None:
        raise UserError(
            f"the policy {policy} needs --game and --steps" if game is None else f"the policy {policy} needs --steps"
        )
    game, out = display_name(game), Path(out)
    if policy == "cells" and (envs not in (None, 1) or min(max_cells, burst) < 1):
        raise UserError("the policy cells needs envs = 1, max_cells >= 1 and burst >= 1")
    if envs is None:
        envs = 1 if policy == "cells" else 8
    if not 1 <= envs <= steps or min(chunk, run) < 1 or not 0 <= seed < 2**32 or not 0 < repeat <= 1:
        raise UserError("collect needs 1 <= envs <= steps, chunk >= 1, run >= 1, 0 <= seed < 2^32 and 0 < repeat <= 1")
    settings = {
        "game": game, "steps": steps, "seed": seed, "envs": envs, "run": run, "chunk": chunk, "repeat": repeat, "ram": ram,
        "full_actions": full_actions, "policy": policy, **own,
    }  # fmt: skip
    if policy == "cells":
        settings |= {"max_cells": max_cells, "burst": burst}
    target = out / game / str(run)
    if not overwrite and (found := _existing(target, settings)):
        return found
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".collecting-", dir=out) as scratch:
        summary = _record(settings, Path(scratch), POLICIES[policy])
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
        if {"policy": "random"} | record["settings"] == settings:  # there was no other one once
            return record["summary"]
    raise UserError(f"{target} holds something else: give --overwrite, another --out or another --run")


def _record(settings: dict, root: Path, policy: Policy) -> dict:
    began = time.perf_counter()
    with Writer(root, settings["game"], settings["run"], settings["chunk"]) as writer:
        played = policy(settings, root, writer.append)
    return {
        "game": settings["game"],
        "steps": settings["steps"],
        **played,
        "seconds": round(time.perf_counter() - began, 2),
        "files": [str(path.relative_to(root)) for path in writer.files],
    }


def play_random(settings: dict, scratch: Path, write: Callable[..., None]) -> dict:
    """The policy `random`."""
    lanes, rows = settings["envs"], -(-settings["steps"] // settings["envs"])
    choices = num_actions(settings["game"], settings["full_actions"])
    rngs = [np.random.default_rng(np.random.SeedSequence((settings["seed"], lane))) for lane in range(lanes)]
    actions = np.stack([held_actions(rng, rows, choices, settings["repeat"]) for rng in rngs])
    return play_lanes(settings, scratch, write, lambda t, _: actions[:, t])


def play_lanes(settings: dict, scratch: Path, write: Callable[..., None], act: Callable[[int, np.ndarray], np.ndarray]) -> dict:
    """Plays `envs` lanes of `AtariVec` side by side and writes one after another, for any policy of this kind.

    act: (t, observation uint8 [N, 4, 84, 84]) -> actions int [N]
    """
    game, steps, lanes, full = (settings[key] for key in ("game", "steps", "envs", "full_actions"))
    rows = -(-steps // lanes)
    with tempfile.TemporaryFile(dir=scratch) as spill:
        frames = np.memmap(spill, np.uint8, "w+", shape=(lanes, rows, SIZE, SIZE))
        options = {"life_loss": False, **settings.get("env", {}), "full_action_space": full}
        env = AtariVec(game, lanes, seed=settings["seed"], **options)
        ready = time.perf_counter()
        actions, rewards, terminals, starts, scores = _play(env, act, frames)
        played = time.perf_counter() - ready
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
        "steps_per_second": round(lanes * rows / played, 1),
    }


def play_run(settings: dict, scratch: Path, write: Callable[..., None]) -> dict:
    """The policies `learner` and `checkpoint`."""
    return play_lanes(settings, scratch, write, learners.POLICIES[settings["policy"]](settings))


POLICIES: dict[str, Policy] = {"random": play_random, "cells": explore.play, **dict.fromkeys(learners.POLICIES, play_run)}


def _play(env: AtariVec, act, frames):
    """Plays T steps and fills frames [N, T, 84, 84].

    -> actions int64 [N, T], rewards float32 [N, T], terminals bool [N, T], [(first row, no-ops, emulator's seed) of each game]
    of each lane, scores of finished games
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
    """RAM uint8 [n, 128] of each game of one lane, by playing it again."""
    ends = [*(begin for begin, *_ in starts[1:]), len(actions)]
    for (begin, noops, seed), end in zip(starts, ends, strict=True):
        if begin < end:
            options = {"full_action_space": env.full_action_space, "sticky": env.sticky, "seed": seed}
            memory, seen = record_ram(env.game, noops, actions[begin:end], **options)
            if not np.array_equal(seen, frames[begin:end]):
                raise RuntimeError(f"{env.game}: the game from row {begin} did not play the same way twice")
            yield memory


def main(argv: list[str]) -> None:
    """The command line: records, and prints one line about it."""
    parser = argparse.ArgumentParser(prog="python -m sgi.collect", description=__doc__.split("\n")[0])
    parser.add_argument("--game", help="'boxing' or 'Boxing'; not for `learner` and `checkpoint`")
    parser.add_argument("--steps", type=int, help="agent steps in all; `learner`: all of the run's unless given")
    parser.add_argument("--out", required=True, help="root of the DQN Replay layout")
    parser.add_argument("--policy", choices=sorted(POLICIES), default="random", help="who plays")
    parser.add_argument("--workdir", help="the run of `learner` and `checkpoint`")
    parser.add_argument("--member", type=int, default=0, help="which seed of a population, from 0 on")
    parser.add_argument("--epsilon", type=float, default=0.05, help="share of random actions of `checkpoint`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--envs", type=int, help="lanes played side by side; 8, with cells 1")
    parser.add_argument("--run", type=int, default=1, help="the layout's run number")
    parser.add_argument("--chunk", type=int, default=1_000_000, help="rows in one file")
    parser.add_argument("--repeat", type=float, default=1 / 3, help="p of the geometric hold; mean 1/p steps")
    parser.add_argument("--ram", action="store_true", help="store the console's memory too")
    parser.add_argument("--full-actions", action="store_true", help="all 18 actions")
    parser.add_argument("--max-cells", type=int, default=MAX_CELLS, help="cells to which `cells` can go back; 16 kB each")
    parser.add_argument("--burst", type=int, default=BURST, help="steps at most until `cells` goes back")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    done = collect(**vars(parser.parse_args(argv)))
    score = "no game finished" if done["mean_score"] is None else f"mean score {done['mean_score']:.1f}"
    score += f", {done['cells']} cells" if "cells" in done else ""
    rate = f"{done['steps_per_second']:.0f} steps/s"
    print(f"{done['game']}: {done['steps']} steps at {rate}, {done['episodes']} episodes, {score};", *done["files"])


if __name__ == "__main__":
    guarded(main)
