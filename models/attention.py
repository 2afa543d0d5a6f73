"""Attention, rotary positions, and the products that need an fp32 result.

Legend: B rows, T queries, S keys, H heads, K key/value heads, E size of a head, R rotated part of a head.
"""

import math

import jax
import jax.numpy as jnp

NEVER = -1e30  # finite: a row of padding sees no key at all, and would get NaN from -inf
QUERIES = 1024  # of a long text at a time, so that its T^2 attention weights never exist at once


@jax.custom_vjp
def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Product of x [..., M, E] and transposed y [..., N, E]: fp32 [..., M, N]. Its gradients are products in their dtype.

    `preferred_element_type` alone would make the backward pass of bf16 models multiply fp32 by bf16, on accelerators several
    times slower.
    """
    lead = tuple(range(x.ndim - 2))
    return jax.lax.dot_general(x, y, (((x.ndim - 1,), (y.ndim - 1,)), (lead, lead)), preferred_element_type=jnp.float32)


def _product_fwd(x: jax.Array, y: jax.Array) -> tuple[jax.Array, tuple]:
    return product(x, y), (x, y)


def _product_bwd(kept: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = kept
    g = g.astype(x.dtype)
    return g @ y, g.swapaxes(-1, -2) @ x


product.defvjp(_product_fwd, _product_bwd)


def attend(q_BTHE: jax.Array, k_BKSE: jax.Array, v_BKSE: jax.Array, allowed_BTS: jax.Array) -> jax.Array:
    """Attention to the keys that `allowed` (bool) marks: [B, T, H, E]. Softmax in fp32."""
    B, T, H, E = q_BTHE.shape
    K, S = k_BKSE.shape[1:3]
    q = q_BTHE.swapaxes(1, 2).reshape(B, K, (H // K) * T, E)  # the heads of a group share their keys
    scores_BHTS = product(q, k_BKSE).reshape(B, H, T, S) * (1 / math.sqrt(E))
    weights = jax.nn.softmax(jnp.where(allowed_BTS[:, None], scores_BHTS, NEVER), -1).astype(v_BKSE.dtype)
    return (weights.reshape(B, K, (H // K) * T, S) @ v_BKSE).reshape(B, H, T, E).swapaxes(1, 2)


def in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array, causal: bool = True) -> jax.Array:
    """`attend` for T = S in blocks of queries; causal: nothing is allowed in the future, which is not even computed."""
    T, n = q.shape[1], QUERIES
    if n >= T:
        return attend(q, k, v, allowed)
    part = jax.checkpoint(attend)
    spans = [(i, min(i + n, T)) for i in range(0, T, n)]
    ends = [j if causal else T for _, j in spans]
    parts = zip(spans, ends, strict=True)
    return jnp.concatenate([part(q[:, i:j], k[:, :, :end], v[:, :, :end], allowed[:, i:j, :end]) for (i, j), end in parts], 1)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """Rotate the first R entries of heads x [B, T, H, E], halves paired (NeoX and Llama; not interleaved)."""
    if tables is None:
        return x
    cos, sin = tables
    half = cos.shape[-1]
    a, b = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    return jnp.concatenate([(a * cos - b * sin).astype(x.dtype), (b * cos + a * sin).astype(x.dtype), x[..., 2 * half :]], -1)
