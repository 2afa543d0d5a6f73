"""Keys are functions of (seed, step, names), and of nothing else."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from training.rng import key_for


def bits(seed, step, *names):
    return tuple(np.asarray(jax.random.key_data(key_for(seed, step, *names))))


def test_every_seed_step_and_name_has_its_own_key():
    uses = list(itertools.product((0, 1), (0, 1, 2), (("a",), ("b",), ("a", "b"), ("b", "a"))))
    assert len({bits(seed, step, *names) for seed, step, names in uses}) == len(uses)


def test_traced_seeds_and_steps_give_the_same_keys():
    traced = jax.jit(jax.vmap(lambda seed: jax.random.key_data(key_for(seed, jnp.int32(5), "a"))))
    found = traced(jnp.arange(3, dtype=jnp.uint32))
    assert [tuple(np.asarray(k)) for k in found] == [bits(seed, 5, "a") for seed in range(3)]
