"""The stream of on-policy learning: many games side by side, a stretch of all of them a batch.

Every process of a run plays all games with the same keys and hands over its own rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sgi.atari.emulator import SIZE, STACK, AtariVec
from sgi.atari.recorder import Recorder
from training.method import TrainState
from training.sharding import batch_spec, my_rows, place_replicated, place_rows, replicated

# (what `reads` leaves of the state, stacks uint8 [N, 84, 84, 4], index of the step in its stretch)
#   -> action int32 [N], its log-probability [N], value [N]
RolloutPolicy = Callable[[TrainState, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]


class Rollout(NamedTuple):
    """The batch of a RolloutStream: T steps of N games. Observation T is the one after the last action."""

    frames: jax.Array  # uint8 [N, STACK + T, 84, 84]: frame k + STACK - 1 is the newest of observation k
    start: jax.Array  # bool [N, T + 1]: observation k is a game's first
    action: jax.Array  # int32 [N, T]
    log_prob: jax.Array  # float32 [N, T]
    value: jax.Array  # float32 [N, T + 1]
    reward: jax.Array  # float32 [N, T], the game's own, unclipped: only to be reported


def rollout_spec(games: int, horizon: int, mesh: Mesh) -> Rollout:
    """The spec of a batch: `horizon` steps of so many games."""
    shapes = {
        "frames": ((STACK + horizon, SIZE, SIZE), np.uint8),
        "start": ((horizon + 1,), bool),
        "action": ((horizon,), np.int32),
        "log_prob": ((horizon,), np.float32),
        "value": ((horizon + 1,), np.float32),
        "reward": ((horizon,), np.float32),
    }
    row = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
    return Rollout(**batch_spec(row, games, mesh))


class RolloutStream:
    """A stream of stretches of many games side by side.

    Args:
      env: the games, without life_loss: a lost life goes unnoticed. Closed with the stream.
      policy: jitted here.
      spec: of a batch (`rollout_spec`).
      view: the part of the state that the policy reads, the rest None.
    """

    def __init__(self, env: AtariVec, policy: RolloutPolicy, spec: Rollout, *, view: Callable[[TrainState], TrainState]):
        mesh = spec.action.sharding.mesh
        self._env, self._spec, self._horizon, self._mesh, self.reads = env, spec, spec.action.shape[1], mesh, view
        self._policy = jax.jit(policy, out_shardings=replicated(mesh))
        self._stack = None  # no game has begun: many lanes take seconds, which a run that goes on need not spend
        self._start = np.ones(env.num_envs, bool)
        self.recorder = Recorder(env.num_envs)

    def next(self, state: TrainState) -> Rollout:
        self._begin()
        view, N, T = self.reads(state), self._env.num_envs, self._horizon
        host = Rollout(**{name: np.zeros((N, *spec.shape[1:]), spec.dtype) for name, spec in self._spec._asdict().items()})
        host.frames[:, :STACK] = self._stack
        for t in range(T + 1):
            stack = place_replicated(np.moveaxis(self._stack, 1, -1), self._mesh)
            action, log_prob, value = (np.asarray(x.addressable_data(0)) for x in self._policy(view, stack, np.int32(t)))
            host.start[:, t], host.value[:, t] = self._start, value
            if t == T:
                break
            self.recorder.add(self._stack, action)
            self._stack, host.reward[:, t], over, cut, _ = self._env.step(action)
            self._start = over | cut
            host.action[:, t], host.log_prob[:, t], host.frames[:, STACK + t] = action, log_prob, self._stack[:, -1]
        mine = my_rows(N, self._mesh)
        return Rollout(*place_rows(tuple(x[mine] for x in host), self._mesh, N))

    def _begin(self) -> None:
        if self._stack is None:
            self._stack, _ = self._env.reset()

    def get_state(self) -> dict:
        self._begin()
        return {"env": self._env.get_state(), "start": self._start.copy(), "played": self.recorder.get_state()}

    def set_state(self, saved: dict) -> None:
        self._stack = self._env.set_state(saved["env"])
        self._start = np.asarray(saved["start"])
        self.recorder.set_state(saved.get("played"))

    def close(self) -> None:
        self._env.close()

    def report(self) -> dict[str, float]:
        return {}


def observations(frames: jax.Array, start: jax.Array) -> jax.Array:
    """Stacked observations of stretches, uint8 [N, T + 1, 84, 84, STACK].

    Args:
      frames: uint8 [N, STACK + T, 84, 84].
      start: [N, T + 1], True where a game begins.

    Frames from before a game's start are black (in the first observation they are already).
    """
    steps = start.shape[1]
    hidden = jnp.zeros(start.shape, bool)
    images = []
    for age in range(STACK):  # of a frame within its observation, from the newest backwards
        newest = STACK - 1 - age
        images.append(jnp.where(hidden[..., None, None], 0, frames[:, newest : newest + steps]))
        began = jnp.pad(start[:, : steps - age], ((0, 0), (age, 0)))  # observation k - age was a first one
        hidden = hidden | began
    return jnp.stack(images[::-1], -1)
