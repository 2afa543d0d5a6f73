"""Where a response ends, which of its tokens count, and means over those.

Legend: N response tokens; leading axes (`...`) are free: [B, N], or [P, k, N] for k samples of each of P prompts.
Conventions of async_rlhf (src/ppov2_trainer.py) and of trl 0.9 (core.py, trainer/utils.py).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from training.errors import UserError


class ResponseMasks(NamedTuple):
    """Places of responses with N places.

    seq_len  int32 [...]      index (not count) of the last real token, N - 1 without padding, -1 for an empty response
    mask     bool [..., N]    the real tokens, t <= seq_len: log-probs, KL, policy loss
    mask_p1  bool [..., N]    and the state after them, t <= seq_len + 1: values
    """

    seq_len: jax.Array
    mask: jax.Array
    mask_p1: jax.Array


def response_masks(tokens: jax.Array, pad: int) -> ResponseMasks:
    """Masks of responses int [..., N] with padding after their end, as the sampler makes them: a response ends before it."""
    padding = tokens == pad
    length = jnp.where(padding.any(-1), jnp.argmax(padding, -1), tokens.shape[-1])
    return masks_of_lengths(length, tokens.shape[-1])


def masks_of_lengths(length: jax.Array, N: int) -> ResponseMasks:
    """Masks of responses that have `length` int [...] real tokens, EOS included, in N places."""
    seq_len, index = length.astype(jnp.int32) - 1, jnp.arange(N)
    return ResponseMasks(seq_len, index <= seq_len[..., None], index <= seq_len[..., None] + 1)


def score_index(seq_len: jax.Array, length: int, place: str = "after") -> jax.Array:
    """Where a response's score is paid, int [...] -> int [...].

    'after': at seq_len + 1, the state after EOS, if there is such a place, else at seq_len (the reference code; with gamma < 1
    the score is discounted once more than with 'last', huggingface/trl#3750). 'last': at seq_len, on the last real token.
    """
    if place == "after":
        return jnp.minimum(seq_len + 1, length - 1)
    if place == "last":
        return jnp.maximum(seq_len, 0)
    raise UserError(f"unknown place of the score {place!r}: use 'after' or 'last'")


def eos_mode(score: jax.Array, has_eos: jax.Array, mode: str, value: float) -> jax.Array:
    """The scores [...], changed where a response never ended.

    'replace' makes them `value` (async_rlhf: -1), 'subtract' takes `value` off (later trl; there the value is positive), 'none'
    leaves them. Mixing the two up flips a sign (huggingface/trl#2012).
    """
    if mode not in ("replace", "subtract", "none"):
        raise UserError(f"unknown eos mode {mode!r}: use 'replace', 'subtract' or 'none'")
    if mode == "none":
        return score
    return jnp.where(has_eos, score, value if mode == "replace" else score - value)


def masked_sum(x: jax.Array, mask: jax.Array, axis: int | tuple[int, ...] | None = -1) -> jax.Array:
    """Sum over the places of `mask`. What stands elsewhere, NaN too, touches neither the sum nor its gradient."""
    return jnp.where(mask, x, 0).sum(axis)


def masked_mean(x: jax.Array, mask: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """Mean over the places of `mask` (0 where it is empty); over all axes, so long responses weigh more than short ones."""
    count = jnp.broadcast_to(mask, jnp.shape(x)).sum(axis)
    return masked_sum(x, mask, axis) / jnp.maximum(count, 1)


def masked_whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True) -> jax.Array:
    """(x - mean) * rsqrt(var + 1e-8) over the places of `mask`, 0 elsewhere; var with Bessel's n / (n - 1).

    The mean and variance are those of the whole array, over all devices (the reference code: of one rank's rows).
    shift_mean=False keeps the mean: (x - mean) * rsqrt(var + 1e-8) + mean, which is how rewards are whitened.
    """
    count = jnp.broadcast_to(mask, x.shape).sum()
    mean = masked_mean(x, mask)
    variance = masked_sum(jnp.square(x - mean), mask, None) / jnp.maximum(count - 1, 1)
    white = (x - mean) * jax.lax.rsqrt(variance + 1e-8)
    return jnp.where(mask, white if shift_mean else white + mean, 0)
