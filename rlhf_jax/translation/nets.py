"""GRU encoder-decoders with attention and a GRU language model, as pure functions over dicts of arrays.

An agent translates: a one-layer GRU encoder, and a GRU decoder with input feeding and "general" attention (Luong et al. 2015),
started from the mean of the encoder's states. GRUs are those of cuDNN and PyTorch: the reset gate multiplies U_n h + c_n.

Legend: B rows, S source tokens, T target tokens, E embedding, H hidden, V target vocabulary. Sentences are int32 [B, T], padded
on the right with PAD. A sentence may also be floats [B, T, V], a one-hot choice of token at each place; its PAD is zeros.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from rlhf_jax.translation.corpus import END, PAD, START

NEVER = -1e9  # logit of what must not be chosen; finite, so that 0 * NEVER is 0


class Sizes(NamedTuple):
    """Sizes of an agent: its vocabularies, the width of its embeddings and of its GRUs."""

    source: int
    target: int
    embed: int
    hidden: int


class Memory(NamedTuple):
    """The decoder's view of the source, multiplied by its weights once and not at every step.

    keys    [B, S, H]  W_a s: the score of place i is h . keys_i
    values  [B, S, H]  W_c s: the context's part of W [h; c]
    mask    [B, S]     bool
    start   [B, H]     the decoder's first state
    """

    keys: jax.Array
    values: jax.Array
    mask: jax.Array
    start: jax.Array


class State(NamedTuple):
    """The decoder's state: that of its GRU, and the attention vector (second half of the next input), [B, H] each."""

    h: jax.Array
    feed: jax.Array


class Forced(NamedTuple):
    """Result of teacher forcing: the attention vectors [B, T, H] of all places, and the decoder's inputs [B, T, E + H]."""

    feeds: jax.Array
    inputs: jax.Array


def init_agent(key: jax.Array, sizes: Sizes) -> dict:
    """Random parameters of an encoder and a decoder with attention."""
    k = iter(jax.random.split(key, 12))
    E, H = sizes.embed, sizes.hidden
    encoder = {
        "embed": _table(next(k), sizes.source, E),
        "gru": _gru(next(k), E, H),
        "start": _dense(next(k), H, H),
        "attention": {"kernel": _uniform(next(k), H, (H, H))},
        "context": {"kernel": _uniform(next(k), 2 * H, (H, H))},
    }
    decoder = {
        "embed": _table(next(k), sizes.target, E),
        "gru": _gru(next(k), E, H),
        "feed": {"kernel": _uniform(next(k), H, (H, 3 * H))},
        "combine": {"kernel": _uniform(next(k), 2 * H, (H, H))},
        "out": _dense(next(k), H, sizes.target),
    }
    return {"encoder": encoder, "decoder": decoder}


def init_lm(key: jax.Array, vocabulary: int, embed: int, hidden: int) -> dict:
    """Random parameters of a GRU language model."""
    k = jax.random.split(key, 3)
    return {"embed": _table(k[0], vocabulary, embed), "gru": _gru(k[1], embed, hidden), "out": _dense(k[2], hidden, vocabulary)}


def init_value(key: jax.Array, sizes: Sizes) -> dict:
    """Random parameters of A2C's baseline: one hidden layer on the decoder's input."""
    k = jax.random.split(key)
    return {"hidden": _dense(k[0], sizes.embed + sizes.hidden, sizes.hidden), "out": _dense(k[1], sizes.hidden, 1)}


def encode(agent: dict, source: jax.Array, *, key: jax.Array | None = None, rate: float = 0.0) -> Memory:
    """The memory of a source, int32 [B, S] or floats [B, S, V]. `rate`: dropout of embeddings, if there is a key."""
    p = agent["encoder"]
    mask = present(source)
    x = dropout(key, rate, embed(p["embed"], source))
    states = gru_states(p["gru"], x)
    weight = mask[..., None] / jnp.maximum(mask.sum(1), 1)[:, None, None]
    mean = (states * weight.astype(states.dtype)).sum(1)
    return Memory(dense(p["attention"], states), dense(p["context"], states), mask, jnp.tanh(dense(p["start"], mean)))


def force(agent: dict, memory: Memory, target: jax.Array, *, key: jax.Array | None = None, rate: float = 0.0) -> Forced:
    """Teacher forcing: the decoder reads target int32 [B, T] one place late, START first, so that place t predicts token t.

    `rate`: dropout of embeddings and attention vectors, if there is a key.
    """
    p = agent["decoder"]
    keys = (None, None) if key is None else jax.random.split(key)
    start = jnp.full_like(target[:, :1], START)
    x = dropout(keys[0], rate, embed(p["embed"], jnp.concatenate([start, target[:, :-1]], 1)))

    def step(state: State, gates: jax.Array) -> tuple[State, tuple]:
        new = advance(p, memory, state, gates)
        return new, (new.feed, state.feed)

    _, (feeds, before) = jax.lax.scan(step, first(memory), dense(p["gru"]["x"], x).swapaxes(0, 1))
    return Forced(dropout(keys[1], rate, feeds.swapaxes(0, 1)), jnp.concatenate([x, before.swapaxes(0, 1)], -1))


def first(memory: Memory) -> State:
    """The decoder's state before its first step."""
    return State(memory.start, jnp.zeros_like(memory.start))


def advance(decoder: dict, memory: Memory, state: State, gates: jax.Array) -> State:
    """The decoder's state one place further; gates [B, 3H] is the embedding's part of the GRU's input."""
    h = gru(gates + dense(decoder["feed"], state.feed), dense(decoder["gru"]["h"], state.h), state.h)
    scores = jnp.einsum("bsh,bh->bs", memory.keys, h).astype(jnp.float32)
    weights = jax.nn.softmax(jnp.where(memory.mask, scores, NEVER)).astype(h.dtype)
    context = jnp.einsum("bs,bsh->bh", weights, memory.values)
    return State(h, jnp.tanh(dense(decoder["combine"], h) + context))


def logits(decoder: dict, feeds: jax.Array, early: jax.Array | bool = False) -> jax.Array:
    """Logits float32 [..., V] of attention vectors [..., H]; NEVER for PAD and START, and for END where `early` [...]."""
    out = dense(decoder["out"], feeds).astype(jnp.float32)
    token = jnp.arange(out.shape[-1])
    never = (token <= START) | ((token == END) & jnp.asarray(early)[..., None])
    return jnp.where(never, NEVER, out)


def lm_logits(lm: dict, target: jax.Array, *, key: jax.Array | None = None, rate: float = 0.0) -> jax.Array:
    """Logits float32 [B, T, V] of the language model: those at place t are for target[:, t], from the tokens before it."""
    keys = (None, None) if key is None else jax.random.split(key)
    before = jnp.concatenate([jnp.full_like(target[:, :1], START), target[:, :-1]], 1)
    states = gru_states(lm["gru"], dropout(keys[0], rate, embed(lm["embed"], before)))
    return logits(lm, dropout(keys[1], rate, states))


def value(net: dict, inputs: jax.Array) -> jax.Array:
    """Baseline float32 [B, T] from decoder inputs [B, T, E + H]."""
    return dense(net["out"], jnp.tanh(dense(net["hidden"], inputs)))[..., 0].astype(jnp.float32)


def gru_states(p: dict, x: jax.Array) -> jax.Array:
    """States [B, T, H] of a GRU over x [B, T, E], from 0. Padding is on the right, so that it cannot reach a token."""

    def step(h: jax.Array, gates: jax.Array) -> tuple:
        h = gru(gates, dense(p["h"], h), h)
        return h, h

    start = jnp.zeros((len(x), p["h"]["kernel"].shape[0]), x.dtype)
    return jax.lax.scan(step, start, dense(p["x"], x).swapaxes(0, 1))[1].swapaxes(0, 1)


def gru(x: jax.Array, u: jax.Array, h: jax.Array) -> jax.Array:
    """The next state of a GRU, (1 - z) n + z h.

    x, u [B, 3H]: the input's and the state's parts of reset gate, update gate z and candidate n.
    """
    (x_r, x_z, x_n), (u_r, u_z, u_n) = jnp.split(x, 3, -1), jnp.split(u, 3, -1)
    z = jax.nn.sigmoid(x_z + u_z)
    n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + u_r) * u_n)
    return n + z * (h - n)


def embed(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of `table` [V, E] for tokens int [...], or mixtures of rows for distributions [..., V]."""
    if jnp.issubdtype(tokens.dtype, jnp.integer):
        return table[tokens]
    return dense({"kernel": table}, tokens.astype(table.dtype))


def present(tokens: jax.Array) -> jax.Array:
    """True, bool [B, T], at places that are not PAD."""
    return tokens != PAD if jnp.issubdtype(tokens.dtype, jnp.integer) else (jax.lax.stop_gradient(tokens) > 0).any(-1)


def dense(p: dict, x: jax.Array) -> jax.Array:
    """A linear layer, x [..., in] -> [..., out], in 2-D: the backward pass of a 3-D product is up to 2.8x slower on CPU."""
    y = x.reshape(-1, x.shape[-1]) @ p["kernel"]
    if "bias" in p:
        y = y + p["bias"]
    return y.reshape(*x.shape[:-1], -1)


def dropout(key: jax.Array | None, rate: float, x: jax.Array) -> jax.Array:
    """`x` with a share `rate` of its numbers 0 and the others enlarged; without a key, `x` itself."""
    if key is None or rate == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def cast(params: Any, dtype: str) -> Any:
    """Parameters in the compute dtype, whole on every device: gathered here once, not in every step of a scan."""
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    return params if jax.sharding.get_abstract_mesh().empty else jax.lax.with_sharding_constraint(params, P())


def _uniform(key: jax.Array, fan: int, shape: tuple) -> jax.Array:
    """PyTorch's start of linear layers and GRUs: uniform within 1 / sqrt(fan)."""
    return jax.random.uniform(key, shape, minval=-(fan**-0.5), maxval=fan**-0.5)


def _dense(key: jax.Array, size: int, out: int) -> dict:
    return {"kernel": _uniform(key, size, (size, out)), "bias": jnp.zeros(out)}


def _gru(key: jax.Array, size: int, hidden: int) -> dict:
    x, h = jax.random.split(key)
    return {
        "x": {"kernel": _uniform(x, hidden, (size, 3 * hidden)), "bias": jnp.zeros(3 * hidden)},
        "h": {"kernel": _uniform(h, hidden, (hidden, 3 * hidden)), "bias": jnp.zeros(3 * hidden)},
    }


def _table(key: jax.Array, size: int, width: int) -> jax.Array:
    """PyTorch's start of embeddings. With deviations of 0.1 attention forms several times later."""
    return jax.random.normal(key, (size, width))
