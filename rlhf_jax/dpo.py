"""Offline DPO and IPO on given pairs (Rafailov et al. 2023; Azar et al. 2024): a baseline of Noukhovitch et al. 2025."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import decoder
from rlhf_jax import policy as policies
from rlhf_jax import reward_model
from rlhf_jax.algorithms import losses
from rlhf_jax.algorithms.masks import masked_sum
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts import rows
from rlhf_jax.rollouts.evaluate import held_out
from rlhf_jax.rollouts.rows import Lengths
from rlhf_jax.tasks.tokenised import open_data
from training import optim
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, EvalRun, Method, Stream, TrainState, on_first_run
from training.rng import key_for
from training.sharding import batch_spec, check_batch
from training.step import make_step

LOSSES = {"dpo": losses.dpo, "ipo": losses.ipo}

sizes = policies.sizes


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """The policy of `sources.init`, moved towards the chosen side of the task's pairs or of `config.pairs`."""
    check_batch(config.batch, mesh, config.accumulate)
    if config.loss not in LOSSES:
        raise UserError(f"loss {config.loss!r} is unknown: use one of {', '.join(LOSSES)}")
    policy, tx = Policy(config, policies.model_config(config)), optim.build(**config.optim)
    spec = batch_spec(rows.pair_spec(Lengths.of(config.sample).total), config.batch, mesh)
    frozen_spec = policies.frozen_spec(policy, mesh, config.mesh.min_shard)
    data = functools.cache(lambda: open_data(config))

    def init(seed: jax.Array) -> TrainState:
        params = {"policy": policy.fresh(key_for(0, 0, "base"))}
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params))

    def warm(state: TrainState, consts: dict) -> TrainState:
        params = {"policy": jax.tree.map(jnp.copy, consts["init"])}
        return state.replace(params=params, opt_state=tx.init(params))

    def loss_fn(params: dict, batch: dict, key: jax.Array, extra: Any, consts: dict) -> Any:
        loss, metrics = pair_loss(params["policy"], batch, consts, policy, config)
        return loss, (metrics, extra)

    def stream(consts: dict) -> Stream:
        return DatasetStream(reward_model.pairs(config, *data(), "train"), spec, seed=config.seed)

    def open_eval() -> EvalRun:
        objective = lambda state, batch, consts: pair_loss(state.params["policy"], batch, consts, policy, config)  # noqa: E731
        of_pairs = reward_model.evaluation(objective, reward_model.pairs(config, *data(), "validation"), config, mesh)
        of_texts = held_out(config, policy, *data(), mesh)
        return lambda state, consts, step: {**of_texts(state, consts, step), **of_pairs(state, consts, step)}

    return Method(
        spec=spec,
        init=init,
        step=make_step(loss_fn, tx, accumulate=config.accumulate),
        stream=stream,
        evals={"eval": Eval(config.eval.every, on_first_run(open_eval))},
        consts=lambda: policies.frozen(policy, frozen_spec),
        consts_spec=frozen_spec,
        rules=() if policy.rank else decoder.RULES,
        warm=warm,
        files=lambda: data()[1].files(),
    )


def pair_loss(trainable: Any, batch: dict, consts: dict, policy: Policy, config: ConfigDict) -> tuple[jax.Array, dict]:
    """The loss on rows of `rows.pair_rows`; it compares sums over a completion and its EOS."""

    def sums(weights: dict, side: str) -> jax.Array:
        logps_BT = decoder.token_logprobs(weights, policy.cfg, batch[f"ids_{side}"], batch[f"mask_{side}"])
        return masked_sum(logps_BT, batch[f"loss_{side}"])

    now, start = (policy.weights(x, consts["frozen"]) for x in (trainable, consts["init"]))
    sides = [sums(weights, side) for weights in (now, start) for side in rows.SIDES]
    return LOSSES[config.loss](*sides, config.beta)
