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
"""

import argparse
from pathlib import Path

from sgi.agent import learners
from sgi.atari.explore import BURST, MAX_CELLS
from sgi.recordings import record
from sgi.recordings.record import Recording, play_lanes
from training.cli import guarded
from training.errors import UserError

RUNS = ("learner", "checkpoint")  # policies that play a run's game
POLICIES = (*record.POLICIES, *RUNS)


def collect_run(
    policy: str, workdir: str, out: str | Path, *, steps: int | None = None, member: int = 0, epsilon: float = 0.05,
    overwrite: bool = False, **values: object,
) -> dict:  # fmt: skip
    """Record what a run did (`learner`), or what its newest agent does (`checkpoint`); see `record.record`.

    Args:
      steps: `learner`: default: all that the run did.
      member: which seed of a population.
      epsilon: share of random actions of `checkpoint`.
      **values: of `Recording`; a learner has the run's lanes and seed.
    """
    more = learners.settings(policy, workdir, member, epsilon, steps)
    fixed = {name: more.pop(name) for name in ("game", "steps", "full_actions", "seed", "envs") if name in more}
    if fixed["steps"] is None:
        raise UserError(f"the policy {policy} needs --steps")
    recording = Recording(**{**values, **fixed}, policy=policy, more=more)
    act = {"learner": learners.learner, "checkpoint": learners.checkpoint}[policy]
    play = lambda settings, scratch, write: play_lanes(settings, scratch, write, act(settings))  # noqa: E731
    return record.record(recording, out, play=play, overwrite=overwrite)


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
    args = vars(parser.parse_args(argv))
    runs = {name: args.pop(name) for name in ("workdir", "member", "epsilon")}
    target = {"out": args.pop("out"), "overwrite": args.pop("overwrite")}
    if args["policy"] in RUNS:
        if runs["workdir"] is None or args.pop("game") is not None:
            raise UserError(f"the policy {args['policy']} plays a run's game: give --workdir, and no --game")
        done = collect_run(**target, **runs, **args)
    elif missing := [name for name in ("game", "steps") if args[name] is None]:
        raise UserError(f"the policy {args['policy']} needs --{' and --'.join(missing)}")
    else:
        done = record.record(Recording(**args), **target)
    score = "no game finished" if done["mean_score"] is None else f"mean score {done['mean_score']:.1f}"
    score += f", {done['cells']} cells" if "cells" in done else ""
    rate = f"{done['steps_per_second']:.0f} steps/s"
    print(f"{done['game']}: {done['steps']} steps at {rate}, {done['episodes']} episodes, {score};", *done["files"])


if __name__ == "__main__":
    guarded(main)
