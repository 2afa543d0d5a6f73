"""Measures of generated text, of drift (perplexities) and of preference (win rate, relabelled pairs). NumPy on the host."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rlhf_jax.tasks.base import Pairs
from rlhf_jax.tasks.gsm8k import number_after_hashes
from training.errors import UserError

EXTRACT: dict[str, Callable[[str], str]] = {"whole": str.strip, "hashes": number_after_hashes}

# ids int32 [B, T], mask bool [B, T] (False = padding) -> log p(ids[:, t] | ids[:, :t]) float [B, T]
TokenLogprobs = Callable[[np.ndarray, np.ndarray], np.ndarray]


def exact_match(completions: Sequence[str], answers: Sequence[str], extract: str = "whole") -> np.ndarray:
    """float32 [n], 1 where the completion's answer is the gold one, letter by letter. Its mean is the match rate.

    extract: 'whole', the completion without outer blanks; 'hashes', the number after its first '####'. No answer is wrong,
      also where the gold answer is ''.
    """
    if extract not in EXTRACT:
        raise UserError(f"no way {extract!r} to find an answer; there are {', '.join(EXTRACT)}")
    extracted = map(EXTRACT[extract], completions)
    return np.float32([bool(answer) and given == answer for given, answer in zip(extracted, answers, strict=True)])


# Diversity. Words are what lies between blanks.


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of all texts over all their n-grams (Li et al. 2016); 0 without any. Falls with more texts."""
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / max(len(grams), 1)


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """Mean over texts of 1 - distinct n-grams / n-grams of that text (seq-rep-n, Welleck et al. 2020); short texts count 0."""
    if not len(texts):
        raise UserError("there are no texts to measure: the split is empty")
    return float(np.mean([1 - len(set(grams)) / len(grams) if (grams := _ngrams(text, n)) else 0.0 for text in texts]))


# Perplexity of human text under the policy: a rise is drift.


def join_texts(texts: Sequence[str], encode: Callable[[str], Sequence[int]], eos: int | None = None) -> np.ndarray:
    """Tokens int32 [N] of all texts joined by a blank line (RL4LMs), or each closed by `eos` (StackLLaMA)."""
    if eos is None:
        return np.array(encode("\n\n".join(texts)), np.int32)
    return np.array([token for text in texts for token in (*encode(text), eos)], np.int32)


def corpus_nll(
    ids: np.ndarray,
    token_logprobs: TokenLogprobs,
    *,
    window: int = 1024,
    stride: int = 512,
    batch: int = 8,
    weighted: bool = True,
) -> float:
    """Mean negative log-likelihood of a long text in nats a token: the logarithm of its perplexity.

    The first window scores all its tokens but the first; each later one starts `stride` tokens on and scores the last `stride`
    tokens (fewer at the end), so these have window - stride tokens of context or more.

    Args:
      ids: int [N], N >= 2 (`join_texts`).
      token_logprobs: called with `batch` rows of one length (of `window`, or less for a shorter text).
      weighted: total over all scored tokens (RL4LMs, which also counts the very first token, at the mean of its neighbours);
        False: mean of the windows' means, whatever their sizes (StackLLaMA's perplexity.py).
    """
    if len(ids) < 2 or not 0 < stride <= window or batch < 1:
        raise UserError(f"perplexity needs 2 tokens or more and 0 < stride <= window (now {len(ids)}, {stride}, {window})")
    spans = list(_spans(len(ids), window, stride))
    width = min(window, len(ids))
    sums, counts = [], []
    for i in range(0, len(spans), batch):
        block = np.zeros((2, batch, width), np.int32)
        for row, (start, _, stop) in enumerate(spans[i : i + batch]):
            block[:, row, : stop - start] = ids[start:stop], np.ones(stop - start)
        logps = np.asarray(token_logprobs(block[0], block[1].astype(bool)), np.float64)
        for row, (start, first, stop) in zip(logps, spans[i : i + batch], strict=False):
            scored = row[max(first - start, 1) : stop - start]
            sums.append(-scored.sum())
            counts.append(len(scored))
    return _finite(np.sum(sums) / np.sum(counts) if weighted else np.mean(np.array(sums) / counts))


def corpus_perplexity(ids: np.ndarray, token_logprobs: TokenLogprobs, **options) -> float:
    """The exponential of `corpus_nll`, with its options."""
    return math.exp(corpus_nll(ids, token_logprobs, **options))


def _spans(size: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first scored, stop) of each window."""
    scored = 0
    for start in range(0, size, stride):
        stop = min(start + window, size)
        if stop > max(scored, start + 1):  # else it is one token without context: only where stride = window
            yield start, scored, stop
        if stop == size:
            return
        scored = stop


PRIORS = (1, 10, 100, 1000, 10000)  # tokens' worth of the unigram in a bigram


def ngram_nll(train: dict[str, np.ndarray], held: dict[str, np.ndarray], vocab: int) -> dict[str, float]:
    """What counting gives, as a floor for models: {'nll_unigram', 'nll_bigram'} of the held-out tokens, nats a token.

    Unigrams are counted from 1 on; a bigram is (count of the pair + k p(token)) / (count of the first + k), with the k of
    `PRIORS` that is best on the held-out tokens themselves.

    Args:
      train, held: as `rows.pieces` makes them; tokens with 'loss' are counted and scored.
    """

    def pairs(part: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        scored = part["loss"][:, 1:]
        return part["ids"][:, :-1][scored].astype(np.int64), part["ids"][:, 1:][scored].astype(np.int64)

    (before, token), (held_before, held_token) = pairs(train), pairs(held)
    unigram = np.bincount(token, minlength=vocab) + 1.0
    p = (unigram / unigram.sum())[held_token]
    codes, counts = np.unique(before * vocab + token, return_counts=True)
    place = np.searchsorted(codes, wanted := held_before * vocab + held_token).clip(max=len(codes) - 1)
    seen = np.where(codes[place] == wanted, counts[place], 0)
    first = np.bincount(before, minlength=vocab)[held_before]
    bigram = min(-np.log((seen + k * p) / (first + k)).mean() for k in PRIORS)
    return {"nll_unigram": float(-np.log(p).mean()), "nll_bigram": float(bigram)}


# Perplexity of generated text under the SFT model: the "KL" axis of Noukhovitch et al. 2025.


def ppl_paper(logps: np.ndarray, mask: np.ndarray, prompt_lengths: np.ndarray) -> float:
    """Mean over samples of exp(NLL of the response / (prompt + response tokens - 1)): diluted, as published (1.07 to 1.14).

    The prompt's tokens are counted but not scored (src/perplexity.py of mnoukhov/async_rlhf; its first token has no
    prediction and is not counted either).

    Args:
      logps: float [n, N], log-probabilities of response tokens; mask: bool [n, N], False = padding.
      prompt_lengths: int [n], tokens of each prompt without padding.
    """
    return _sample_ppl(logps, mask, np.sum(mask, 1) + np.asarray(prompt_lengths) - 1)


def ppl_response(logps: np.ndarray, mask: np.ndarray) -> float:
    """Mean over samples of exp(NLL of the response / its tokens): far larger than `ppl_paper`. Arguments as there."""
    return _sample_ppl(logps, mask, np.sum(mask, 1))


def _sample_ppl(logps: np.ndarray, mask: np.ndarray, tokens: np.ndarray) -> float:
    if not np.all(np.any(mask, 1)) or not len(mask):
        raise UserError("perplexity of a response without tokens: keep at least the EOS of each")
    nll = -np.where(mask, np.asarray(logps, np.float64), 0).sum(1)
    return _finite(np.exp(nll / tokens).mean())


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise UserError(f"a perplexity is {value}: the model gave log-probabilities that are not finite; it has diverged")
    return float(value)


# Preference


def win_rate(generated: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Gold scores float [n] of generations and of references -> 'win_rate', the share strictly above; 'mean_difference'."""
    difference = _gold(generated, reference)
    return {"win_rate": float((difference > 0).mean()), "mean_difference": float(difference.mean())}


def relabel(pairs: Pairs, gold_chosen: np.ndarray, gold_rejected: np.ndarray) -> Pairs:
    """Pairs ordered by gold scores float [n]: swapped where the rejected text scores strictly higher; ties keep their order."""
    if len(pairs.chosen) != len(gold_chosen):
        raise UserError(f"{len(gold_chosen)} gold scores for {len(pairs.chosen)} pairs; score each pair once")
    swap = _gold(gold_chosen, gold_rejected) < 0
    sides = [(r, c) if s else (c, r) for c, r, s in zip(pairs.chosen, pairs.rejected, swap, strict=True)]
    return Pairs(list(pairs.prompts), *map(list, zip(*sides, strict=True)))


def _gold(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The difference a - b of checked scores."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise UserError(f"gold scores have shapes {a.shape} and {b.shape}; both need one score a row")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        row = np.flatnonzero(~np.isfinite(a) | ~np.isfinite(b))[0]
        raise UserError(f"the gold score of row {row} is not finite; mend the gold reward")
    return a - b
