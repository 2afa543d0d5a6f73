"""The agent's whole learning step on a game that it must be able to solve."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Discrete

from sgi import finetune
from training import config as configs
from training.sharding import make_mesh

CONFIG = Path(__file__).parents[2] / "configs" / "sgi" / "finetune.py"


class Columns:
    """A bright column says which of six actions pays 1; the one after it costs 1. Episodes of 20 steps."""

    num_envs, single_action_space = 1, Discrete(6)

    def __init__(self):
        self.rng, self.t = np.random.default_rng(0), 0

    def reset(self):
        return self._look(), {}

    def step(self, action):
        reward = np.array([(action[0] == self.column) - 1.0 * (action[0] == (self.column + 1) % 6)], np.float32)
        self.t += 1
        return self._look(), reward, np.array([self.t % 20 == 0]), np.array([False]), {}

    def _look(self):
        self.column = int(self.rng.integers(6))
        stack = self.rng.integers(0, 30, (1, 4, 84, 84), dtype=np.uint8)
        stack[:, :, 14 * self.column : 14 * (self.column + 1)] += 200
        return stack


def test_a_head_on_cached_features_learns_the_columns(monkeypatch):
    overrides = {"mesh.data": 1, "net.hidden": 32, "optim.lr": 2e-3, "batch": 32, "agent.n_step": 1, "agent.discount": 0.5}
    overrides |= {"agent.prefill": 300, "agent.epsilon_steps": 100, "agent.capacity": 1024, "steps": 400}
    config = configs.load(f"{CONFIG}:tiny_cached", {k: str(v) for k, v in overrides.items()})
    monkeypatch.setattr(finetune, "open_game", lambda config: Columns())
    method = finetune.make(config, make_mesh(1))
    stream = method.stream(())
    state = jax.jit(method.init)(jnp.uint32(0))
    step, rewards = jax.jit(method.step, donate_argnums=0), []
    for _ in range(config.steps):
        batch = stream.next(state)
        state, _ = step(state, batch, ())
        rewards.append(float(batch.reward.mean()))
    assert abs(rewards[0]) < 0.1 and np.mean(rewards[-100:]) > 0.5, (rewards[0], np.mean(rewards[-100:]))
