"""What a frozen encoder knows: linear probes of the console's RAM, inverse accuracy, collapse (docs/sgi.md).

    python -m sgi.probe runs/boxing-sgi runs/boxing-untrained --train DIR --test DIR --game boxing --out probes.json

Encoders act with running statistics and no augmentation. Probes are ridge regressions whose strength is chosen on a part of
the training frames, for every encoder alike; scores are of the test recording, another seed of the same collection.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgi.atari.emulator import rom_name
from sgi.nets.augment import prepare
from sgi.nets.sgi_net import SGINet, flatten
from sgi.nets.targets import mean_cosine
from sgi.pretrain import build_net
from sgi.recordings.dqn_replay import Store
from sgi.recordings.open import open_play
from sgi.recordings.trajectories import Windows, stack_frames
from training import runtime
from training.cli import guarded
from training.errors import UserError
from training.runs import Run

# RAM addresses of positions: Anand et al. 2019 (AtariARI).
POSITIONS = {
    "boxing": {"player_x": 32, "player_y": 34, "enemy_x": 33, "enemy_y": 35},
    "breakout": {"ball_x": 99, "ball_y": 101, "player_x": 72},
    "freeway": {"player_y": 14},
    "pong": {"player_y": 51, "enemy_y": 50, "ball_x": 49, "ball_y": 54},
}
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)


class Encoded(NamedTuple):
    """Features of M windows."""

    spatial: np.ndarray  # float32 [M, D] latents
    projection: np.ndarray  # float32 [M, P]
    pairs: np.ndarray  # float32 [M, 2 P]: projections of an observation and of the next
    positions: np.ndarray  # float32 [M, positions]
    action: np.ndarray  # int [M]: the action that led from one to the next


def probe(net: SGINet, variables: dict, train: Store, test: Store, game: str, *, samples: int = 3000) -> dict:
    """All figures of one encoder, by name.

    r2_spatial, r2_projection        mean over positions of the test R^2 of a ridge probe on latents, on projections
    inverse_probe                    test accuracy of a ridge classifier of the action, on pairs of projections
    inverse_accuracy                 test accuracy of the model's own inverse head, if it has one
    cosine, rank                     mean cosine between projections; effective rank exp(H) of their singular values
    """
    a, b = (encode(net, variables, store, game, samples, seed) for store, seed in ((train, 0), (test, 1)))
    classes = np.eye(net.num_actions, dtype=np.float32)
    scores = ridge(a.pairs, classes[a.action], b.pairs)
    result = {
        "r2_spatial": float(r2(b.positions, ridge(a.spatial, a.positions, b.spatial)).mean()),
        "r2_projection": float(r2(b.positions, ridge(a.projection, a.positions, b.projection)).mean()),
        "inverse_probe": float((scores.argmax(1) == b.action).mean()),
        "cosine": float(mean_cosine(jnp.asarray(b.projection))),
        "rank": effective_rank(b.projection),
    }
    if net.inverse:
        half = b.pairs.shape[1] // 2
        logits = net.apply(variables, b.pairs[:, :half], b.pairs[:, half:], method="inverse_logits")
        result["inverse_accuracy"] = float((np.asarray(logits).argmax(1) == b.action).mean())
    return result


def encode(net: SGINet, variables: dict, store: Store, game: str, samples: int, seed: int) -> Encoded:
    """Features of `samples` windows drawn without replacement (all, if there are fewer)."""
    if game not in POSITIONS:
        raise UserError(f"no RAM positions are known for {game}; there are {', '.join(POSITIONS)}")
    windows = Windows(store, jumps=1, goal_window=None)
    index = np.sort(np.random.default_rng(seed).permutation(len(windows))[:samples])
    head = "goal" if net.goal else "reward"

    @jax.jit
    def features(frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        images = stack_frames(frames)
        z = net.apply(variables, prepare(images.reshape(-1, *images.shape[2:])), train=False, method="encode")
        y = net.apply(variables, z, head, method="project")
        return flatten(z).reshape(*images.shape[:2], -1)[:, 0], y.reshape(images.shape[0], -1)

    batches = np.array_split(index, max(1, len(index) // 100))
    rows = [windows.batch(part, np.zeros(len(part), np.uint64)) for part in batches]
    spatial, pairs = (np.concatenate(x) for x in zip(*(jax.device_get(features(r["frames"])) for r in rows), strict=True))
    ram = store.rows("ram", windows.start(index))[:, list(POSITIONS[game].values())]
    action = np.concatenate([r["action"][:, 0] for r in rows])
    return Encoded(spatial, pairs[:, : pairs.shape[1] // 2], pairs, ram.astype(np.float32), action)


def ridge(x: np.ndarray, y: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Ridge regression with intercept on standardised features, predictions for `x_test`.

    The strength that is best on the last fifth of the
    training rows is used for a fit on all of them.
    """
    cut = len(x) * 4 // 5
    errors = [np.square(_fit(x[:cut], y[:cut], s)(x[cut:]) - y[cut:]).mean() for s in STRENGTHS]
    return _fit(x, y, STRENGTHS[int(np.argmin(errors))])(x_test)


def _fit(x: np.ndarray, y: np.ndarray, strength: float):
    mean, scale, offset = x.mean(0), x.std(0) + 1e-6, y.mean(0)
    z = (x - mean) / scale
    if len(x) < x.shape[1]:  # the smaller of the two Gram matrices
        weights = z.T @ np.linalg.solve(z @ z.T + strength * np.eye(len(x)), y - offset)
    else:
        weights = np.linalg.solve(z.T @ z + strength * np.eye(x.shape[1]), z.T @ (y - offset))
    return lambda new: (new - mean) / scale @ weights + offset


def r2(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """R^2 of each column: 1 - squared error / variance."""
    return 1 - np.square(truth - prediction).sum(0) / np.square(truth - truth.mean(0)).sum(0)


def effective_rank(x: np.ndarray) -> float:
    """Exponential of the entropy of the normalised singular values of the centred matrix (Roy & Vetterli 2007)."""
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = s / s.sum()
    return float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sgi.probe", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="workdirs of pretraining runs")
    parser.add_argument("--train", required=True, help="recording with RAM (sgi.collect --ram) to fit the probes on")
    parser.add_argument("--test", required=True, help="another one to score them on")
    parser.add_argument("--game", required=True)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--out", help="JSON file for the result")
    args = parser.parse_args(argv)
    game = rom_name(args.game)
    results = {}
    for workdir in args.runs:
        run = Run(workdir).needs("sgi.pretrain")
        config = run.config
        runtime.setup(**config.runtime)
        train, test = (open_play(root, game) for root in (args.train, args.test))
        arrays = run.arrays(only=("params", "extra/stats"))
        variables = {"params": arrays["params"], "batch_stats": arrays["extra"]["stats"]}
        results[workdir] = probe(build_net(config), variables, train, test, game, samples=args.samples)
        print(workdir, json.dumps({k: round(v, 4) for k, v in results[workdir].items()}), flush=True)
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    guarded(main)
