"""Link prediction: ranks of the phrase that completes (head, relation, ?), and of that for (?, relation, tail).

Each test triple asks two questions. Its answer is ranked among all phrases of the graph, without the other known answers of
the question ("filtered", Bordes et al. 2013; Malaviya et al. 2020 set the scores of the others to zero, with the same effect):

    rank = 1 + number of phrases with a higher score + half the number of other phrases with the same score

which is the mean over the orders of the tied phrases. If ties counted for the answer, one score for all would be perfect.

Candidates are scored in blocks, and of a block's grid only those two numbers of each question are kept. They compare for
equality, so the answer's own score must be the very number that stands in the grid: scored alone, or fused into another
program, it may round differently. Hence a grid leaves its program before anything looks at it, and the few blocks that hold
answers are scored twice: first to pick the answers' scores, then to count.

Shapes: Q questions of each side in a block, C candidates in a block, W words a phrase, S width of a sentence vector. On side 0
the head is asked for, on side 1 the tail.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kbc_jax.complete import variables
from kbc_jax.scoring import nets
from training.errors import UserError

HITS = (1, 3, 10)
COLUMNS = (0, 2)  # of a triple's (head, relation, tail): what each side asks for


def link_prediction(
    net: nets.Scorer, params: dict, stats: Any, words: np.ndarray, sentences: np.ndarray, test: np.ndarray, known: np.ndarray,
    *, block: int = 2048, candidates_block: int = 512,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Measures in [0, 1] of both sides and their mean: {'head', 'tail', 'mean': {'mrr', 'hits@1', 'hits@3', 'hits@10'}}.

    Args and errors: those of `ranks`.
    """
    rank = ranks(net, params, stats, words, sentences, test, known, block=block, candidates_block=candidates_block)
    head, tail = summary(rank[:, 0]), summary(rank[:, 1])
    return {"head": head, "tail": tail, "mean": {name: (head[name] + tail[name]) / 2 for name in head}}


def summary(rank: np.ndarray) -> dict[str, float]:
    """Mean reciprocal rank, and the shares of ranks up to 1, 3 and 10: {'mrr', 'hits@1', 'hits@3', 'hits@10'}."""
    return {"mrr": float((1 / rank).mean()), **{f"hits@{k}": float((rank <= k).mean()) for k in HITS}}


def ranks(
    net: nets.Scorer, params: dict, stats: Any, words: np.ndarray, sentences: np.ndarray, test: np.ndarray, known: np.ndarray,
    *, block: int = 2048, candidates_block: int = 512,
) -> np.ndarray:  # fmt: skip
    """Ranks of the heads and of the tails of `test`: float64 [n, 2].

    Args:
      params: {'net', 'words', and 'norm' if the net has it}, as in `complete`; stats: batch statistics.
      words, sentences: int32 [P, W] and float [P, S] of all phrases, which are the candidates.
      test: int32 [n, 3] (head phrase, relation, tail phrase).
      known: int32 [m, 3], true triples of training, validation and test: a question's other answers are left out.
      block: test triples scored at once; 8 block candidates_block bytes for their grid. The phrases are mapped anew for each.
      candidates_block: phrases scored at once. DNN and Fusion need nets.BLOCK hidden candidates_block floats beside the grid.

    Raises UserError for an empty test set, and for scores that are not finite.
    """
    test, known = np.asarray(test), np.asarray(known)
    if not len(test):
        raise UserError("no test triples to rank: the file is empty")
    Q, C = min(block, len(test)), min(candidates_block, len(words))
    order, place = _answers_first(test, len(words))
    filtered = _filtered_cells(test, known, place, Q, C)
    map_questions, score = _programs(net)
    blocks = []
    for begin, cells in zip(range(0, len(test), Q), filtered, strict=True):
        rows = test[begin : begin + Q]
        triples = np.pad(rows, ((0, Q - len(rows)), (0, 0)), mode="edge")  # one shape, one compilation
        slots = map_questions(params, stats, *((words[phrase], sentences[phrase]) for phrase in triples[:, COLUMNS].T))

        def grid(b: int, slots: nets.Slots = slots, relation: np.ndarray = triples[:, 1]) -> jax.Array:
            block = order[b * C : (b + 1) * C]
            phrases = np.pad(block, (0, C - len(block)), mode="edge")
            return score(params, stats, slots, relation, (words[phrases], sentences[phrases]), len(block))

        blocks.append(_rank(grid, place[triples[:, COLUMNS].T], C, cells)[: len(rows)])
    return np.concatenate(blocks)


def _rank(grid: Callable[[int], jax.Array], answers: np.ndarray, C: int, filtered: np.ndarray) -> np.ndarray:
    """Ranks [Q, 2] of the answers.

    Args:
      grid: grid(b) scores block b of the candidates, [2, Q, C].
      answers: int [2, Q], their places among the candidates.
      filtered: those of `_filtered_cells`, for these questions.
    """
    score = jnp.zeros(answers.shape)
    for b in range(answers.max() // C + 1):
        score = _pick(score, grid(b), answers - b * C)
    if not np.isfinite(score).all():
        raise UserError("the network's scores are not finite: it diverged (lower its learning rate)")
    counts = jnp.zeros((2, *answers.shape), jnp.int32)
    for b, cells in enumerate(filtered):
        counts = jax.block_until_ready(_count(counts, grid(b), score, cells))  # or many grids would wait in memory
    higher, equal = np.asarray(counts)
    return (1 + higher + (equal - 1) / 2).T  # an answer equals itself


@jax.jit
def _pick(answers: jax.Array, scores: jax.Array, column: jax.Array) -> jax.Array:
    """`answers` [2, Q], the answers' scores, completed by those whose column int [2, Q] lies in this block [2, Q, C]."""
    picked = jnp.take_along_axis(scores, jnp.clip(column, 0, scores.shape[2] - 1)[..., None], 2)[..., 0]
    return jnp.where((column >= 0) & (column < scores.shape[2]), picked, answers)


@jax.jit
def _count(counts: jax.Array, scores: jax.Array, answers: jax.Array, filtered: jax.Array) -> jax.Array:
    """`counts` int32 [2, 2, Q] plus the candidates of this block that score higher than the answers [2, Q], or the same."""
    scores = scores.reshape(-1).at[filtered].set(-jnp.inf, mode="drop").reshape(scores.shape)
    return counts + jnp.stack([(scores > answers[..., None]).sum(2), (scores == answers[..., None]).sum(2)])


def _programs(net: nets.Scorer) -> tuple[Callable, Callable]:
    """Two compiled functions: the slots of questions, and the grid of their scores with a block of candidates.

        (params, stats, heads, tails) -> Slots
        (params, stats, questions, relation, phrases, count) -> [2, Q, C], -inf after `count` candidates

    Heads, tails and phrases are (words [n, W], sentences [n, S]).
    """

    def slots(params: dict, stats: Any, heads: tuple, tails: tuple) -> nets.Slots:
        h, t = (jnp.concatenate([nets.phrase_mean(params["words"][w], w), s], 1) for w, s in (heads, tails))
        return net.apply(variables(params, stats), h, t, method="slots")

    def score(params: dict, stats: Any, questions: nets.Slots, relation: jax.Array, phrases: tuple, count: int) -> jax.Array:
        candidates, weights = slots(params, stats, phrases, phrases), variables(params, stats)
        heads = net.apply(weights, nets.Slots(candidates.h, questions.r, questions.t), relation, method="heads")
        tails = net.apply(weights, nets.Slots(questions.h, questions.r, candidates.t), relation, method="tails")
        return jnp.where(jnp.arange(len(phrases[0])) < count, jnp.stack([heads, tails]), -jnp.inf)

    return jax.jit(slots), jax.jit(score)


def _answers_first(test: np.ndarray, phrases: int) -> tuple[np.ndarray, np.ndarray]:
    """(order of all phrases, int [P], that begins with the answers; the place of each phrase in it, int [P])."""
    rest = np.ones(phrases, bool)
    rest[test[:, COLUMNS]] = False
    order = np.concatenate([np.flatnonzero(~rest), np.flatnonzero(rest)])
    return order, np.argsort(order)


def _filtered_cells(test: np.ndarray, known: np.ndarray, place: np.ndarray, Q: int, C: int) -> np.ndarray:
    """Cells of the grids with other known answers, int32 [question blocks, candidate blocks, most cells of a grid].

    They are indices into the flat grid [2, Q, C]; the padding lies beyond its end.
    """
    blocks = -(-len(test) // Q), -(-len(place) // C)
    grids, cells = [], []
    for side, column in enumerate(COLUMNS):
        question, phrase = _other_answers(test, known, column)
        (q_block, q), (c_block, c) = np.divmod(question, Q), np.divmod(place[phrase], C)
        grids.append(q_block * blocks[1] + c_block)
        cells.append((side * Q + q) * C + c)
    grids, cells = np.concatenate(grids), np.concatenate(cells)
    counts = np.bincount(grids, minlength=blocks[0] * blocks[1])
    out = np.full((len(counts), counts.max()), 2 * Q * C, np.int32)
    by_grid = np.argsort(grids, kind="stable")
    out[grids[by_grid], _count_up(counts)] = cells[by_grid]
    return out.reshape(*blocks, -1)


def _other_answers(test: np.ndarray, known: np.ndarray, column: int) -> tuple[np.ndarray, np.ndarray]:
    """The known answers of each question but its own, as (row of test int [k], phrase int [k])."""

    def question(triples: np.ndarray) -> np.ndarray:
        return triples[:, 2 - column].astype(np.int64) << 32 | triples[:, 1]

    known = known[np.argsort(question(known), kind="stable")]
    begin, end = (np.searchsorted(question(known), question(test), side) for side in ("left", "right"))
    row = np.repeat(np.arange(len(test)), end - begin)
    phrase = known[begin[row] + _count_up(end - begin), column]
    other = phrase != test[row, column]
    return row[other], phrase[other]


def _count_up(counts: np.ndarray) -> np.ndarray:
    """The numbers 0, 1, ..., n - 1 for each n of counts, one after the other."""
    return np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
