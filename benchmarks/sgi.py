"""Costs of SGI on this machine, in yardsticks: updates of encoders S and M, games, and fine-tuning as a whole.

    python -m benchmarks.sgi [--encoders S M] [--updates 5] [--rounds 3] [--steps 2000] [--json FILE]

    fine-tune   one update of Rainbow with self-prediction, 32 sequences, K = 5, 18 actions: sampling from 100,000 items,
                augmentation, priorities and targets included
    pretrain    one update of S + I + G, 64 windows, K = 5, 18 actions
    play        agent steps a second of fine-tuning as a whole: the game, the policy and two updates a step
    games       steps a second of 1, 8 and 32 games at once (Boxing), beside Gymnasium's own vector environment

A yardstick is the time of one product of two 2048 x 2048 float32 matrices in numpy on all cores, taken in each round: figures
in yardsticks hold across machines. Compilation and first calls do not count. Each encoder runs in a process of its own, since
XLA's flags (config.runtime) hold for a process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.kbc import YARDSTICK, Run, measure, publish, yardstick
from configs.sgi import finetune as finetune_config
from configs.sgi import pretrain as pretrain_config
from sgi import finetune, pretrain
from sgi.atari.emulator import STACK, AtariVec
from training import files, runtime
from training.cli import guarded
from training.config import set_value
from training.errors import UserError
from training.sharding import make_mesh

GAMES = (1, 8, 32)
BATCH = {"finetune": 32, "pretrain": 64}


def settings(config: ConfigDict, **values: object) -> ConfigDict:
    """A copy with some values changed."""
    config = config.copy_and_resolve_references()
    for key, value in values.items():
        set_value(config, key.replace("__", "."), str(value))
    return config.lock()


def finetune_settings(encoder: str, updates: int) -> ConfigDict:
    return settings(
        finetune_config.get_config("none"),
        net__encoder=encoder, batch=BATCH["finetune"], env__game="Boxing", env__full_action_space=True, agent__updates=updates,
    )  # fmt: skip


def fine_tuning(encoder: str, updates: int) -> Run:
    """Seconds of an update, the newest transition repeated."""
    step, state, stream = agent(finetune_settings(encoder, 1))
    one = stream.next(state)
    return seconds(step, state, one, updates)


def agent(config: ConfigDict) -> tuple:
    """(jitted step, state after the prefill and the first update, stream)."""
    method = finetune.make(config, make_mesh(1, 1, 1, jax.devices()[:1]))
    stream = method.stream(())
    step = jax.jit(method.step, donate_argnums=0)
    state = jax.jit(method.init, compiler_options=runtime.fast_compile())(jnp.uint32(0))
    for _ in range(2):
        state, _ = step(state, stream.next(state), ())
    return step, state, stream


def pretraining(encoder: str, updates: int) -> Run:
    """Seconds of an update on windows of noise."""
    config = settings(
        pretrain_config.get_config("mixed"),
        net__encoder=encoder, batch=BATCH["pretrain"], data__game="Boxing", data__full_action_space=True,
    )  # fmt: skip
    method = pretrain.make(config, make_mesh(1, 1, 1, jax.devices()[:1]))
    rng, B, K = np.random.default_rng(0), config.batch, config.loss.jumps
    batch = {
        "frames": rng.integers(0, 256, (B, STACK + K, 84, 84), np.uint8),
        "action": rng.integers(0, 18, (B, K), np.int32),
        "mask": np.ones((B, K + 1), np.float32),
        "goal": rng.integers(0, 256, (B, STACK, 84, 84), np.uint8),
    }
    state = jax.jit(method.init, compiler_options=runtime.fast_compile())(jnp.uint32(0))
    step = jax.jit(method.step, donate_argnums=0)
    return seconds(step, *step(state, jax.device_put(batch), ())[:1], jax.device_put(batch), updates)


def seconds(step, state, batch, updates: int) -> Run:
    """Seconds of one call of `step`; the first call compiles, and later ones must not."""
    state, metrics = step(state, batch, ())
    jax.block_until_ready(metrics)
    programs = step._cache_size()

    def run() -> float:
        nonlocal state
        begin = time.perf_counter()
        for _ in range(updates):
            state, metrics = step(state, batch, ())
            jax.block_until_ready(metrics)
        if step._cache_size() > programs:
            raise RuntimeError("the update was compiled again")
        return (time.perf_counter() - begin) / updates

    return run


def playing(encoder: str, steps: int) -> Run:
    """Agent steps a second."""
    step, state, stream = agent(finetune_settings(encoder, 2))

    def run() -> float:
        nonlocal state
        begin = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, stream.next(state), ())
        jax.block_until_ready(metrics)
        return steps / (time.perf_counter() - begin)

    return run


def games(count: int, steps: int) -> dict[str, Run]:
    """Steps a second over all games: ours, and Gymnasium's vector environment of the same games."""
    turns = -(-steps // count)
    actions = np.random.default_rng(0).integers(18, size=(turns, count))
    ours = AtariVec("boxing", count, seed=0)
    theirs = gymnasium.make_vec("ALE/Boxing-v5", num_envs=count)

    def rate(env) -> Run:
        env.reset()

        def run() -> float:
            begin = time.perf_counter()
            for action in actions:
                env.step(action)
            return turns * count / (time.perf_counter() - begin)

        return run

    return {f"games_{count}": rate(ours), f"gymnasium_{count}": rate(theirs)}


def one_encoder(encoder: str, updates: int, rounds: int) -> dict[str, list[float]]:
    """All rounds of one encoder, in this process."""
    runtime.setup(ynn=encoder == "S")  # as configs/sgi/pretrain.py: shifted sums, which M consists of, are slow under YNN
    runs = {
        "yardstick": yardstick(),
        f"finetune_{encoder}": fine_tuning(encoder, updates),
        f"pretrain_{encoder}": pretraining(encoder, updates),
        f"play_{encoder}": playing(encoder, updates),
    }
    return measure(runs, rounds)


def in_child(encoder: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """`one_encoder` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.sgi", "--child", encoder]
    command += ["--updates", str(args.updates), "--rounds", str(args.rounds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the run of encoder {encoder} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(result: dict) -> str:
    """The result for people."""
    lines = [f"{result['cores']} cores; median of {result['rounds']} rounds"]
    for encoder, found in result["encoders"].items():
        yard = found["yardstick"]
        lines.append(f"  encoder {encoder}, yardstick ({YARDSTICK}^3 product, numpy) {yard * 1e3:.0f} ms")
        for kind in ("finetune", "pretrain"):
            cost = found[f"{kind}_{encoder}"]
            lines.append(f"    {kind} update, batch {BATCH[kind]:2d}  {cost * 1e3:8.0f} ms {cost / yard:8.1f} yardsticks")
        lines.append(f"    play, 2 updates a step     {found[f'play_{encoder}']:8.1f} steps/s")
    for count in GAMES:
        ours, theirs = (result["games"][f"{name}_{count}"] for name in ("games", "gymnasium"))
        lines.append(f"  {count:2d} games   {ours:8.0f} steps/s   Gymnasium {theirs:8.0f}   {ours / theirs:5.2f} x")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sgi", description=__doc__.split("\n")[0])
    parser.add_argument("--encoders", nargs="*", choices=["S", "M", "L"], default=["S", "M"])
    parser.add_argument("--updates", type=files.positive, default=5, help="updates, or agent steps, in a round")
    parser.add_argument("--rounds", type=files.positive, default=3)
    parser.add_argument("--steps", type=files.positive, default=2000, help="steps of games in a round")
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--child", choices=["S", "M", "L"], help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(one_encoder(args.child, args.updates, args.rounds)))
        return
    if args.json:
        files.check_place(args.json)
    found = {encoder: in_child(encoder, args) for encoder in args.encoders}
    played = measure({name: run for count in GAMES for name, run in games(count, args.steps).items()}, args.rounds)
    median = lambda rounds: {name: statistics.median(x) for name, x in rounds.items()}  # noqa: E731
    result = {
        "benchmark": "sgi", "cores": len(os.sched_getaffinity(0)), "rounds": args.rounds, "updates": args.updates,
        "encoders": {encoder: median(rounds) for encoder, rounds in found.items()}, "games": median(played),
        "all": {**found, "games": played}, **runtime.describe(),
    }  # fmt: skip
    publish(result, table(result), args.json)


if __name__ == "__main__":
    guarded(main)
