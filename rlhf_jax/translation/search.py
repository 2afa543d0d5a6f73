"""Messages and translations from a decoder: sampled, greedy, by beam search, or as straight-through Gumbel choices.

A sentence has at most `length` tokens, END included; END is forbidden in the first `shortest` - 1 places. After END comes PAD.

Legend: B rows, T tokens, V target vocabulary, K beams.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.translation import nets
from rlhf_jax.translation.corpus import END, PAD, START
from rlhf_jax.translation.nets import Memory, State


def sample(agent: dict, memory: Memory, key: jax.Array, *, length: int, shortest: int = 1) -> jax.Array:
    """Sentences int32 [B, length] sampled from the decoder's distribution; the random numbers depend on `key` and the place."""

    def choose(t: jax.Array, logits: jax.Array) -> jax.Array:
        return jax.random.categorical(jax.random.fold_in(key, t), logits)

    return _decode(agent, memory, choose, length, shortest)


def greedy(agent: dict, memory: Memory, *, length: int, shortest: int = 1) -> jax.Array:
    """Sentences int32 [B, length] of the likeliest token at each place."""
    return _decode(agent, memory, lambda t, logits: logits.argmax(-1), length, shortest)


def _decode(agent: dict, memory: Memory, choose: Callable, length: int, shortest: int) -> jax.Array:
    """Sentences int32 [B, length] of the tokens that `choose(place, logits)` returns; stops when all have ended."""
    p, rows = agent["decoder"], len(memory.start)

    def more(carry: tuple) -> jax.Array:
        return (carry[0] < length) & ~carry[4].all()

    def step(carry: tuple) -> tuple:
        t, state, last, tokens, done = carry
        state, logits = _next(p, memory, state, p["embed"][last], t, shortest)
        token = jnp.where(done, PAD, choose(t, logits).astype(jnp.int32))
        return t + 1, state, token, tokens.at[:, t].set(token), done | (token == END)

    start = jnp.full(rows, START, jnp.int32)
    tokens = jnp.full((rows, length), PAD, jnp.int32)
    carry = (jnp.int32(0), nets.first(memory), start, tokens, jnp.zeros(rows, bool))
    return jax.lax.while_loop(more, step, carry)[3]


def _next(p: dict, memory: Memory, state: State, x: jax.Array, t: jax.Array, shortest: int) -> tuple[State, jax.Array]:
    """State and logits [B, V] after reading the embeddings x [B, E] at place t."""
    state = nets.advance(p, memory, state, nets.dense(p["gru"]["x"], x))
    return state, nets.logits(p, state.feed, t < shortest - 1)


def gumbel(
    agent: dict, memory: Memory, key: jax.Array, *, temperature: float, length: int, shortest: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Straight-through Gumbel-softmax samples (Jang et al. 2017): (choices [B, length, V], logits [B, length, V]).

    A choice is one-hot going forward and softmax((logits + g) / temperature) in the gradient; the decoder reads its choices.
    Choices after END are zeros: where a message ends has no gradient.
    """
    p = agent["decoder"]

    def step(carry: tuple, t: jax.Array) -> tuple:
        state, x, done = carry
        state, logits = _next(p, memory, state, x, t, shortest)
        noise = jax.random.gumbel(jax.random.fold_in(key, t), logits.shape)
        soft = jax.nn.softmax((logits + noise) / temperature)
        token = jnp.argmax(logits + noise, -1)
        choice = jax.nn.one_hot(token, logits.shape[-1]) + (soft - jax.lax.stop_gradient(soft))
        choice = jnp.where(done[:, None], 0, choice)
        return (state, nets.embed(p["embed"], choice), done | (token == END)), (choice, logits)

    rows = len(memory.start)
    start = jnp.broadcast_to(p["embed"][START], (rows, p["embed"].shape[1]))
    carry = (nets.first(memory), start, jnp.zeros(rows, bool))
    choices, logits = jax.lax.scan(step, carry, jnp.arange(length))[1]
    return choices.swapaxes(0, 1), logits.swapaxes(0, 1)


def beam(agent: dict, memory: Memory, *, beams: int, length: int, exponent: float, shortest: int = 1) -> jax.Array:
    """Sentences int32 [B, length] of beam search, the best by log-probability / tokens^exponent.

    Each place has `beams` unfinished prefixes; a finished sentence takes no beam, and only the best one is stored. A prefix
    that reaches `length` counts as finished. Stops as soon as no prefix of any row can still win.
    """
    p, B, K = agent["decoder"], len(memory.start), beams
    wide = Memory(*(jnp.repeat(x, K, 0) for x in memory))
    rows = jnp.arange(B)[:, None]

    def more(carry: tuple) -> jax.Array:
        t, _, prefixes, _, best = carry
        # A log-probability only falls; the largest divisor gives the highest score that a prefix may still reach.
        return (t < length) & (prefixes.max(1) / length**exponent > best).any()

    def step(carry: tuple) -> tuple:
        t, state, prefixes, (tokens, winner), best = carry
        last = jnp.where(t == 0, START, tokens[:, :, jnp.maximum(t - 1, 0)]).reshape(-1)
        state, logits = _next(p, wide, state, p["embed"][last], t, shortest)
        scores = prefixes[..., None] + jax.nn.log_softmax(logits).reshape(B, K, -1)
        finished = jnp.where(t == length - 1, scores.max(-1), scores[..., END])
        last_token = jnp.where(t == length - 1, scores.argmax(-1), END)
        finished = finished / (t + 1) ** exponent
        k = finished.argmax(1)
        better = finished[rows[:, 0], k] > best
        sentence = tokens[rows[:, 0], k].at[:, t].set(last_token[rows[:, 0], k])
        winner, best = jnp.where(better[:, None], sentence, winner), jnp.where(better, finished[rows[:, 0], k], best)
        scores = scores.at[..., END].set(-jnp.inf).reshape(B, -1)
        prefixes, chosen = jax.lax.top_k(scores, K)
        parent, token = jnp.divmod(chosen, logits.shape[-1])
        state = State(*(x.reshape(B, K, -1)[rows, parent].reshape(B * K, -1) for x in state))
        tokens = tokens[rows, parent].at[:, :, t].set(token)
        return t + 1, state, prefixes, (tokens, winner), best

    prefixes = jnp.where(jnp.arange(K) == 0, 0.0, -jnp.inf) * jnp.ones((B, 1))
    tokens = jnp.full((B, K, length), PAD, jnp.int32)
    carry = (jnp.int32(0), nets.first(wide), prefixes, (tokens, tokens[:, 0]), jnp.full(B, -jnp.inf))
    return jax.lax.while_loop(more, step, carry)[3][1]
