"""Corruptions made inside a minibatch: the relation, the head and the tail of a positive replaced by those of another row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from kbc_jax.facts.data import RELATIONS
from training.errors import UserError

KINDS = ("rand", "max", "mix", "argsim")


def draw(
    key: jax.Array, options: ConfigDict, triples: jax.Array, sums: jax.Array | None, current: Callable[[], tuple]
) -> jax.Array:
    """Which row each slot is replaced from: int32 [each, B, 3] for (relation, head, tail).

    Args:
      options: `kind` (see below), `each` corruptions a slot, `allow_self`: a row may replace itself, which makes a "negative"
        that is the positive (the authors' code; Li et al. draw again), `threshold` and `tries` of 'argsim'.
          rand     uniform rows (both codes)
          max      the replacement of the batch that the current model scores highest (Li et al., MAX). Only the row itself is
                   left out, so the relation often comes from a row with the same one
          mix      each row flips a coin between the two (Li et al., MIX)
          argsim   uniform rows such that <sum of head words, sum of tail words> of the corruption exceeds `threshold`: the
                   first of `tries` draws that does, or the last (FilteredNegativeSampling)
      triples: int32 [B, 3].
      sums: [phrases, D] sums of initial word vectors, for 'argsim'.
      current: () -> (net, slots) of the batch, without gradients, for 'max' and 'mix'.
    """
    if options.kind not in KINDS:
        raise UserError(f"negatives.kind {options.kind!r} is unknown: use one of {', '.join(KINDS)}")
    B, each = len(triples), options.each
    if options.kind == "argsim":
        tries = _uniform(key, (options.tries, each, B, 3), B, options.allow_self)
        return _first(tries, _sensible(tries, triples, sums) > options.threshold)
    key, coin = jax.random.split(key)
    rand = _uniform(key, (each, B, 3), B, options.allow_self)
    if options.kind == "rand":
        return rand
    hardest = jnp.broadcast_to(_hardest(*current(), triples[:, 1]), rand.shape)  # every one of `each` is the same
    if options.kind == "max":
        return hardest
    return jnp.where(jax.random.bernoulli(coin, shape=(each, B, 1)), hardest, rand)


def index(relation: jax.Array, swaps: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(head row, relation, tail row) of the B positives, then of their corruptions: each [B + 3 each B]."""
    B = len(relation)
    own = jnp.arange(B)
    i, r, j = [own], [relation], [own]
    for swap in swaps:
        i += [own, swap[:, 1], own]
        r += [relation[swap[:, 0]], relation, relation]
        j += [own, own, swap[:, 2]]
    return jnp.concatenate(i), jnp.concatenate(r), jnp.concatenate(j)


def _uniform(key: jax.Array, shape: tuple[int, ...], B: int, allow_self: bool) -> jax.Array:
    if allow_self:
        return jax.random.randint(key, shape, 0, B)
    return (jnp.arange(B)[:, None] + jax.random.randint(key, shape, 1, B)) % B


def _hardest(net: Any, slots: Any, relation: jax.Array) -> jax.Array:
    """For each row the best-scored replacement of its relation, head and tail by another row: int32 [B, 3]."""
    own = jnp.arange(len(relation))

    def best(scores: jax.Array) -> jax.Array:
        return jnp.where(jnp.eye(len(own), dtype=bool), -jnp.inf, scores).argmax(1)

    every = net.rows(slots, own[:, None], jnp.arange(len(RELATIONS)), own[:, None])
    return jnp.stack([best(every[:, relation]), best(net.heads(slots, relation)), best(net.tails(slots, relation))], 1)


def _sensible(tries: jax.Array, triples: jax.Array, sums: jax.Array) -> jax.Array:
    """<head, tail> of each corruption: [tries, each, B, 3]. A new relation leaves head and tail as they are."""
    h, t = sums[triples[:, 0]], sums[triples[:, 2]]
    grid = h @ t.T
    own = jnp.arange(len(triples))
    same = jnp.broadcast_to(jnp.diagonal(grid), tries.shape[:-1])
    return jnp.stack([same, grid[tries[..., 1], own], grid[own, tries[..., 2]]], -1)


def _first(tries: jax.Array, good: jax.Array) -> jax.Array:
    chosen = jnp.where(good.any(0), good.argmax(0), len(tries) - 1)
    return jnp.take_along_axis(tries, chosen[None], 0)[0]
