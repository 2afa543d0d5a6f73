"""Scores of a policy: full games, unclipped rewards, a seed of its own for every game (docs/sgi.md, Protocol)."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from sgi.atari import AtariVec, display_name
from sgi.scores import SCORES, human_normalised
from training.method import TrainState
from training.metrics import Video
from training.rng import key_for

FRAMES_PER_SECOND = 15  # agent steps a second: 60 Hz, 4 frames a step


def episodes(
    config: ConfigDict, act: Callable[[TrainState, jax.Array, jax.Array], jax.Array]
) -> Callable[[TrainState, int], dict]:
    """An `Eval.run` that plays `config.eval.episodes` games.

    Each of `lanes` emulators plays the same number of games, so that short games are not counted more often than long ones.

    Args:
      act: (state, stack uint8 [lanes, 84, 84, 4], key) -> action int [lanes]; jitted here.
    """
    options = config.eval

    @jax.jit
    def policy(state: TrainState, stack: jax.Array, t: int) -> jax.Array:
        action = act(state, stack, jax.random.fold_in(key_for(state.seed, state.step, "evaluation"), t))
        return jax.lax.with_sharding_constraint(action, P())  # every process reads all of it

    lanes = min(options.lanes, options.episodes)
    games = -(-options.episodes // lanes)
    seed = zlib.crc32(f"evaluation of seed {config.seed}".encode())

    def run(state: TrainState, step: int) -> dict[str, Any]:
        env = AtariVec(
            config.env.game, lanes, seed=seed, noop_max=config.env.noop_max, max_steps=options.max_steps,
            sticky=config.env.sticky, full_action_space=config.env.full_action_space,
        )  # fmt: skip
        stack, _ = env.reset()
        scores, lengths, film = [[] for _ in range(lanes)], [], []
        for t in range(options.max_steps * games):
            action = np.asarray(policy(state, np.moveaxis(stack, 1, -1), t))
            if not scores[0] and t < options.video_seconds * FRAMES_PER_SECOND:
                film.append(stack[0, -1])
            stack, _, _, truncated, info = env.step(action)
            for lane in np.flatnonzero(info["game_over"] | truncated):
                if len(scores[lane]) < games:
                    scores[lane].append(float(info["episode_return"][lane]))
                    lengths.append(int(info["episode_length"][lane]))
            if min(map(len, scores)) == games:
                break
        env.close()
        return summary(config.env.game, np.array(scores).ravel()[: options.episodes], lengths) | _video(film)

    return run


def random_play(game: str, episodes: int, seed: int) -> dict[str, float]:
    """The `summary` of `episodes` games of uniformly random actions."""
    env = AtariVec(game, episodes, seed=seed)
    env.reset()
    rng, scores, lengths = np.random.default_rng(seed), [None] * episodes, []
    while None in scores:
        _, _, _, truncated, info = env.step(rng.integers(env.single_action_space.n, size=episodes))
        for lane in np.flatnonzero(info["game_over"] | truncated):
            if scores[lane] is None:
                scores[lane] = float(info["episode_return"][lane])
                lengths.append(int(info["episode_length"][lane]))
    return summary(game, np.array(scores), lengths)


def summary(game: str, scores: np.ndarray, lengths: list[int]) -> dict[str, float]:
    """Mean, spread and human-normalised mean of the scores [episodes]."""
    result = {
        "score": float(scores.mean()),
        "score_sd": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
        "score_median": float(np.median(scores)),
        "score_min": float(scores.min()),
        "score_max": float(scores.max()),
        "episodes": float(len(scores)),
        "episode_length": float(np.mean(lengths)),
    }
    if display_name(game) in SCORES:
        result["human_normalised"] = float(human_normalised(game, scores.mean()))
    return result


def _video(film: list[np.ndarray]) -> dict[str, Video]:
    if not film:
        return {}
    frames = np.stack(film).repeat(2, 1).repeat(2, 2)
    return {"gameplay": Video(frames, FRAMES_PER_SECOND)}
