"""Diversity, perplexities, win rate and relabelling against hand-computed numbers and a token-by-token loop."""

import math

import numpy as np
import pytest

from rlhf_jax.rollouts import text_metrics as tm
from rlhf_jax.tasks import Pairs
from training.errors import UserError


def test_distinct_n_over_all_texts():
    texts = ["a b a b", "a b c", ""]
    assert tm.distinct_n(texts, 1) == 3 / 7 and tm.distinct_n(texts, 2) == 3 / 5  # ab ba ab | ab bc
    assert tm.distinct_n(["a"], 2) == 0


def test_repetition_inside_each_text():
    assert tm.repetition(["a b a b a", "a b c", "a"], 2) == pytest.approx((0.5 + 0 + 0) / 3)  # ab ba ab ba
    assert tm.repetition(["good good good good good good"]) == pytest.approx(2 / 3)  # three 4-grams, one distinct
    with pytest.raises(UserError, match="no texts"):
        tm.repetition([])


def test_counts_of_tokens_and_pairs():
    """Tokens 0, 1, 2: train 0 1, 0 1, 0 2 (the first of each row is not scored), held-out 0 1, 1 2."""
    train = {"ids": np.array([[0, 1], [0, 1], [0, 2]]), "loss": np.array([[False, True]] * 3)}
    held = {"ids": np.array([[0, 1], [1, 2]]), "loss": np.array([[False, True]] * 2)}
    found = tm.ngram_nll(train, held, 3)
    p = np.array([1, 3, 2]) / 6
    assert found["nll_unigram"] == pytest.approx(-np.log(p[[1, 2]]).mean())
    best = min(-(np.log((2 + k * p[1]) / (3 + k)) + np.log(p[2])) / 2 for k in tm.PRIORS)  # nothing follows 1 in train
    assert found["nll_bigram"] == pytest.approx(best)


def test_exact_match_extractions():
    assert tm.exact_match([" 12 ", "12.", ""], ["12", "12", ""]).tolist() == [1, 0, 0]
    assert tm.exact_match(["#### 1,2 x", "12"], ["12", "12"], "hashes").tolist() == [1, 0]
    with pytest.raises(ValueError):
        tm.exact_match(["1"], ["1", "2"])


# Corpus perplexity. The toy model: log p depends on the token, the one before, and how many tokens of context there are.


def logp(context, token):
    return -0.1 - 0.013 * token - 0.007 * context[-1] - 1 / (1 + len(context))


class Toy:
    def __init__(self):
        self.shapes = set()

    def __call__(self, ids, mask):
        self.shapes.add((ids.shape, ids.dtype, mask.dtype))
        found = np.full(ids.shape, np.nan)  # nothing but scored places may be read
        for i, (row, keep) in enumerate(zip(ids, mask, strict=True)):
            assert keep[: keep.sum()].all()  # padding is on the right
            for t in range(1, keep.sum()):
                found[i, t] = logp(row[:t], row[t])
        return found


def rl4lms(ids, window, stride):
    """allenai/RL4LMs metric.py: the loss of a chunk is a mean over its targets that have any context."""
    total = 0.0
    for i in range(0, len(ids), stride):
        begin, end = max(i + stride - window, 0), min(i + stride, len(ids))
        part = ids[begin:end]
        scored = [-logp(part[:t], part[t]) for t in range(len(part)) if t and begin + t >= i]
        total += np.mean(scored) * (end - i)
    return total / end


def stackllama(ids, window, stride):
    """mnoukhov/elastic-reset perplexity.py, unbatched_perplexity."""
    means, previous = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        part = ids[begin:end]
        means.append(np.mean([-logp(part[:t], part[t]) for t in range(len(part)) if t and begin + t >= previous]))
        previous = end
        if end == len(ids):
            break
    return np.mean(means)


@pytest.mark.parametrize("size", [2, 5, 8, 9, 12, 13, 61])
@pytest.mark.parametrize("batch", [1, 3])
def test_windows_of_the_reference_codes(size, batch):
    ids = np.random.default_rng(size).integers(1, 50, size).astype(np.int32)
    toy = Toy()
    options = {"window": 8, "stride": 4, "batch": batch}
    assert tm.corpus_nll(ids, toy, weighted=False, **options) == pytest.approx(stackllama(ids, 8, 4), rel=1e-9)
    first = ids[: min(4, size)]  # RL4LMs counts the first token at the mean of its chunk
    ours = tm.corpus_nll(ids, toy, **options) * (size - 1)
    extra = np.mean([-logp(first[:t], first[t]) for t in range(1, len(first))])
    assert (ours + extra) / size == pytest.approx(rl4lms(ids, 8, 4), rel=1e-9)
    assert toy.shapes == {((batch, min(8, size)), np.dtype(np.int32), np.dtype(bool))}  # one program


def test_both_protocols_by_hand():
    """5 tokens, window 3, stride 2, log p = -token: windows score tokens 2 and 3, then 4 and 5."""
    model = lambda ids, mask: -ids.astype(float)  # noqa: E731
    ids = np.array([9, 1, 2, 6, 4])
    assert tm.corpus_nll(ids, model, window=3, stride=2) == (1 + 2 + 6 + 4) / 4
    ids = np.array([9, 1, 2, 6])  # the second window scores one token
    assert tm.corpus_nll(ids, model, window=3, stride=2) == 9 / 3
    assert tm.corpus_nll(ids, model, window=3, stride=2, weighted=False) == (1.5 + 6) / 2
    assert tm.corpus_perplexity(ids, model, window=3, stride=2) == pytest.approx(math.exp(3))


def test_window_without_overlap_leaves_out_the_first_token_of_each():
    ids = np.array([9, 1, 9, 3, 9, 5])
    assert tm.corpus_nll(ids, lambda ids, mask: -ids.astype(float), window=2, stride=2) == 3


def test_joined_by_a_blank_line_or_closed_by_eos():
    encode = lambda text: list(text.encode())  # noqa: E731
    assert bytes(tm.join_texts(["ab", "c"], encode).tolist()) == b"ab\n\nc"
    assert tm.join_texts(["ab", "c"], encode, eos=7).tolist() == [97, 98, 7, 99, 7]
    assert tm.join_texts(["ab"], encode).dtype == np.int32


@pytest.mark.parametrize("size, stride, window", [(1, 4, 8), (9, 0, 8), (9, 9, 8)])
def test_impossible_windows(size, stride, window):
    with pytest.raises(UserError, match="perplexity needs 2 tokens"):
        tm.corpus_nll(np.ones(size, int), Toy(), window=window, stride=stride)


def test_a_last_window_of_one_token_without_context_counts_for_nothing():
    ids = np.array([9, 1, 9])
    for weighted in (True, False):
        assert tm.corpus_nll(ids, lambda ids, mask: -ids.astype(float), window=2, stride=2, weighted=weighted) == 1


def test_a_diverged_model_is_said():
    with pytest.raises(UserError, match="perplexity is nan"):
        tm.corpus_nll(np.ones(5, int), lambda ids, mask: np.full(ids.shape, np.nan), window=4, stride=2)


LOGPS = np.log([[0.5, 0.25, 0.5], [0.1, 0.9, 0.9]])
MASK = np.array([[True, True, True], [True, False, False]])


def test_both_perplexities_of_a_response_by_hand():
    """NLL log 16 over 3 response tokens, and log 10 over 1; prompts of 2 and 3 tokens give 2 + 3 - 1 = 4 and 3 + 1 - 1 = 3."""
    assert tm.ppl_response(LOGPS, MASK) == pytest.approx((16 ** (1 / 3) + 10) / 2)
    assert tm.ppl_paper(LOGPS, MASK, np.array([2, 3])) == pytest.approx((2 + 10 ** (1 / 3)) / 2)


def test_padding_may_hold_anything():
    filled = np.where(MASK, LOGPS, -np.inf)
    assert tm.ppl_response(filled, MASK) == tm.ppl_response(LOGPS, MASK)
    assert tm.ppl_paper(filled, MASK, np.array([2, 3])) == tm.ppl_paper(LOGPS, MASK, np.array([2, 3]))
    with pytest.raises(UserError, match="response without tokens"):
        tm.ppl_response(LOGPS, MASK & [[True], [False]])


def test_win_rate_is_strict():
    found = tm.win_rate(np.array([1.0, 2.0, 3.0, 0.0]), np.array([1.0, 1.0, 5.0, -1.0]))
    assert found == {"win_rate": 0.5, "mean_difference": 0.0}


def test_relabel_swaps_only_strict_losers():
    pairs = Pairs(["p1", "p2", "p3"], ["a", "b", "c"], ["x", "y", "z"])
    found = tm.relabel(pairs, np.array([1.0, 2.0, 0.0]), np.array([2.0, 2.0, -1.0]))
    assert found == Pairs(["p1", "p2", "p3"], ["x", "b", "c"], ["a", "y", "z"])
    assert pairs.chosen == ["a", "b", "c"]


def test_gold_scores_that_cannot_be():
    pairs = Pairs(["p"] * 2, ["a"] * 2, ["b"] * 2)
    with pytest.raises(UserError, match="1 gold scores for 2 pairs"):
        tm.relabel(pairs, np.zeros(1), np.zeros(1))
    with pytest.raises(UserError, match="gold score of row 1 is not finite"):
        tm.relabel(pairs, np.zeros(2), np.array([0, np.nan]))
    with pytest.raises(UserError, match=r"shapes \(2,\) and \(3,\)"):
        tm.win_rate(np.zeros(2), np.zeros(3))
    with pytest.raises(UserError, match="both need one score a row"):
        tm.win_rate(np.zeros(0), np.zeros(0))
