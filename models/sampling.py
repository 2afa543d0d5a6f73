"""Sampling from a decoder: prompt and responses in one compiled function, which stops when every row has ended.

What a row gets depends on the key, its number in `rows` and its prompt alone, not on the other rows, padding or cache size (up
to rounding). Temperature, keys and contents never recompile; lengths and filters do, hence `bucket`.

Legend: B rows, C prompt length, N new tokens, V vocabulary, S size of the cache.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models import decoder, decoding
from models.decoder import TransformerConfig
from models.decoding import Cache
from training.errors import UserError

GREEDY = 1e-4  # temperatures below take the likeliest token
SMALLEST = 64  # size of the first cache

Filter = tuple[int, float, int | None, int, int]  # top_k, top_p, eos, min_new, pad


class Samples(NamedTuple):
    """Responses: `pad` and log p 0 after the first EOS, which is kept. `length` counts tokens including EOS."""

    tokens: jax.Array  # int32 [B, N]
    logps: jax.Array  # float32 [B, N]
    length: jax.Array  # int32 [B]


class _State(NamedTuple):
    """After `step` tokens of each row, the last of which is not yet in the cache."""

    step: jax.Array
    token: jax.Array  # int32 [B]
    done: jax.Array  # bool [B]
    samples: Samples
    caches: tuple[Cache, ...]  # of the model, and of the one that limits its choice


def generate(
    params: dict,
    cfg: TransformerConfig,
    prompt: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    *,
    max_new: int,
    temperature: float | jax.Array,
    top_k: int = 0,
    top_p: float = 1.0,
    eos: int | None,
    pad: int,
    rows: jax.Array | None = None,
    min_new: int = 0,
    limit: dict | None = None,
    limit_p: float = 1.0,
) -> Samples:
    """Responses to left-padded prompts int32 [B, C] (mask bool, False = padding).

    Args:
      params: of decoder.py, also with LoRA leaves; or what `decoding.unstack` makes of them, which saves a copy.
      temperature: logits are divided by temperature + 1e-7; 0 is greedy.
      top_k, top_p: draw among the k likeliest tokens, and of these among the fewest that have mass p (0 and 1: all of them).
      eos: token that ends a response, None for none.
      pad: filler after the end, which is never drawn.
      rows: numbers int32 [B] that make rows differ, default 0..B-1. Rows of equal number and prompt have equal responses.
      min_new: EOS is not drawn before that many other tokens.
      limit, limit_p: weights of a second model of this shape. Only tokens in the nucleus `limit_p` of its softmax are drawn
        (NLPO, Ramamurthy et al. 2023).

    Log-probs are those of the whole tempered softmax, as `decoder.token_logprobs` has them, whatever the filters: that is
    what losses compare them with. So with filters they are not those of the distribution drawn from.

    Raises:
      UserError: filters or lengths out of range.
    """
    decoder.needs_causal(cfg)
    if top_k < 0 or not 0 < top_p <= 1:
        raise UserError(f"top_k {top_k} and top_p {top_p}: set top_k to 0 (off) or more, and top_p in (0, 1]")
    if max_new < 1:
        raise UserError(f"max_new is {max_new}: set it to 1 or more")
    if cfg.position == "learned" and prompt.shape[1] + max_new > cfg.context:
        raise UserError(
            f"{prompt.shape[1]} prompt and {max_new} new tokens do not fit the context of {cfg.context}; shorten one of them"
        )
    rows = jnp.arange(len(prompt), dtype=jnp.int32) if rows is None else rows
    temperature = jnp.asarray(temperature, jnp.float32)
    filters = top_k, top_p, eos, min_new, pad
    models = (params,) if limit is None else (params, limit)
    return _generate(models, cfg, prompt, prompt_mask, key, rows, temperature, max_new, filters, limit_p)


@functools.partial(jax.jit, static_argnames=("cfg", "max_new", "filters", "limit_p"))
def _generate(
    models: tuple[dict, ...], cfg: TransformerConfig, prompt: jax.Array, mask: jax.Array, key: jax.Array, rows: jax.Array,
    temperature: jax.Array, max_new: int, filters: Filter, limit_p: float,
) -> Samples:  # fmt: skip
    B, C = prompt.shape
    *_, eos, _, pad = filters
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(rows)
    weights = [decoding.unstack(params, cfg) for params in models]

    def emit(read: list[tuple[jax.Array, Cache]], step: jax.Array, done: jax.Array, samples: Samples) -> _State:
        """The token after what each model has read: hidden [B, D] and cache."""
        logits, *others = (decoder.logits(w, cfg, x) for w, (x, _) in zip(weights, read, strict=True))
        allowed = nucleus(others[0], limit_p) if others else None
        token, logp = pick(logits, keys, step, temperature, filters, allowed)
        token, logp = jnp.where(done, pad, token), jnp.where(done, 0, logp)
        at = (0, step)
        samples = Samples(
            jax.lax.dynamic_update_slice(samples.tokens, token[:, None], at),
            jax.lax.dynamic_update_slice(samples.logps, logp[:, None], at),
            samples.length + ~done,
        )
        return _State(step + 1, token, done if eos is None else done | (token == eos), samples, tuple(c for _, c in read))

    def more(state: _State) -> _State:
        index = C + state.step - 1
        read = [decoding.decode(w, cfg, cache, state.token, index) for w, cache in zip(weights, state.caches, strict=True)]
        return emit(read, state.step, state.done, state.samples)

    empty = Samples(jnp.full((B, max_new), pad, jnp.int32), jnp.zeros((B, max_new)), jnp.zeros(B, jnp.int32))
    state = emit([decoding.prefill(p, cfg, prompt, mask) for p in models], jnp.int32(0), jnp.zeros(B, bool), empty)
    for size in sizes(C, C + max_new - 1):
        state = state._replace(caches=tuple(decoding.grow(cache, size) for cache in state.caches))
        last = size - C + 1  # tokens that this cache suffices for
        state = jax.lax.while_loop(lambda s, last=last: (s.step < last) & ~s.done.all(), more, state)
    return state.samples


def sizes(least: int, most: int) -> Iterator[int]:
    """Cache sizes to run through, so that no token attends over much more than there is: 64, 128, 256, ..., `most`."""
    size = SMALLEST
    while size < most:
        if size > least:
            yield size
        size *= 2
    yield most


def pick(
    logits: jax.Array, keys: jax.Array, step: jax.Array, temperature: jax.Array, filters: Filter,
    allowed: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The next token int32 [B], with a key for each row, and its log p under the unfiltered tempered softmax.

    allowed: bool [B, V], True somewhere in each row; None: all.
    """
    top_k, top_p, eos, min_new, pad = filters
    z_BV, ids_V = logits / (temperature + 1e-7), jnp.arange(logits.shape[1])
    left_BV = jnp.where(ids_V == pad, -jnp.inf, z_BV)
    if allowed is not None:
        left_BV = jnp.where(allowed, left_BV, -jnp.inf)
    if eos is not None and min_new:
        left_BV = jnp.where((ids_V == eos) & (step < min_new), -jnp.inf, left_BV)
    left_BV = keep_top(left_BV, top_k, top_p)
    drawn_B = draw(jax.vmap(jax.random.fold_in, (0, None))(keys, step), left_BV)
    token_B = jnp.where(temperature < GREEDY, left_BV.argmax(-1), drawn_B).astype(jnp.int32)
    return token_B, jnp.take_along_axis(z_BV, token_B[:, None], 1)[:, 0] - jax.nn.logsumexp(z_BV, -1)


def keep_top(z: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Logits z [B, V] with -inf outside the k largest, and outside the fewest of these whose softmax sums to p or more.

    Ties with the least of those kept are kept too.
    """
    V = z.shape[1]
    if not 0 < top_k < V and top_p == 1:
        return z
    best = jax.lax.top_k(z, top_k if 0 < top_k < V else V)[0]
    least = best[:, -1]
    if top_p < 1:
        p = jax.nn.softmax(best, -1)
        wanted = jnp.cumsum(p, -1) - p < top_p  # the mass before a token
        least = jnp.where(wanted, best, jnp.inf).min(-1)
    return jnp.where(z < least[:, None], -jnp.inf, z)


def nucleus(logits: jax.Array, p: float) -> jax.Array:
    """The fewest likeliest tokens whose softmax sums to p or more: bool [..., V]."""
    flat = logits.reshape(-1, logits.shape[-1])
    return (keep_top(flat, 0, p) > -jnp.inf).reshape(logits.shape)


def draw(keys: jax.Array, z: jax.Array) -> jax.Array:
    """One index int32 [B] a row from softmax(z) [B, V], each with its own key.

    First a block of about sqrt(V) neighbours, then one of them: the same distribution as `jax.random.categorical` with
    2 sqrt(V) random numbers rather than V.
    """
    V = z.shape[1]
    width = math.isqrt(V - 1) + 1
    blocks = jnp.pad(z, ((0, 0), (0, -V % width)), constant_values=-jnp.inf).reshape(len(z), -1, width)
    two = jax.vmap(jax.random.split)(keys)
    categorical = jax.vmap(jax.random.categorical)
    block = categorical(two[:, 0], jax.nn.logsumexp(blocks, -1))
    inside = categorical(two[:, 1], jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0])
    return (block * width + inside).astype(jnp.int32)


def bucket(length: int, lengths: Sequence[int]) -> int:
    """The least of `lengths` that `length` fits: few different shapes are few compilations. UserError if there is none."""
    if length > max(lengths):
        raise UserError(f"a length of {length} fits none of {', '.join(map(str, sorted(lengths)))}; add a larger one")
    return min(x for x in lengths if x >= length)
