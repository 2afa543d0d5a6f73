"""Scores of completions: from their text (rules, lexicons), or from a model trained here or loaded from a folder."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rlhf_jax import encoder, hub, models, rewards, tokenisers
from rlhf_jax.tasks import Examples
from rlhf_jax.tokenisers import left_pad, right_pad
from training.config import load_saved
from training.errors import UserError

# (index int [n] into the split, prompts, completions) -> float32 [n], higher is better
Judge = Callable[[np.ndarray, list[str], list[str]], np.ndarray]

BLOCK = 64  # texts a model scores at once: one program for any number


def open_judge(options: ConfigDict, examples: Examples) -> Judge:
    """The judge of a config's `reward` (or `gold`) section, for one split.

    Args:
      options: `kind` 'exact', 'lexicon', 'length' (rewards.py), 'model' (`run`: a workdir of rlhf_jax.reward_model) or
        'classifier' (`run`: a Hugging Face folder of a sequence classifier; the score is the probability of its last label).
    """
    if options.kind == "model":
        return _trained(options.run)
    if options.kind == "classifier":
        return _classifier(options.run)
    return rewards.make_reward(options.kind, examples)


def _trained(run: str) -> Judge:
    """A reward model's score of prompt + completion + EOS; probabilities where it was trained on labels."""
    if not (Path(run) / "checkpoints").exists():
        raise UserError(f"reward.run {run!r} is not a workdir of rlhf_jax.reward_model: train one there first")
    config = load_saved(run)
    if config.method != "rlhf_jax.reward_model":
        raise UserError(f"reward.run {run} is a run of {config.method}, not of rlhf_jax.reward_model")
    _, tokeniser = models.open_data(config)
    cfg = models.model_config(config.model, tokeniser)
    params = jax.device_put(models.load(run, cfg, ("reward",), head=True))
    labels = config.objective == "labels"

    def score(params: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
        z = models.last_score(params, cfg, ids, mask)
        return jax.nn.sigmoid(z) if labels else z

    end = [] if labels else [tokeniser.eos]
    encode = lambda texts: [ids + end for ids in tokeniser.encode_batch(texts)]  # noqa: E731
    return _by_model(score, params, encode, lambda rows: left_pad(rows, config.length, tokeniser.pad))


def _classifier(folder: str) -> Judge:
    """Probability of the last label of an encoder, on prompt + completion, cut on the left (IMDB: distilbert-imdb)."""
    cfg, params = hub.load(folder)
    if not isinstance(cfg, encoder.EncoderConfig):
        raise UserError(f"reward.run {folder} is not a sequence classifier; use kind 'model' for a reward model trained here")
    tokeniser = tokenisers.load(folder)

    def score(params: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return jax.nn.softmax(encoder.classify(params, cfg, ids, mask))[:, -1]

    encode = lambda texts: tokeniser.encode_batch(texts, special=True, limit=cfg.context)  # noqa: E731
    return _by_model(score, params, encode, lambda rows: right_pad(rows, cfg.context, tokeniser.pad))


def _by_model(
    score: Callable, params: dict, encode: Callable[[list[str]], list[list[int]]], pad: Callable[[list], tuple]
) -> Judge:
    run = jax.jit(score)

    def judge(index: np.ndarray, prompts: list[str], completions: list[str]) -> np.ndarray:
        rows = encode([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])
        rows += [rows[-1]] * (-len(rows) % BLOCK)
        ids, mask = pad(rows)
        found = [run(params, jnp.asarray(i), jnp.asarray(m)) for i, m in zip(_blocks(ids), _blocks(mask), strict=True)]
        return rewards.check(np.concatenate([np.asarray(x) for x in found])[: len(index)], index)

    return judge


def _blocks(x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, len(x) // BLOCK)
