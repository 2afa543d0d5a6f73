"""The stream of fine-tuning: play one game with the current policy, one transition a batch.

The first batch is the random prefill (several steps at once): it is stored and not learned from. Every process of a run plays
the same game with the same keys, so transitions are replicated and the emulator need not be shared.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from sgi.agent.replay import Transition
from sgi.atari.emulator import AtariVec
from sgi.atari.recorder import Recorder
from training.method import TrainState
from training.sharding import place_replicated, replicated, replicated_spec

# (what `reads` leaves of the state, stack uint8 [1, 84, 84, 4]) -> action int32 [1], stored observation [1, ...]
ActorPolicy = Callable[[TrainState, jax.Array], tuple[jax.Array, jax.Array]]


def transition_spec(observation: jax.ShapeDtypeStruct, mesh: Mesh) -> Transition:
    """The usual batch, one transition on every device, of which the replay stores `observation`."""
    one = lambda shape, dtype: jax.ShapeDtypeStruct((1, *shape), dtype)  # noqa: E731
    scalars = one((), np.int32), one((), np.float32), one((), bool), one((), bool)
    return replicated_spec(Transition(one(observation.shape, observation.dtype), *scalars), mesh)


class ActorStream:
    """A stream of transitions of one environment.

    Args:
      env: vector of one environment; closed with the stream.
      policy: jitted here; picks the action and the observation that the replay stores.
      spec: of one transition (`transition_spec`).
      prefill: random steps in the first batch.
      seed: of the random steps.
    """

    def __init__(self, env: AtariVec, policy: ActorPolicy, spec: Transition, *, prefill: int, seed: int, mesh: Mesh):
        if env.num_envs != 1:
            raise ValueError("ActorStream plays one environment")
        self._env, self._mesh, self._prefill, self._seed = env, mesh, prefill, seed
        self._frames = spec.observation.dtype == np.uint8  # the replay stores frames, not latents
        self._policy = jax.jit(policy, out_shardings=replicated(mesh))
        self._stack, _ = env.reset()
        self._start = True  # the current observation is the first of an episode (a lost life ends one)
        self._steps = 0
        self.recorder = Recorder(1)

    def next(self, state: TrainState) -> Transition:
        if self._steps:
            return self._step(state)
        rng = np.random.default_rng([self._seed, 0xF111])
        actions = rng.integers(self._env.single_action_space.n, size=self._prefill)
        rows = [self._step(state, action) for action in actions]
        return place_replicated(jax.tree.map(lambda *x: np.concatenate(x), *rows), self._mesh)

    def reads(self, state: TrainState) -> TrainState:
        extra = {name: state.extra[name] for name in ("stats", "q_target") if name in state.extra}
        return TrainState(step=state.step, seed=state.seed, params=state.params, opt_state=None, extra=extra)

    def get_state(self) -> dict:
        return {
            "env": self._env.get_state(),
            "start": bool(self._start),
            "steps": self._steps,
            "played": self.recorder.get_state(),
        }

    def set_state(self, saved: dict) -> None:
        self._stack = self._env.set_state(saved["env"])
        self._start, self._steps = saved["start"], saved["steps"]
        self.recorder.set_state(saved.get("played"))

    def close(self) -> None:
        self._env.close()

    def report(self) -> dict[str, float]:
        return {}

    def _step(self, state: TrainState, forced: int | None = None) -> Transition:
        """One step of play; only the action leaves the device."""
        if forced is not None and self._frames:  # random play for a replay of frames: no network
            action, stored = np.array([forced], np.int32), place_replicated(self._stack[:, -1], self._mesh)
        else:
            stack = place_replicated(np.moveaxis(self._stack, 1, -1), self._mesh)
            chosen, stored = self._policy(self.reads(state), stack)
            action = np.asarray(chosen.addressable_data(0)) if forced is None else np.array([forced], np.int32)
        self.recorder.add(self._stack, action)
        self._stack, reward, terminated, truncated, _ = self._env.step(action)
        done = terminated | truncated
        rest = place_replicated((action, np.sign(reward).astype(np.float32), done, np.array([self._start])), self._mesh)
        self._start = bool(done[0])
        self._steps += 1
        return Transition(stored, *rest)
