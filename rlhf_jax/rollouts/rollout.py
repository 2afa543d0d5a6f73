"""Rollouts: prompts, sampled responses and their scores, as batches for the shared loop.

Legend: P prompts, k samples a prompt, C prompt tokens, N response tokens. Everything in a batch has the leading axis P, so that
the samples of one prompt stay together in every minibatch and on every device.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import sampling
from models.decoder import TransformerConfig
from models.tokenisers import Tokeniser
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts.rewards import Judge
from rlhf_jax.rollouts.rows import Lengths, array, prompt_rows, prompt_spec
from training.data import DatasetStream
from training.errors import UserError
from training.generate import GeneratorStream, HostScore
from training.method import TrainState
from training.rng import key_for
from training.sharding import batch_spec


class Sampler(NamedTuple):
    """Settings of the sampler.

    min_new: EOS cannot be sampled before this many tokens; set it to `lengths.response` to forbid EOS, as IMDB and StackLLaMA
      do.
    shortest: a batch's full length is uniform in [shortest, lengths.response] (StackLLaMA); 0: always lengths.response.
    """

    samples: int
    lengths: Lengths
    temperature: float
    top_k: int
    top_p: float
    min_new: int
    shortest: int


class Setup(NamedTuple):
    """What the functions of a reinforcement-learning run share."""

    config: ConfigDict
    policy: Policy
    sampler: Sampler
    tx: optax.GradientTransformation
    mesh: Mesh


def sampler_of(options: ConfigDict) -> Sampler:
    """From a config's `sample` section."""
    if not 0 <= options.shortest <= options.response:
        raise UserError(f"sample.shortest {options.shortest} must be 0 (off) or up to sample.response {options.response}")
    return Sampler(
        options.each, Lengths.of(options), options.temperature, options.top_k, options.top_p,
        0 if options.stop else options.response, options.shortest,
    )  # fmt: skip


def draw(
    params: dict, cfg: TransformerConfig, prompts: dict, key: jax.Array, sampler: Sampler, tokeniser: Tokeniser,
    limit: dict | None = None, limit_p: float = 1.0,
) -> dict[str, jax.Array]:  # fmt: skip
    """Responses: {'tokens' int32 [P, k, N], 'logps' float32 [P, k, N], 'length' int32 [P, k] (tokens, with EOS)}.

    Each row's randomness depends on the key and its place alone. limit, limit_p: see `sampling.generate`.
    """
    P, k, N = len(prompts["prompt"]), sampler.samples, sampler.lengths.response
    ids_BC, mask_BC = (jnp.repeat(prompts[name], k, axis=0) for name in ("prompt", "prompt_mask"))
    tokens_BN, logps_BN, length_B = sampling.generate(
        params, cfg, ids_BC, mask_BC, key, max_new=N, temperature=sampler.temperature, top_k=sampler.top_k,
        top_p=sampler.top_p, eos=tokeniser.eos, pad=tokeniser.pad, min_new=sampler.min_new, limit=limit, limit_p=limit_p,
    )  # fmt: skip
    if sampler.shortest:
        most = jax.random.randint(jax.random.fold_in(key, P * k), (), sampler.shortest, N + 1)
        short_N = jnp.arange(N) < most
        tokens_BN, logps_BN = jnp.where(short_N, tokens_BN, tokeniser.pad), jnp.where(short_N, logps_BN, 0)
        length_B = jnp.minimum(length_B, most)
    return {"tokens": tokens_BN.reshape(P, k, N), "logps": logps_BN.reshape(P, k, N), "length": length_B.reshape(P, k)}


def scorer(judge: Judge, prompts: list[str], tokeniser: Tokeniser) -> HostScore:
    """What the host adds to a rollout: {'score' float32 [P, k], 'ended' bool [P, k]: the response has an EOS}."""

    def score(batch: dict, generated: dict) -> dict[str, np.ndarray]:
        P, k, N = generated["tokens"].shape
        tokens_BN = generated["tokens"].reshape(P * k, N)
        index_B = np.repeat(batch["index"], k)
        score_B = judge(index_B, [prompts[i] for i in index_B], tokeniser.decode_batch(tokens_BN))
        ended_B = (tokens_BN == tokeniser.eos).any(1)
        return {"score": score_B.astype(np.float32).reshape(P, k), "ended": ended_B.reshape(P, k)}

    return score


def spec(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """Of a batch of `config.batch` prompts."""
    k, N = setup.sampler.samples, setup.sampler.lengths.response
    generated = {"tokens": array(np.int32, k, N), "logps": array(np.float32, k, N), "length": array(np.int32, k)}
    scores = {"score": array(np.float32, k), "ended": array(bool, k), "version": array(np.int32)}
    row = {**prompt_spec(setup.sampler.lengths.prompt), **generated, **scores}
    return batch_spec(row, setup.config.batch, setup.mesh)


def stream(setup: Setup, consts: dict, prompts: list[str], judge: Judge, tokeniser: Tokeniser) -> GeneratorStream:
    """Rollouts of `config.batch` prompts by the current policy."""
    config, policy, sampler, whole = setup.config, setup.policy, setup.sampler, spec(setup)
    wanted = {name: whole[name] for name in prompt_spec(sampler.lengths.prompt)}
    source = DatasetStream(prompt_rows(prompts, tokeniser, sampler.lengths), wanted, seed=config.seed)

    def generate(state: TrainState, batch: dict, frozen: Any) -> dict:
        weights = policy.weights(state.params["policy"], frozen)
        limit = policy.weights(state.params["limit"], frozen) if config.rl.limit_p else None
        key = key_for(state.seed, state.step, "generate")
        return draw(weights, policy.cfg, batch, key, sampler, tokeniser, limit, config.rl.limit_p)

    def view(state: TrainState) -> TrainState:
        limit = {"limit": state.extra["limit"]} if config.rl.limit_p else {}
        return TrainState(state.step, state.seed, {"policy": state.params["policy"], **limit}, None, None)

    score = scorer(judge, prompts, tokeniser)
    return GeneratorStream(source, generate, score, spec=whole, view=view, consts=consts["frozen"], lag=config.lag)
