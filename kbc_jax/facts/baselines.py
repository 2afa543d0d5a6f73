"""Reference points without a trained classifier: counts over training triples, and similarity of initial word vectors.

The method `score` of each class returns float64 [n], higher = truer.

    Seen          (relation, head) seen in training + (relation, tail) seen
    PhrasePMI     pointwise mutual information of relation and whole head, plus that of relation and whole tail
    WordPMI       the same of single words, averaged; with all three pairs, of head words and tail words too
    ArgSim        <v_h, v_t>
    MaxSim        the largest <[v_h; v_r; v_t], [v_h'; v_r'; v_t']> with a training triple

`max_arg_sim` adds the scores of the last two. Minus the distance to the nearest training triple (`novelty.novelty`) is another.

ArgSim and MaxSim are those of the authors' code (train_argsim.py, train_maxargsim.py) of Jastrzębski et al. 2018; the counting
models are additions: WordPMI is Prototypical (two pairs) and Factorized (three pairs) by counting.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from math import log

import jax
import jax.numpy as jnp
import numpy as np

from kbc_jax.facts.data import Lexicon, Split, Triples, phrase_means
from kbc_jax.scoring.metrics import accuracy, best_threshold, f1
from training.errors import UserError

PAIRS = ("rh", "rt", "ht")


def evaluate(score: Callable[[Triples], np.ndarray], split: Split) -> dict[str, float]:
    """Accuracy of a scorer: {'threshold' (chosen on dev1), 'dev1', 'dev2', 'test' (accuracies), 'test_f1'}."""
    scores = {part: score(triples) for part, triples in split._asdict().items() if part != "train"}
    threshold, dev1 = best_threshold(scores["dev1"], split.dev1.label)
    return {
        "threshold": threshold,
        "dev1": dev1,
        "dev2": accuracy(scores["dev2"], split.dev2.label, threshold),
        "test": accuracy(scores["test"], split.test.label, threshold),
        "test_f1": f1(scores["test"], split.test.label, threshold),
    }


class Seen:
    """Memory of the training triples: 1 point if they hold the relation with this head, 1 if with this tail."""

    def __init__(self, train: Triples):
        self._heads = set(zip(train.relation, train.head, strict=True))
        self._tails = set(zip(train.relation, train.tail, strict=True))

    def score(self, triples: Triples) -> np.ndarray:
        return np.array(
            [((r, h) in self._heads) + ((r, t) in self._tails) for r, h, t in zip(*triples[:3], strict=True)], float
        )


class PhrasePMI:
    """Pointwise mutual information of relation and whole phrase, smoothed, summed over head and tail.

    log[(c(r,h) + joint) / (c(r) (c(h) + prior) / N + joint)]    c counted over the N training triples
    """

    def __init__(self, train: Triples, joint: float = 0.5, prior: float = 5.0):
        self._sides = [_RelationCounts(train.relation, [(p,) for p in side], joint, prior) for side in (train.head, train.tail)]

    def score(self, triples: Triples) -> np.ndarray:
        heads, tails = self._sides
        return np.array([heads.pmi(r, h) + tails.pmi(r, t) for r, h, t in zip(*triples[:3], strict=True)])


class WordPMI:
    """Pointwise mutual information over word tokens of the N training triples, smoothed.

        relation, word w    log[(c(r,w) + 0.5) / (c(r) (c(w) + 5) / N + 0.5)]    c(w) counted on the same side
        head a, tail b      log[(c(a,b) + 0.2) / ((c(a) + 1) (c(b) + 1) / N + 0.2)]

    The score adds, for the pairs asked for: "rh" the mean over head words, "rt" the mean over tail words, "ht" the mean over
    tail words of the best head word.
    """

    def __init__(self, train: Triples):
        heads, tails = _words(train.head), _words(train.tail)
        self._heads = _RelationCounts(train.relation, heads, joint=0.5, prior=5.0)
        self._tails = _RelationCounts(train.relation, tails, joint=0.5, prior=5.0)
        self._pairs = Counter((a, b) for head, tail in zip(heads, tails, strict=True) for a in head for b in tail)

    def score(self, triples: Triples, pairs: Sequence[str] = PAIRS) -> np.ndarray:
        """Sum of the PMI terms of `pairs` for each triple, float64 [n]. Raises UserError for a pair other than rh, rt, ht."""
        if not pairs or not set(pairs) <= set(PAIRS):
            raise UserError(f"pairs are some of {', '.join(PAIRS)}, not {pairs!r}")
        terms = {"rh": self._relation_head, "rt": self._relation_tail, "ht": self._head_tail}
        rows = list(zip(triples.relation, _words(triples.head), _words(triples.tail), strict=True))
        return np.array([sum(terms[pair](*row) for pair in pairs) for row in rows])

    def _relation_head(self, relation, head, tail):
        return sum(self._heads.pmi(relation, a) for a in head) / len(head)

    def _relation_tail(self, relation, head, tail):
        return sum(self._tails.pmi(relation, b) for b in tail) / len(tail)

    def _head_tail(self, relation, head, tail):
        return sum(max(self._pmi(a, b) for a in head) for b in tail) / len(tail)

    def _pmi(self, a, b):
        expected = (self._heads.count[a] + 1) * (self._tails.count[b] + 1) / self._heads.total
        return log((self._pairs[a, b] + 0.2) / (expected + 0.2))


class ArgSim:
    """Similarity of head and tail; the relation is ignored. `vectors` float [words, D]: a row for each word of the lexicon."""

    def __init__(self, lexicon: Lexicon, vectors):
        self._lexicon = lexicon
        self._plain = phrase_means(vectors, lexicon.phrase_words)
        self._unit = phrase_means(_unit(vectors), lexicon.phrase_words)

    def score(self, triples: Triples) -> np.ndarray:
        """Dot product of the phrases' means of length-normalised words, as in the authors' code."""
        ids = self._lexicon.ids(triples)
        return _dot(self._unit[ids[:, 0]], self._unit[ids[:, 2]])

    def cosine(self, triples: Triples) -> np.ndarray:
        """Cosine between the phrases' plain means; 0 where one of them is the zero vector."""
        ids = self._lexicon.ids(triples)
        head, tail = self._plain[ids[:, 0]], self._plain[ids[:, 2]]
        return _dot(head, tail) / np.maximum(np.sqrt(_dot(head, head) * _dot(tail, tail)), 1e-12)


class MaxSim:
    """Largest dot product of [v_h; v_r; v_t] with a training triple; words are length-normalised.

    Relations are fixed random directions of a word's length, drawn from `seed` in the lexicon's order.
    """

    def __init__(self, train: Triples, lexicon: Lexicon, vectors, *, seed: int = 0, block: int = 128):
        self._lexicon, self._block = lexicon, block
        self._phrases = phrase_means(_unit(vectors), lexicon.phrase_words).astype(np.float32)
        relations = np.random.default_rng(seed).uniform(-0.1, 0.1, (len(lexicon.relations), self._phrases.shape[1]))
        self._relations = (relations / np.linalg.norm(relations, axis=1, keepdims=True)).astype(np.float32)
        (heads, head), (relation, rel), (tails, tail) = (np.unique(c, return_inverse=True) for c in lexicon.ids(train).T)
        vectors = self._phrases[heads], self._relations[relation], self._phrases[tails]
        self._train = jax.device_put((vectors, tuple(x.astype(np.int32) for x in (head, rel, tail))))

    def score(self, triples: Triples) -> np.ndarray:
        ids, scores = self._lexicon.ids(triples), []
        for begin in range(0, len(ids), self._block):
            rows = ids[begin : begin + self._block]
            padded = np.pad(rows, ((0, self._block - len(rows)), (0, 0)), mode="edge")  # one shape, one compilation
            query = self._phrases[padded[:, 0]], self._relations[padded[:, 1]], self._phrases[padded[:, 2]]
            scores.append(_largest_product(*self._train, query)[: len(rows)])
        return np.concatenate(scores).astype(float)


def max_arg_sim(max_sim: np.ndarray, arg_sim: np.ndarray, dev1: np.ndarray) -> np.ndarray:
    """Sum of two scores [n], each standardised to mean 0 and deviation 1 on the rows of dev1 (bool [n]).

    The authors' MaxArgSim learns weights for the two with a small network on dev1; this one has none to learn.
    """
    return sum((scores - scores[dev1].mean()) / scores[dev1].std() for scores in (max_sim, arg_sim))


class _RelationCounts:
    """Smoothed PMI of relations and the items (words or phrases) of one side, from their counts alone and together."""

    def __init__(self, relations, items, joint, prior):
        self.total, self._joint, self._prior = len(relations), joint, prior
        self.count = Counter(item for row in items for item in row)
        self._relation = Counter(relations)
        self._together = Counter((r, item) for r, row in zip(relations, items, strict=True) for item in row)

    def pmi(self, relation, item):
        expected = self._relation[relation] * (self.count[item] + self._prior) / self.total
        return log((self._together[relation, item] + self._joint) / (expected + self._joint))


@jax.jit
def _largest_product(train, index_M, query):
    """Largest <query, training triple> over the M training triples, float32 [Q].

    Args:
      train, query: of head, relation and tail each the vectors, [distinct, D] and [Q, D].
      index_M: of each slot the rows of `train`, int32 [M].
    """
    products = (
        jnp.matmul(k, q.T, precision=jax.lax.Precision.HIGHEST)[i] for q, k, i in zip(query, train, index_M, strict=True)
    )
    return sum(products).max(0)


def _words(phrases):
    return [phrase.split() for phrase in phrases]


def _unit(vectors):
    """Rows scaled to length 1, but for the authors' 1e-4, which keeps zero rows zero."""
    return vectors / (1e-4 + np.linalg.norm(vectors, axis=1, keepdims=True))


def _dot(a, b):
    return np.einsum("nd,nd->n", a, b).astype(float)
