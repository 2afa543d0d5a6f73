"""One token after another with a cache of keys and values: the same layers as decoder.py, unrolled.

Every layer has arrays of its own, for its weights and for its cache: XLA's CPU backend would copy slices of stacked ones at
every token. The cache's layout makes both products of attention plain batched ones.

Legend: as in decoder.py; C prompt length, S size of the cache.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models import attention, decoder
from models.decoder import TransformerConfig
from training.sharding import path_name


class Cache(NamedTuple):
    """Keys and values of the tokens so far. Slot s of a row is the token at column s of its padded ids."""

    keys: tuple[jax.Array, ...]  # L times [B, K, S, E]
    values: tuple[jax.Array, ...]
    mask: jax.Array  # bool [B, S]
    position: jax.Array  # int32 [B]: of the next token


def unstack(params: dict, cfg: TransformerConfig) -> dict:
    """Weights as `decode` wants them: one dict a layer, in the compute dtype except norms. Idempotent.

    `sampling.generate` does it by itself, which costs a copy of the weights as long as it runs. A generator that keeps weights
    of its own saves memory by keeping them like this.
    """

    def cast(path: tuple, x: jax.Array) -> jax.Array:
        return x if "norm" in path_name(path) else x.astype(cfg.dtype)

    params = jax.tree_util.tree_map_with_path(cast, params)
    if isinstance(params["blocks"], tuple):
        return params
    return {**params, "blocks": tuple(jax.tree.map(lambda x, l=l: x[l], params["blocks"]) for l in range(cfg.layers))}


def prefill(params: dict, cfg: TransformerConfig, ids: jax.Array, mask: jax.Array) -> tuple[jax.Array, Cache]:
    """Hidden [B, D] of the last position of left-padded prompts (ids int32, mask bool [B, C]), and a full cache of size C."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array) -> tuple[jax.Array, Any]:
        return attention.in_blocks(q, k, v, allowed), (k, v)

    x, (keys, values) = decoder.run(params, cfg, ids, mask, attend)
    cache = Cache(tuple(keys), tuple(values), mask, mask.sum(1, dtype=jnp.int32))
    return decoder.normalise(params["norm"], cfg, x[:, -1]), cache


def grow(cache: Cache, size: int) -> Cache:
    """The cache with room for `size` tokens, no fewer than before."""
    room = size - cache.mask.shape[1]

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0)))

    keys, values = jax.tree.map(pad, (cache.keys, cache.values))
    return Cache(keys, values, jnp.pad(cache.mask, ((0, 0), (0, room))), cache.position)


def decode(params: dict, cfg: TransformerConfig, cache: Cache, ids: jax.Array, index: jax.Array) -> tuple[jax.Array, Cache]:
    """Hidden [B, D] of one more token of each row, ids int32 [B] at column `index` (a scalar), and the new cache.

    `params` as from `unstack`. Every row's token becomes part of its context, also one after its end.
    """
    place = cache.position[:, None]
    x = decoder.embed(params, cfg, ids[:, None], place)
    tables = decoder.rotary_tables(cfg, place)
    mask = cache.mask.at[:, index].set(True)
    keys, values = [], []

    for p, k_old, v_old in zip(params["blocks"], cache.keys, cache.values, strict=True):

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, old: tuple = (k_old, v_old)) -> tuple[jax.Array, tuple]:
            new = tuple(jax.lax.dynamic_update_slice(c, y, (0, 0, index, 0)) for c, y in zip(old, (k, v), strict=True))
            return attention.attend(q, *new, mask[:, None]), new

        x, (k, v) = decoder.block(p, cfg, x, tables, attend)
        keys.append(k)
        values.append(v)
    cache = Cache(tuple(keys), tuple(values), mask, cache.position + 1)
    return decoder.normalise(params["norm"], cfg, x[:, 0]), cache
