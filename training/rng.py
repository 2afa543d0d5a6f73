"""Stateless random keys: a key is a function of (seed, step, name of its use), so none is ever stored or shifted."""

import zlib

import jax


def key_for(seed: int | jax.Array, step: int | jax.Array, *names: str) -> jax.Array:
    """The key for one use at one step. A new use (a new name) does not change the keys of the others.

    Args:
      seed: integer or uint32 scalar; may be traced (`TrainState.seed`).
      step: integer or int32 scalar; may be traced.
      *names: what the key is for, e.g. 'augment', 'online'.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key
