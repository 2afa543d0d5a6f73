"""Scores of completions: from their text (rules, lexicons), or from a model trained here or loaded from a folder."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from models import distilbert, tokenisers
from models.decoder import TransformerConfig
from models.hub import folder as hub
from models.tokenisers import left_pad, right_pad
from rlhf_jax import policy
from rlhf_jax.rollouts import rewards
from rlhf_jax.tasks import Examples
from training.config import load_saved
from training.errors import UserError

# (index int [n] into the split, prompts, completions) -> float32 [n], higher is better
Judge = Callable[[np.ndarray, list[str], list[str]], np.ndarray]

BLOCK = 64  # texts a model scores at once: one program for any number


def open_judge(options: ConfigDict, examples: Examples) -> Judge:
    """The judge of a config's `reward` (or `gold`) section, for one split.

    Args:
      options: `kind` 'exact', 'lexicon', 'length' (rewards.py), 'model' (`run`: a workdir of rlhf_jax.reward_model, or
        a Hugging Face folder of a decoder with a score) or 'classifier' (`run`: a Hugging Face folder of an encoder; the score
        is the probability of its last label).
    """
    if options.kind == "model":
        return _reward_model(options.run)
    if options.kind == "classifier":
        return _classifier(options.run)
    return rewards.make_reward(options.kind, examples)


def _reward_model(run: str) -> Judge:
    """The score of prompt + completion + EOS, a pair of texts as in training; of a model trained on labels, probabilities."""
    workdir = (Path(run) / "checkpoints").exists()
    if not workdir and not (Path(run) / hub.CONFIG).is_file():
        raise UserError(
            f"judge {run!r} is neither a workdir of rlhf_jax.reward_model nor a Hugging Face folder: train one first"
        )
    if workdir:
        config = load_saved(run)
        if config.method != "rlhf_jax.reward_model":
            raise UserError(f"judge {run} is a run of {config.method}, not of rlhf_jax.reward_model")
        _, tokeniser = policy.open_data(config)
        cfg = policy.model_config(config.model, tokeniser)
        params, labels, length = policy.load(run, cfg, ("reward",), head=True), config.objective == "labels", config.length
    else:
        (cfg, params), tokeniser = hub.load(run), tokenisers.load(run)
        if not isinstance(cfg, TransformerConfig) or "score" not in params:
            raise UserError(f"judge {run} is not a decoder with a score: use kind 'classifier' for an encoder")
        labels, length = False, cfg.context
    params = jax.device_put(params)

    def score(params: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
        z = policy.last_score(params, cfg, ids, mask)
        return jax.nn.sigmoid(z) if labels else z

    def encode(prompts: list[str], completions: list[str]) -> list[list[int]]:
        if labels:
            return tokeniser.encode_batch(_joined(prompts, completions))
        sides = zip(tokeniser.encode_batch(prompts), tokeniser.encode_batch(completions), strict=True)
        return [[*prompt, *completion, tokeniser.eos] for prompt, completion in sides]

    return _by_model(score, params, encode, lambda rows: left_pad(rows, length, tokeniser.pad))


def _classifier(folder: str) -> Judge:
    """Probability of the last label of an encoder, on prompt + completion, cut on the left (IMDB: distilbert-imdb)."""
    cfg, params = hub.load(folder)
    if not isinstance(cfg, distilbert.EncoderConfig):
        raise UserError(f"judge {folder} is not a sequence classifier; use kind 'model' for a decoder")
    tokeniser = tokenisers.load(folder)

    def score(params: dict, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return jax.nn.softmax(distilbert.classify(params, cfg, ids, mask))[:, -1]

    def encode(prompts: list[str], completions: list[str]) -> list[list[int]]:
        return tokeniser.encode_batch(_joined(prompts, completions), special=True, limit=cfg.context)

    return _by_model(score, params, encode, lambda rows: right_pad(rows, cfg.context, tokeniser.pad))


def _by_model(
    score: Callable, params: dict, encode: Callable[[list[str], list[str]], list[list[int]]], pad: Callable[[list], tuple]
) -> Judge:
    run = jax.jit(score)

    def judge(index: np.ndarray, prompts: list[str], completions: list[str]) -> np.ndarray:
        rows = encode(prompts, completions)
        rows += [rows[-1]] * (-len(rows) % BLOCK)
        ids, mask = pad(rows)
        found = [run(params, jnp.asarray(i), jnp.asarray(m)) for i, m in zip(_blocks(ids), _blocks(mask), strict=True)]
        return rewards.check(np.concatenate([np.asarray(x) for x in found])[: len(index)], index)

    return judge


def _joined(prompts: list[str], completions: list[str]) -> list[str]:
    return [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]


def _blocks(x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, len(x) // BLOCK)
