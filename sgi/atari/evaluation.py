"""Scores of a policy: full games, unclipped rewards, a seed of its own for every game (docs/sgi.md, Protocol)."""

import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from sgi.atari.emulator import AtariVec, display_name
from sgi.atari.scores import SCORES, comparison, normalise_score
from training.method import TrainState
from training.metrics import Text, Video
from training.rng import key_for

FRAMES_PER_SECOND = 15  # agent steps a second: 60 Hz, 4 frames a step


class Game(NamedTuple):
    """One finished game; `sgi.atari.emulator.replay` plays it again."""

    lane: int
    noops: int
    seed: int  # of the emulator
    actions: np.ndarray  # uint8 [T]
    score: float


def play(env: AtariVec, act: Callable[[np.ndarray, int], np.ndarray]) -> Iterator[Game]:
    """Play on and on, and yield games as they end.

    Args:
      act: (stack uint8 [N, 4, 84, 84], t = 0, 1, ...) -> actions int [N].
    """
    stack, _ = env.reset()
    moves = [[] for _ in range(env.num_envs)]
    for t in itertools.count():
        noops, seeds = env.noops.copy(), env.seeds.copy()  # a step that ends a game begins the next
        actions = act(stack, t)
        stack, _, _, truncated, info = env.step(actions)
        for lane, action in enumerate(actions):
            moves[lane].append(action)
        for lane in np.flatnonzero(info["game_over"] | truncated):
            history, moves[lane] = np.array(moves[lane], np.uint8), []
            yield Game(int(lane), int(noops[lane]), int(seeds[lane]), history, float(info["episode_return"][lane]))


def play_each(env: AtariVec, act: Callable[[np.ndarray, int], np.ndarray], games: int) -> list[list[Game]]:
    """The first `games` games of every lane, [N][games]."""
    done = [[] for _ in range(env.num_envs)]
    for game in play(env, act):
        if len(done[game.lane]) < games:
            done[game.lane].append(game)
        if min(map(len, done)) == games:
            return done


def make_env(config: ConfigDict, lanes: int, seed: int) -> AtariVec:
    """The game of a fine-tuning config, as evaluations play it."""
    return AtariVec(
        config.env.game, lanes, seed=seed, noop_max=config.env.noop_max, max_steps=config.eval.max_steps,
        sticky=config.env.sticky, full_action_space=config.env.full_action_space,
    )  # fmt: skip


def emulator_seed(seed: int) -> int:
    """The seed of the games that an evaluation of a run with `seed` plays."""
    return zlib.crc32(f"evaluation of seed {seed}".encode())


def policy(act: Callable[[TrainState, jax.Array, jax.Array], jax.Array]) -> Callable[..., np.ndarray]:
    """A policy (state, stack uint8 [N, 4, 84, 84], t) -> actions int [N] of `act` as in `episodes`, jitted here."""

    @jax.jit
    def choose(state: TrainState, stack: jax.Array, t: int) -> jax.Array:
        action = act(state, stack, jax.random.fold_in(key_for(state.seed, state.step, "evaluation"), t))
        return jax.lax.with_sharding_constraint(action, P())  # every process reads all of it

    return lambda state, stack, t: np.asarray(choose(state, np.moveaxis(stack, 1, -1), t))


def episodes(
    config: ConfigDict, act: Callable[[TrainState, jax.Array, jax.Array], jax.Array]
) -> Callable[[TrainState, Any, int], dict]:
    """An `Eval.run` that plays `config.eval.episodes` games.

    Each of `lanes` emulators plays the same number of games, so that short games are not counted more often than long ones.

    Args:
      act: (state, stack uint8 [lanes, 84, 84, 4], key) -> action int [lanes]; jitted here.
    """
    options = config.eval
    choose = policy(act)
    lanes = min(options.lanes, options.episodes)
    games_per_lane = -(-options.episodes // lanes)

    def run(state: TrainState, consts: Any, step: int) -> dict[str, Any]:
        env = make_env(config, lanes, emulator_seed(config.seed))
        film = []

        def act_and_film(stack: np.ndarray, t: int) -> np.ndarray:
            if t < options.video_seconds * FRAMES_PER_SECOND:
                film.append(stack[0, -1])
            return choose(state, stack, t)

        games = play_each(env, act_and_film, games_per_lane)
        env.close()
        first = len(games[0][0].actions)  # the film ends with the first game
        scores = summary(config.env.game, list(itertools.chain(*games))[: options.episodes])
        published = comparison(config.env.game)
        return scores | _video(film[:first]) | ({"published": Text(published)} if published else {})

    return run


def random_play(game: str, episodes: int, seed: int) -> dict[str, float]:
    """The `summary` of `episodes` games of uniformly random actions."""
    env = AtariVec(game, episodes, seed=seed)
    games = play_each(env, random_policy(env, seed), 1)
    return summary(game, list(itertools.chain(*games)))


def random_policy(env: AtariVec, seed: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Uniformly random actions, for `play`."""
    rng = np.random.default_rng(seed)
    return lambda stack, t: rng.integers(env.single_action_space.n, size=env.num_envs)


def summary(game: str, games: list[Game]) -> dict[str, float]:
    """Mean, spread and human-normalised mean of the scores."""
    scores = np.array([game.score for game in games])
    result = {
        "score": float(scores.mean()),
        "score_sd": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
        "score_median": float(np.median(scores)),
        "score_min": float(scores.min()),
        "score_max": float(scores.max()),
        "episodes": float(len(scores)),
        "episode_length": float(np.mean([len(game.actions) for game in games])),
    }
    if display_name(game) in SCORES:
        result["human_normalised"] = float(normalise_score(game, scores.mean()))
    return result


def _video(film: list[np.ndarray]) -> dict[str, Video]:
    if not film:
        return {}
    frames = np.stack(film).repeat(2, 1).repeat(2, 2)
    return {"gameplay": Video(frames, FRAMES_PER_SECOND)}
