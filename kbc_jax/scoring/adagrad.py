"""Adagrad as Keras 2.1 had it: accumulators start at 0 and epsilon stands outside the root (optax starts at 0.1).

The first step of every weight is therefore +-lr whatever the gradient. The word table has updates of its own (`update_rows`,
`update_table`): it holds most of the parameters, and a batch touches few of its rows.
"""

from typing import Any

import jax
import jax.numpy as jnp

EPSILON = 1e-7


def update(params: Any, sums: Any, grads: Any, lr: jax.Array) -> tuple[Any, Any]:
    """One step on every leaf, s <- s + g^2, p <- p - lr g / (sqrt(s) + eps): the new (params, sums)."""
    sums = jax.tree.map(lambda s, g: s + g * g, sums, grads)
    return jax.tree.map(lambda p, s, g: p - lr * g / (jnp.sqrt(s) + EPSILON), params, sums, grads), sums


def update_rows(
    table: jax.Array, sums: jax.Array, rows: jax.Array, grads: jax.Array, lr: jax.Array, l2: float
) -> tuple[jax.Array, jax.Array]:
    """One step on the rows of a batch alone, with L2 on each of them once ("lazy"). Its cost hardly depends on V.

    Args:
      table, sums: weights and sums of squares [V, D].
      rows: int32 [n], with repetitions.
      grads: [n, D]; those of one row are added up.
    """
    place = jnp.zeros(len(table), jnp.int32).at[rows].set(jnp.arange(len(rows), dtype=jnp.int32))
    leader = place[rows]  # one entry of each row stands for all of them
    total = jnp.zeros_like(grads).at[leader].add(grads)[leader]
    old = table[rows]
    total += 2 * l2 * old
    squares = sums[rows] + total * total
    new = old - lr * total / (jnp.sqrt(squares) + EPSILON)
    return table.at[rows].set(new), sums.at[rows].set(squares)  # entries of one row write the same numbers


def update_table(table: jax.Array, sums: jax.Array, grads: jax.Array, lr: jax.Array, l2: float) -> tuple[jax.Array, jax.Array]:
    """One step on all rows [V, D], with L2 on each of them, also on those without data ("dense", the authors' code).

    Adagrad divides the tiny pull by its own size, so a row without data moves by up to lr a step until it is 0.
    """
    return update(table, sums, grads + 2 * l2 * table, lr)
