"""Rollouts: prompts, sampled responses and their scores, as batches for the shared loop.

Legend: P prompts, k samples a prompt, C prompt tokens, N response tokens. Everything in a batch has the leading axis P, so that
the samples of one prompt stay together in every minibatch and on every device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import sampling
from models.tokenisers import Tokeniser
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts.judges import Judge
from rlhf_jax.rollouts.rows import Lengths, Rows, prompt_rows
from training.data import DatasetStream
from training.errors import UserError
from training.generate import GeneratorStream
from training.method import TrainState
from training.rng import key_for


class Sampler(NamedTuple):
    """How responses are drawn. EOS is not drawn before `min_new` other tokens: with lengths.response never (IMDB, StackLLaMA).

    shortest: a batch's full length is uniform in [shortest, lengths.response] (StackLLaMA); 0: always lengths.response.
    """

    samples: int
    lengths: Lengths
    temperature: float
    top_k: int
    top_p: float
    eos: int
    pad: int
    min_new: int
    shortest: int


def sampler(options: ConfigDict, tokeniser: Tokeniser) -> Sampler:
    """From a config's `sample` section."""
    if not 0 <= options.shortest <= options.response:
        raise UserError(f"sample.shortest {options.shortest} must be 0 (off) or up to sample.response {options.response}")
    return Sampler(
        options.each, Lengths.of(options), options.temperature, options.top_k, options.top_p,
        tokeniser.eos, tokeniser.pad, 0 if options.stop else options.response, options.shortest,
    )  # fmt: skip


def draw(
    params: dict, policy: Policy, prompts: dict, key: jax.Array, how: Sampler, limit: dict | None = None, limit_p: float = 1.0
) -> dict[str, jax.Array]:
    """{'tokens' int32 [P, k, N], 'logps' float32 [P, k, N]}: each row's randomness depends on the key and its place alone."""
    P, k = len(prompts["prompt"]), how.samples
    ids, mask = (jnp.repeat(prompts[name], k, axis=0) for name in ("prompt", "prompt_mask"))
    found = sampling.generate(
        params, policy.cfg, ids, mask, key, max_new=how.lengths.response, temperature=how.temperature, top_k=how.top_k,
        top_p=how.top_p, eos=how.eos, pad=how.pad, min_new=how.min_new, limit=limit, limit_p=limit_p,
    )  # fmt: skip
    tokens, logps = found.tokens, found.logps
    if how.shortest:
        length = jax.random.randint(jax.random.fold_in(key, P * k), (), how.shortest, how.lengths.response + 1)
        short = jnp.arange(how.lengths.response) < length
        tokens, logps = jnp.where(short, tokens, how.pad), jnp.where(short, logps, 0)
    return {"tokens": tokens.reshape(P, k, -1), "logps": logps.reshape(P, k, -1)}


def judged(judge: Judge, prompts: list[str], tokeniser: Tokeniser) -> Callable[[dict, dict], dict[str, np.ndarray]]:
    """A `training.generate.Score`: {'score' float32 [P, k], 'ended' bool [P, k]: the response has an EOS}."""

    def score(batch: dict, made: dict) -> dict[str, np.ndarray]:
        P, k, N = made["tokens"].shape
        tokens = made["tokens"].reshape(P * k, N)
        index = np.repeat(batch["index"], k)
        found = judge(index, [prompts[i] for i in index], tokeniser.decode_batch(tokens))
        ended = (tokens == tokeniser.eos).any(1)
        return {"score": found.astype(np.float32).reshape(P, k), "ended": ended.reshape(P, k)}

    return score


def stream(
    config: ConfigDict, policy: Policy, how: Sampler, prompts: list[str], judge: Judge, tokeniser: Tokeniser,
    consts: Callable[[], Any], mesh: Mesh,
) -> GeneratorStream:  # fmt: skip
    """Rollouts of `config.batch` prompts by the current policy."""
    rows: Rows = prompt_rows(prompts, tokeniser, how.lengths)
    source = DatasetStream(rows, batch=config.batch, seed=config.seed, mesh=mesh)

    def generate(state: TrainState, batch: dict, consts: Any) -> dict:
        weights = policy.weights(state.params["policy"], consts["frozen"])
        limit = policy.weights(state.params["limit"], consts["frozen"]) if config.rl.limit_p else None
        return draw(weights, policy, batch, key_for(state.seed, state.step, "generate"), how, limit, config.rl.limit_p)

    def view(state: TrainState) -> TrainState:
        limit = {"limit": state.extra["limit"]} if config.rl.limit_p else {}
        return TrainState(state.step, state.seed, {"policy": state.params["policy"], **limit}, None, None)

    k, N = how.samples, how.lengths.response
    shapes = {"tokens": ((k, N), np.int32), "logps": ((k, N), np.float32), "score": ((k,), np.float32), "ended": ((k,), bool)}
    makes = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
    return GeneratorStream(
        source, generate, judged(judge, prompts, tokeniser), makes=makes, view=view, consts=consts, mesh=mesh, lag=config.lag
    )
