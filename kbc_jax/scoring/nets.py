"""Scorers of (head phrase, relation, tail phrase) triples: the only file here that knows flax.

Every scorer has four methods, which divide the work so that what several triples of a batch share is done once:

    slots(h, t) -> Slots           features of each head, each relation and each tail
    rows(slots, i, r, j)           scores of the triples (head i, relation r, tail j); index arrays that broadcast
    tails(slots, r)                [heads, tails]: head i with relation r[i] and every tail
    heads(slots, r)                [tails, heads]: tail j with relation r[j] and every head

Legend: B heads or tails, R relations, D width of a phrase vector, F hidden width. Scores are logits, before `Calibration`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from training.errors import UserError

TERMS = {"ht": ("h", "t"), "hr": ("h", "r"), "rt": ("r", "t")}
BLOCK = 8  # heads (or tails) whose hidden layers of a full grid are alive at once: few, to stay in the cache


class Slots(NamedTuple):
    """Features of heads, relations and tails: pytrees with a leading axis of each."""

    h: Any
    r: Any
    t: Any


class Factorized(nn.Module):
    """Sum of compatibilities of pairs, no three-way interaction (Jastrzębski et al. 2018; model.py, factorized).

    z = cos(a(h), b(t)) + cos(a(h), b(r)) + cos(a(r), b(t)), with a(x) = relu(A x + b_A) and b likewise; s = w z + c.
    Without the term 'ht' it is Prototypical; with 'ht' alone it is ArgSim++.

    Attributes:
      share: 0: a pair of maps a term; 1: one pair (A left, B right); 3: one map everywhere; 4: one pair for words, a raw vector
        for each relation; 5: one map for words, a raw vector for each relation.
      merge: 'add', 'max' or 'average' of the terms.
      normalise: cosines (the authors' code) or plain inner products.
      weighted: learn a weight for each term.
      scale, shift: start of w and c. The authors draw w from uniform(-1.73, 1.73), so it may start with the wrong sign. shift
        None leaves c out: before batch normalisation it cancels, and Adagrad would walk on its rounding errors.
    """

    relations: int
    width: int
    hidden: int = 1000
    terms: tuple[str, ...] = ("ht", "hr", "rt")
    share: int = 1
    merge: str = "add"
    normalise: bool = True
    weighted: bool = False
    scale: float = 1.0
    shift: float | None = 0.0

    def setup(self) -> None:
        if not self.terms or not set(self.terms) <= set(TERMS):
            raise UserError(f"net.terms {self.terms} are not terms: use some of {', '.join(TERMS)}")
        raw = self.share in (4, 5)
        self.relation = self.param(
            "relations", _uniform(0.05), (self.relations, self.hidden if raw else self.width), jnp.float32
        )
        names = {0: [f"{side}_{term}" for term in self.terms for side in "ab"], 1: "ab", 3: "a", 4: "ab", 5: "a"}
        if self.share not in names:
            raise UserError(f"net.share {self.share} is unknown: use one of {sorted(names)}")
        self.maps = {name: nn.Dense(self.hidden, kernel_init=nn.initializers.glorot_uniform()) for name in names[self.share]}
        self.w = self.param("w", nn.initializers.constant(self.scale), (), jnp.float32)
        if self.shift is not None:
            self.c = self.param("c", nn.initializers.constant(self.shift), (), jnp.float32)
        if self.weighted:
            self.weights = self.param("weights", nn.initializers.ones, (len(self.terms),), jnp.float32)

    def slots(self, h: jax.Array, t: jax.Array) -> Slots:
        """Features [B or R, F] of the left and right member of each term, from phrase vectors h, t [B, D]."""
        vectors = {"h": h, "r": self.relation, "t": t}
        slots, features = {name: {} for name in vectors}, {}
        for term in self.terms:
            for side, name in zip("ab", TERMS[term], strict=True):
                key = name, self._map(name, side, term)
                if key not in features:  # two terms may share it; XLA would merge its forward pass but not its gradient
                    features[key] = self._feature(vectors[name], key[1])
                slots[name][term] = features[key]
        return Slots(**slots)

    def _map(self, name: str, side: str, term: str) -> str:
        """Name of the map that a member of a term goes through; '' for a raw relation vector."""
        if name == "r" and self.share in (4, 5):
            return ""
        return {0: f"{side}_{term}", 1: side, 3: "a", 4: side, 5: "a"}[self.share]

    def _feature(self, x: jax.Array, name: str) -> jax.Array:
        y = nn.relu(self.maps[name](x)) if name else x
        return _unit(y) if self.normalise else y

    def rows(self, slots: Slots, i: jax.Array, r: jax.Array, j: jax.Array) -> jax.Array:
        at = {"h": i, "r": r, "t": j}
        return self._merge([(self._left(slots, n)[at[TERMS[n][0]]] * self._right(slots, n)[at[TERMS[n][1]]]).sum(-1)
                            for n in self.terms])  # fmt: skip

    def batch(self, slots: Slots, i: jax.Array, r: jax.Array, j: jax.Array) -> jax.Array:
        """Scores as of `rows`, fast for many triples of few members: all pairs by matrix products, then by index."""
        at = {"h": i, "r": r, "t": j}
        grams = {n: self._left(slots, n) @ self._right(slots, n).T for n in self.terms}
        return self._merge([grams[n][at[TERMS[n][0]], at[TERMS[n][1]]] for n in self.terms])

    def tails(self, slots: Slots, r: jax.Array) -> jax.Array:
        grids = {
            "ht": lambda: slots.h["ht"] @ slots.t["ht"].T,
            "hr": lambda: (slots.h["hr"] * slots.r["hr"][r]).sum(-1)[:, None],
            "rt": lambda: slots.r["rt"][r] @ slots.t["rt"].T,
        }
        return self._merge([grids[n]() for n in self.terms])

    def heads(self, slots: Slots, r: jax.Array) -> jax.Array:
        grids = {
            "ht": lambda: slots.t["ht"] @ slots.h["ht"].T,
            "hr": lambda: slots.r["hr"][r] @ slots.h["hr"].T,
            "rt": lambda: (slots.t["rt"] * slots.r["rt"][r]).sum(-1)[:, None],
        }
        return self._merge([grids[n]() for n in self.terms])

    def _left(self, slots: Slots, term: str) -> jax.Array:
        return getattr(slots, TERMS[term][0])[term]

    def _right(self, slots: Slots, term: str) -> jax.Array:
        return getattr(slots, TERMS[term][1])[term]

    def _merge(self, terms: list[jax.Array]) -> jax.Array:
        if self.weighted:
            terms = [w * x for w, x in zip(self.weights, terms, strict=True)]
        if self.merge not in ("add", "max", "average"):
            raise UserError(f"net.merge {self.merge!r} is unknown: use 'add', 'max' or 'average'")
        total = terms[0]
        for x in terms[1:]:
            total = jnp.maximum(total, x) if self.merge == "max" else total + x
        z = self.w * (total / len(terms) if self.merge == "average" else total)
        return z if self.shift is None else z + self.c


class DNN(nn.Module):
    """s = w2 . relu(W1 [h; r; t] + b1) + b2 (Li et al. 2016, DNN AVG). W1 is kept as three blocks, one a slot."""

    relations: int
    width: int
    hidden: int = 1000
    relation_width: int = 200
    std: float = 0.05  # Li et al.: 0.01
    dropout: float = 0.0

    def setup(self) -> None:
        normal = nn.initializers.normal(self.std)
        self.relation = self.param("relations", _uniform(0.02), (self.relations, self.relation_width), jnp.float32)
        self.w1_h, self.w1_r, self.w1_t = (nn.Dense(self.hidden, use_bias=n == 1, kernel_init=normal) for n in range(3))
        self.w2 = self.param("w2", normal, (self.hidden,), jnp.float32)
        self.b2 = self.param("b2", nn.initializers.zeros, (), jnp.float32)
        self.drop = nn.Dropout(self.dropout)

    def slots(self, h: jax.Array, t: jax.Array) -> Slots:
        return Slots(self.w1_h(h), self.w1_r(self.relation), self.w1_t(t))

    def rows(self, slots: Slots, i: jax.Array, r: jax.Array, j: jax.Array) -> jax.Array:
        return self._score(slots.h[i] + slots.r[r] + slots.t[j])

    def tails(self, slots: Slots, r: jax.Array) -> jax.Array:
        return self._grid(slots.h + slots.r[r], slots.t)

    def heads(self, slots: Slots, r: jax.Array) -> jax.Array:
        return self._grid(slots.t + slots.r[r], slots.h)

    def _grid(self, queries: jax.Array, candidates: jax.Array) -> jax.Array:
        return _by_block(lambda q: self._score(q[:, None] + candidates[None]), queries)

    def _score(self, x: jax.Array) -> jax.Array:
        x = self.drop(nn.relu(x), deterministic=not self.has_rng("dropout"))
        return (x.reshape(-1, self.hidden) @ self.w2).reshape(x.shape[:-1]) + self.b2


class Bilinear(nn.Module):
    """s = u_h^T M_r u_t with u = tanh(W v + b) (Li et al. 2016, Bilinear AVG)."""

    relations: int
    width: int
    hidden: int = 150

    def setup(self) -> None:
        self.map = nn.Dense(self.hidden, kernel_init=_uniform(0.2), bias_init=_uniform(0.2))
        self.matrices = self.param("matrices", _identity_plus_noise, (self.relations, self.hidden, self.hidden))

    def slots(self, h: jax.Array, t: jax.Array) -> Slots:
        u = jnp.tanh(self.map(h))
        product = u @ self.matrices.swapaxes(0, 1).reshape(self.hidden, -1)  # u^T M_r for all r at once
        return Slots((u, product.reshape(-1, self.relations, self.hidden)), self.matrices, jnp.tanh(self.map(t)))

    def rows(self, slots: Slots, i: jax.Array, r: jax.Array, j: jax.Array) -> jax.Array:
        return (slots.h[1][i, r] * slots.t[j]).sum(-1)

    def tails(self, slots: Slots, r: jax.Array) -> jax.Array:
        return slots.h[1][jnp.arange(len(r)), r] @ slots.t.T

    def heads(self, slots: Slots, r: jax.Array) -> jax.Array:
        product = (slots.t @ slots.r.reshape(-1, self.hidden).T).reshape(-1, self.relations, self.hidden)  # M_r u_t for all r
        return product[jnp.arange(len(r)), r] @ slots.h[0].T


class Fusion(nn.Module):
    """The strong model: pairs, a three-way product and a hidden layer, over word means joined with sentence vectors.

    s = Factorized(x) + sum_k tanh(U x_h)_k g_r,k tanh(V x_t)_k + DNN(x), x = [mean of word vectors; sentence vector]. The first
    is the paper's baseline, the second DistMult on phrases (Yang et al. 2015), the third Li et al.'s DNN with dropout.
    """

    relations: int
    width: int
    hidden: int = 500
    product: int = 200
    dropout: float = 0.3

    def setup(self) -> None:
        self.pairs = Factorized(self.relations, self.width, self.hidden, scale=3.0)
        self.deep = DNN(self.relations, self.width, self.hidden, dropout=self.dropout)
        self.u, self.v = nn.Dense(self.product), nn.Dense(self.product)
        self.gates = self.param("gates", nn.initializers.normal(0.05), (self.relations, self.product), jnp.float32)

    def slots(self, h: jax.Array, t: jax.Array) -> Slots:
        parts = self.pairs.slots(h, t), self.deep.slots(h, t), Slots(jnp.tanh(self.u(h)), self.gates, jnp.tanh(self.v(t)))
        return Slots(*zip(*parts, strict=True))

    def rows(self, slots: Slots, i: jax.Array, r: jax.Array, j: jax.Array) -> jax.Array:
        return self._rows(self.pairs.rows, slots, i, r, j)

    def batch(self, slots: Slots, i: jax.Array, r: jax.Array, j: jax.Array) -> jax.Array:
        return self._rows(self.pairs.batch, slots, i, r, j)

    def _rows(self, pairs: Any, slots: Slots, i: jax.Array, r: jax.Array, j: jax.Array) -> jax.Array:
        two, deep, three = (Slots(*part) for part in zip(*slots, strict=True))
        product = (three.h[i] * three.r[r] * three.t[j]).sum(-1)
        return pairs(two, i, r, j) + self.deep.rows(deep, i, r, j) + product

    def tails(self, slots: Slots, r: jax.Array) -> jax.Array:
        two, deep, three = (Slots(*part) for part in zip(*slots, strict=True))
        return self.pairs.tails(two, r) + self.deep.tails(deep, r) + (three.h * three.r[r]) @ three.t.T

    def heads(self, slots: Slots, r: jax.Array) -> jax.Array:
        two, deep, three = (Slots(*part) for part in zip(*slots, strict=True))
        return self.pairs.heads(two, r) + self.deep.heads(deep, r) + (three.t * three.r[r]) @ three.h.T


MODELS = {"factorized": Factorized, "dnn": DNN, "bilinear": Bilinear, "fusion": Fusion}


class Scorer(nn.Module):
    """A model and, with `bn`, batch normalisation of its one logit (`calibrate`)."""

    model: nn.Module
    bn: bool

    def setup(self) -> None:
        self.norm = nn.BatchNorm(momentum=0.99, epsilon=1e-3) if self.bn else None  # Keras's defaults

    def __call__(self, h: jax.Array, t: jax.Array, i: jax.Array, r: jax.Array, j: jax.Array, *, train: bool) -> jax.Array:
        """Logits of the triples (head i, relation r, tail j) of heads h [B, D] and tails t [B, D]."""
        slots = self.model.slots(h, t)
        score = getattr(self.model, "batch", self.model.rows) if train else self.model.rows
        return self.calibrate(score(slots, i, r, j), train=train)

    def calibrate(self, z: jax.Array, *, train: bool) -> jax.Array:
        return z if self.norm is None else self.norm(z.reshape(-1, 1), use_running_average=not train).reshape(z.shape)

    def slots(self, h: jax.Array, t: jax.Array) -> Slots:
        return self.model.slots(h, t)

    def rows(self, slots: Slots, i: jax.Array, r: jax.Array, j: jax.Array) -> jax.Array:
        return self.calibrate(self.model.rows(slots, i, r, j), train=False)

    def tails(self, slots: Slots, r: jax.Array) -> jax.Array:
        return self.calibrate(self.model.tails(slots, r), train=False)

    def heads(self, slots: Slots, r: jax.Array) -> jax.Array:
        return self.calibrate(self.model.heads(slots, r), train=False)


def build(kind: str, *, relations: int, width: int, bn: bool, **options: Any) -> Scorer:
    """The scorer that a config's `net` section describes. Raises UserError for an unknown kind or option."""
    if kind not in MODELS:
        raise UserError(f"net.kind {kind!r} is unknown: use one of {', '.join(MODELS)}")
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}  # from JSON
    unknown = set(options) - set(MODELS[kind].__dataclass_fields__)
    if unknown:
        raise UserError(f"net.kind {kind!r} has no {', '.join(sorted(unknown))}: start from a variant of that kind")
    return Scorer(MODELS[kind](relations=relations, width=width, **options), bn)


def phrase_mean(vectors: jax.Array, words: jax.Array, *, mask_pad: bool = True) -> jax.Array:
    """Mean word vector [B, D] of phrases.

    Args:
      vectors: [B, W, D], those of the words.
      words: int32 [B, W], 0 for padding.
      mask_pad: False as in the authors' MaskAvg: padding up to the longest phrase of the batch is summed too, though not
        counted, so that a phrase's vector depends on its batch.
    """
    length = (words > 0).sum(1, keepdims=True)
    end = length if mask_pad else length.max()
    total = (vectors * (jnp.arange(words.shape[1]) < end)[..., None]).sum(1)
    return total / jnp.maximum(length, 1)


def _unit(x: jax.Array) -> jax.Array:
    """Rows of length 1; a zero row stays zero."""
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12))


def _by_block(score: Any, queries: jax.Array) -> jax.Array:
    """`score(queries)` by blocks of BLOCK queries, so that a full grid's hidden layers never exist at once."""
    n = len(queries)
    blocks = jnp.pad(queries, [(0, -n % BLOCK)] + [(0, 0)] * (queries.ndim - 1)).reshape(-1, BLOCK, *queries.shape[1:])
    out = jax.lax.map(score, blocks)
    return out.reshape(-1, out.shape[-1])[:n]


def _uniform(limit: float) -> Any:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


def _identity_plus_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.eye(shape[-1]) + _uniform(0.2)(key, shape)
