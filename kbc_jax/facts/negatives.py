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
    """The row that replaces each slot of each positive, int32 [each, B, 3] for (relation, head, tail).

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

    Raises UserError for an unknown kind.
    """
    if options.kind not in KINDS:
        raise UserError(f"negatives.kind {options.kind!r} is unknown: use one of {', '.join(KINDS)}")
    B, each = len(triples), options.each
    if options.kind == "argsim":
        tries = _uniform(key, (options.tries, each, B, 3), B, options.allow_self)
        return _first_good(tries, _head_tail_products(tries, triples, sums) > options.threshold)
    key, coin = jax.random.split(key)
    rand = _uniform(key, (each, B, 3), B, options.allow_self)
    if options.kind == "rand":
        return rand
    hardest = jnp.broadcast_to(_hardest(*current(), triples[:, 1]), rand.shape)  # every one of `each` is the same
    if options.kind == "max":
        return hardest
    return jnp.where(jax.random.bernoulli(coin, shape=(each, B, 1)), hardest, rand)


def index(relation: jax.Array, swaps: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Triples by row number: (head row, relation, tail row) of the B positives, then of their corruptions; [B + 3 each B] each.

    Args: relation int32 [B] of the positives; swaps as `draw` returns them.
    """
    B = len(relation)
    rows = jnp.arange(B)
    i, r, j = [rows], [relation], [rows]
    for swap in swaps:
        i += [rows, swap[:, 1], rows]
        r += [relation[swap[:, 0]], relation, relation]
        j += [rows, rows, swap[:, 2]]
    return jnp.concatenate(i), jnp.concatenate(r), jnp.concatenate(j)


def _uniform(key: jax.Array, shape: tuple[int, ...], B: int, allow_self: bool) -> jax.Array:
    if allow_self:
        return jax.random.randint(key, shape, 0, B)
    return (jnp.arange(B)[:, None] + jax.random.randint(key, shape, 1, B)) % B


def _hardest(net: Any, slots: Any, relation: jax.Array) -> jax.Array:
    """The other row whose relation, head, tail the model scores highest in this row's place, int32 [B, 3]."""
    rows = jnp.arange(len(relation))

    def best(scores: jax.Array) -> jax.Array:
        return jnp.where(jnp.eye(len(rows), dtype=bool), -jnp.inf, scores).argmax(1)

    by_relation = net.rows(slots, rows[:, None], jnp.arange(len(RELATIONS)), rows[:, None])
    return jnp.stack([best(by_relation[:, relation]), best(net.heads(slots, relation)), best(net.tails(slots, relation))], 1)


def _head_tail_products(tries: jax.Array, triples: jax.Array, sums: jax.Array) -> jax.Array:
    """Products <head, tail> of the corruptions, [tries, each, B, 3]. A new relation leaves head and tail as they are."""
    h, t = sums[triples[:, 0]], sums[triples[:, 2]]
    grid = h @ t.T
    rows = jnp.arange(len(triples))
    unchanged = jnp.broadcast_to(jnp.diagonal(grid), tries.shape[:-1])
    return jnp.stack([unchanged, grid[tries[..., 1], rows], grid[rows, tries[..., 2]]], -1)


def _first_good(tries: jax.Array, good: jax.Array) -> jax.Array:
    """For each slot the first of the draws [tries, ...] that is good, bool [tries, ...], or the last draw."""
    chosen = jnp.where(good.any(0), good.argmax(0), len(tries) - 1)
    return jnp.take_along_axis(tries, chosen[None], 0)[0]
