"""How novel a triple is: its distance to the nearest training triple (Jastrzębski et al. 2018).

    nov(h, r, t) = min over training triples (h', r', t') of |v_h - v_h'|_2 + |v_t - v_t'|_2

v is the mean of a phrase's initial word vectors, not length-normalised; the relation is ignored. One training triple must be
near on both sides. The authors' loop (compute_distances_fast.py) takes 0.2 s a triple; here 2,400 take a few seconds.

The search uses |a|^2 + |b|^2 - 2 a.b between the queries and the *distinct* heads and tails of training, gathered and added
for each training pair. That form cancels: the distance of a phrase to itself comes out as some 1e-3 instead of 0. So it
only picks candidates, whose distances are then taken from the differences of the vectors. The result is the true distance of
the pair that it names, exactly 0 for identical phrases. A nearer pair could only be missed if more than CANDIDATES pairs
lay within twice that rounding of the nearest, and the result would then be too large by at most as much (of the k-th nearest:
more than CANDIDATES - k pairs).

Shapes: Q queries of a block, M distinct training pairs, D width of the vectors.
"""

import jax
import jax.numpy as jnp
import numpy as np

from kbc_jax.facts.data import Lexicon, Triples, phrase_means
from training.errors import UserError

GROUP = 128  # training pairs that are first reduced to their minimum: a top-k over all of them takes five times as long
CANDIDATES = 8


def novelty(train: Triples, queries: Triples, lexicon: Lexicon, vectors, *, unknown: str = "zero"):
    """Novelty of each query: (distance float32 [n], row of the nearest training triple int64 [n]). Args as for `neighbours`."""
    distance, row = neighbours(train, queries, lexicon, vectors, 1, unknown=unknown)
    return distance[:, 0], row[:, 0]


def neighbours(train: Triples, queries: Triples, lexicon: Lexicon, vectors, k: int, *, unknown: str = "zero"):
    """The k nearest training triples of each query, the nearest first: (distance float32 [n, k], row int64 [n, k]).

    Args:
      vectors: float [words, D], the lexicon's words. Phrases are cut at the lexicon's width.
      k: number of neighbours (see `k_nearest`); of training triples with the same head and tail only the first counts.
      unknown: vector of words that do not occur in training. "zero": the zero padding vector, as in the authors' code, for
        vectors made from the training triples; "keep": its row of `vectors`, for vectors made from other text.
    """
    if unknown == "zero":
        vectors = np.where(lexicon.seen[:, None], vectors, 0)
    elif unknown != "keep":
        raise UserError(f"unknown words are 'zero' or 'keep', not '{unknown}'")
    phrases = phrase_means(vectors, lexicon.phrase_words)
    return k_nearest(phrases, lexicon.ids(queries)[:, [0, 2]], lexicon.ids(train)[:, [0, 2]], k)


def nearest(vectors, queries, train, *, block: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Nearest training pair of each query: (distance float32 [n], row of `train` int64 [n]). Args as for `k_nearest`."""
    distance, index = k_nearest(vectors, queries, train, 1, block=block)
    return distance[:, 0], index[:, 0]


def k_nearest(vectors, queries, train, k: int, *, block: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the distinct training pairs, the nearest first: (distance float32 [n, k], row of `train` int64 [n, k]).

    Args:
      vectors: float [phrases, D].
      queries, train: int [n, 2] and [m, 2], phrase numbers of head and tail. m > 0.
      k: at most CANDIDATES and the number of distinct pairs, else UserError.
      block: queries searched at once; a block needs up to 12 bytes for each query and training pair.

    Of training pairs at the same distance the first row is named.
    """
    vectors, queries, train = np.asarray(vectors, np.float32), np.asarray(queries), np.asarray(train)
    rows, pairs = _distinct_pairs(train)
    if not 0 < k <= min(CANDIDATES, pairs):
        raise UserError(f"the nearest {k} of {pairs} training pairs cannot be had: ask for 1 to {min(CANDIDATES, pairs)}")
    (heads, head), (tails, tail) = (np.unique(train[rows, side], return_inverse=True) for side in (0, 1))
    train_arrays = jax.device_put((pairs, vectors[heads], vectors[tails], head.astype(np.int32), tail.astype(np.int32)))
    blocks = []
    for begin in range(0, len(queries), block):
        chunk = queries[begin : begin + block]
        padded = np.pad(chunk, ((0, block - len(chunk)), (0, 0)), mode="edge")  # one shape, one compilation
        distance, index = _nearest_block(*train_arrays, vectors[padded[:, 0]], vectors[padded[:, 1]])
        blocks.append((distance[: len(chunk), :k], index[: len(chunk), :k]))
    if not blocks:
        return np.zeros((0, k), np.float32), np.zeros((0, k), np.int64)
    distance, index = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return distance, rows[index]


def _distinct_pairs(train):
    """(rows where the distinct pairs of train first occur, padded with the last one to whole groups; number of pairs)."""
    _, first = np.unique(train[:, 0].astype(np.int64) << 32 | train[:, 1], return_index=True)
    return np.pad(np.sort(first), (0, -len(first) % GROUP), mode="edge"), len(first)


@jax.jit
def _nearest_block(pairs, heads_HD, tails_TD, head_M, tail_M, head_QD, tail_QD):
    """The nearest training pairs: (distance, index into M) [Q, CANDIDATES] each. M holds `pairs` pairs, then padding."""
    rough_QH, rough_QT = _distances(head_QD, heads_HD), _distances(tail_QD, tails_TD)
    rough_QGM = (rough_QH[:, head_M] + rough_QT[:, tail_M]).reshape(len(head_QD), -1, GROUP)
    # The CANDIDATES smallest values lie in the groups with the CANDIDATES smallest minima.
    _, group_QC = jax.lax.top_k(-rough_QGM.min(2), min(CANDIDATES, rough_QGM.shape[1]))
    member_QN = (group_QC[:, :, None] * GROUP + jnp.arange(GROUP)).reshape(len(head_QD), -1)
    rough_QN = _pick(rough_QH, head_M[member_QN]) + _pick(rough_QT, tail_M[member_QN])
    rough_QN = jnp.where(member_QN < pairs, rough_QN, jnp.inf)  # or copies of the last pair could be all the candidates
    candidate_QC = _pick(member_QN, jax.lax.top_k(-rough_QN, CANDIDATES)[1])
    distance_QC = sum(
        jnp.linalg.norm(query[:, None] - phrases[side[candidate_QC]], axis=-1)
        for query, phrases, side in ((head_QD, heads_HD, head_M), (tail_QD, tails_TD, tail_M))
    )
    distance_QC = jnp.where(candidate_QC < pairs, distance_QC, jnp.inf)
    return jax.lax.sort((distance_QC, candidate_QC), num_keys=2)  # equal distances by row


def _distances(a, b):
    """Distances [A, B] between the rows of a and of b, by expansion of the square."""
    # Full precision: accelerators would multiply in bfloat16 or TF32, and candidates would be picked by noise.
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.sqrt(jnp.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * products, 0))


def _pick(values, places):
    """The values [Q, n] at the places [Q, k] of each row."""
    return jnp.take_along_axis(values, places, axis=1)
