"""Scores of completions: from their text (rules, lexicons), or from a model trained here or loaded from a folder."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from models import distilbert, tokenisers
from models.decoder import TransformerConfig
from models.heads import last_score
from models.hub import folder
from models.tokenisers import left_pad, right_pad
from rlhf_jax import policy
from rlhf_jax.rollouts import rewards
from rlhf_jax.rollouts.rewards import Judge
from rlhf_jax.tasks import Examples
from rlhf_jax.tasks.tokenised import open_tokeniser
from training import population, runs
from training.errors import UserError
from training.runs import Run

BLOCK = 64  # texts a model scores at once: one program for any number


def open_judge(kind: str, source: str) -> Callable[[Examples], Judge]:
    """What judges completions: a function that gives the judge of a split.

    Args:
      kind: 'exact', 'lexicon', 'length' (rewards.py); 'model': a run of rlhf_jax.reward_model, or a Hugging Face folder of a
        decoder with a score; 'classifier': a Hugging Face folder of an encoder, whose last label's probability is the score.
      source: that run or folder.
    """
    models = {"model": _reward_model, "classifier": _classifier}
    if kind not in models:
        return lambda examples: rewards.make_reward(kind, examples)
    judge = models[kind](source)
    return lambda examples: judge


def _reward_model(source: str) -> Judge:
    """The score of prompt + completion + EOS, a pair of texts as in training; of a model trained on labels, probabilities."""
    is_run = bool(source) and runs.is_run(source)
    if not is_run and not (Path(source) / folder.CONFIG).is_file():
        raise UserError(
            f"judge {source!r} is neither a workdir of rlhf_jax.reward_model nor a Hugging Face folder: train one first"
        )
    if is_run:
        run = Run(source).needs("rlhf_jax.reward_model")
        config = population.measured(run.config)
        run.announce(config.data.task, config.data.task)
        tokeniser, cfg = open_tokeniser(config), policy.model_config(config)
        params, labels, length = policy.load(source, cfg, ("reward",), head=True), config.objective == "labels", config.length
    else:
        (cfg, params), tokeniser = folder.load(source), tokenisers.load(source)
        if not isinstance(cfg, TransformerConfig) or "score" not in params:
            raise UserError(f"judge {source} is not a decoder with a score: use kind 'classifier' for an encoder")
        labels, length = False, cfg.context
    params = jax.device_put(params)

    def score(params: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
        z = last_score(params, cfg, ids, mask)
        return jax.nn.sigmoid(z) if labels else z

    def encode(prompts: list[str], completions: list[str]) -> list[list[int]]:
        if labels:
            return tokeniser.encode_batch(_texts(prompts, completions))
        sides = zip(tokeniser.encode_batch(prompts), tokeniser.encode_batch(completions), strict=True)
        return [[*prompt, *completion, tokeniser.eos] for prompt, completion in sides]

    return _by_model(score, params, encode, lambda rows: left_pad(rows, length, tokeniser.pad))


def _classifier(source: str) -> Judge:
    """Probability of the last label of an encoder, on prompt + completion, cut on the left (IMDB: distilbert-imdb)."""
    cfg, params = folder.load(source)
    if not isinstance(cfg, distilbert.EncoderConfig):
        raise UserError(f"judge {source} is not a sequence classifier; use kind 'model' for a decoder")
    tokeniser = tokenisers.load(source)

    def score(params: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return jax.nn.softmax(distilbert.classify(params, cfg, ids, mask))[:, -1]

    def encode(prompts: list[str], completions: list[str]) -> list[list[int]]:
        return tokeniser.encode_batch(_texts(prompts, completions), special=True, limit=cfg.context)

    return _by_model(score, params, encode, lambda rows: right_pad(rows, cfg.context, tokeniser.pad))


def _by_model(
    score: Callable, params: dict, encode: Callable[[list[str], list[str]], list[list[int]]], pad: Callable[[list], tuple]
) -> Judge:
    run = jax.jit(score)

    def judge(index: np.ndarray, prompts: list[str], completions: list[str]) -> np.ndarray:
        rows = encode(prompts, completions)
        rows += [rows[-1]] * (-len(rows) % BLOCK)
        ids, mask = pad(rows)
        scores = [run(params, jnp.asarray(i), jnp.asarray(m)) for i, m in zip(_blocks(ids), _blocks(mask), strict=True)]
        return rewards.check(np.concatenate([np.asarray(x) for x in scores])[: len(index)], index)

    return judge


def _texts(prompts: list[str], completions: list[str]) -> list[str]:
    return [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]


def _blocks(x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, len(x) // BLOCK)
