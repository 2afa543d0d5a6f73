"""Judges that read the text alone: exact match, sentiment by lexicon, length. They run on the host."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlhf_jax.rollouts.text_metrics import exact_match
from rlhf_jax.tasks.base import Examples
from training.errors import UserError

# (indices int [n] into the split, prompts, completions) -> float32 [n], higher is better
Judge = Callable[[np.ndarray, Sequence[str], Sequence[str]], np.ndarray]


def make_reward(kind: str, examples: Examples, **options) -> Judge:
    """The judge of one split that is called `kind`: 'exact', 'lexicon' or 'length', the functions below.

    Args:
      options: keywords of the function of that name.
    """
    makers = {"exact": exact, "lexicon": lexicon, "length": length}
    if kind not in makers:
        raise UserError(f"no reward {kind!r}; there are {', '.join(makers)}")
    score = makers[kind](examples, **options)
    return lambda indices, prompts, completions: check(score(indices, prompts, completions), indices)


def exact(examples: Examples, *, extract: str = "auto") -> Judge:
    """1 for the right answer and 0 else.

    extract: where the answer is, 'whole' or 'hashes' (`exact_match`); 'auto' is 'hashes' if the references have them.
    """
    if not any(examples.answers):
        raise UserError("reward 'exact' needs gold answers: choose task gsm8k or arithmetic")
    if extract == "auto":
        extract = "hashes" if any("####" in reference for reference in examples.references) else "whole"
    return lambda indices, prompts, completions: exact_match(completions, [examples.answers[i] for i in indices], extract)


def lexicon(examples: Examples, *, scope: str = "text") -> Judge:
    """VADER's sentiment in [0, 1] of prompt and completion ('text'), or of the 'completion' alone."""
    if scope not in ("text", "completion"):
        raise UserError(f"scope {scope!r} of reward 'lexicon' is not text or completion")
    if scope == "completion":
        return lambda indices, prompts, completions: sentiment(completions)
    return lambda indices, prompts, completions: sentiment([p + c for p, c in zip(prompts, completions, strict=True)])


def length(examples: Examples, *, target: int = 20) -> Judge:
    """Characters of the completion, as a share of `target`, at most 1. A toy that any model learns at once."""
    if target < 1:
        raise UserError(f"target {target} of reward 'length' must be 1 character or more")
    return lambda indices, prompts, completions: np.minimum(np.float32([len(c) for c in completions]) / target, 1)


def sentiment(texts: Sequence[str]) -> np.ndarray:
    """(1 + compound) / 2 of VADER (Hutto and Gilbert 2014), float32 [n] in [0, 1]; 1/2 where no word has a sentiment."""
    analyser = _vader()
    return np.float32([(1 + analyser.polarity_scores(text)["compound"]) / 2 for text in texts])


@functools.lru_cache(maxsize=1)  # reads a lexicon of 7,500 words
def _vader() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def check(scores: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """float32 [n] of any reward's scores. Raises UserError, naming the row of the split, for one that is not finite."""
    scores = np.asarray(scores, np.float32)
    if scores.shape != np.shape(indices):
        raise UserError(f"the reward gave shape {scores.shape} for {len(indices)} completions; it must give one score each")
    if len(bad := np.flatnonzero(~np.isfinite(scores))):
        raise UserError(f"the reward of row {indices[bad[0]]} is {scores[bad[0]]} ({len(bad)} such rows); mend the reward")
    return scores
