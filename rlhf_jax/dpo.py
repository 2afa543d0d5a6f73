"""Offline DPO and IPO on given pairs (Rafailov et al. 2023; Azar et al. 2024): a baseline of Noukhovitch et al. 2025."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import decoder
from rlhf_jax import policy as models
from rlhf_jax import reward_model
from rlhf_jax.algorithms import losses
from rlhf_jax.algorithms.masks import masked_sum
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts.evaluate import held_out
from training import optim
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, Method, Stream, TrainState
from training.rng import key_for
from training.sharding import check_batch
from training.step import make_step

LOSSES = {"dpo": losses.dpo, "ipo": losses.ipo}


def make(config: ConfigDict, mesh: Mesh) -> tuple[Method, Stream]:
    """The policy of `config.init_from`, moved towards the chosen side of the task's pairs or of `config.pairs`."""
    check_batch(config.batch, mesh, config.accumulate)
    if config.loss not in LOSSES:
        raise UserError(f"loss {config.loss!r} is unknown: use one of {', '.join(LOSSES)}")
    task, tokeniser = models.open_data(config)
    policy = Policy(config, models.model_config(config.model, tokeniser))
    train, held = (reward_model.pairs(config, task, tokeniser, split) for split in ("train", "validation"))
    stream = DatasetStream(train, batch=config.batch, seed=config.seed, mesh=mesh)
    consts = models.frozen(policy, mesh, config.mesh.min_shard)
    texts = held_out(config, policy, task, tokeniser, consts, mesh)
    objective = lambda state, rows, consts: pair_loss(state.params["policy"], rows, consts, policy, config)  # noqa: E731
    preferences = reward_model.evaluate(objective, held, config.eval.rows, mesh, consts)
    look = lambda state, step: {**texts(state, step), **preferences(state, step)}  # noqa: E731
    return make_method(config, policy, consts, {"eval": Eval(config.eval.every, look)}), stream


def make_method(config: ConfigDict, policy: Policy, consts: Any, evals: dict[str, Eval]) -> Method:
    tx = optim.build(**config.optim)

    def init(seed: jax.Array, spec: Any) -> TrainState:
        params = {"policy": policy.fresh(key_for(0, 0, "base"))}
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params))

    def warm(state: TrainState) -> TrainState:
        params = {"policy": jax.tree.map(jnp.copy, consts()["init"])}
        return state.replace(params=params, opt_state=tx.init(params))

    def loss_fn(params: dict, batch: dict, key: jax.Array, extra: Any, consts: dict) -> Any:
        loss, metrics = pair_loss(params["policy"], batch, consts, policy, config)
        return loss, (metrics, extra)

    step = make_step(loss_fn, tx, accumulate=config.accumulate)
    rules = () if policy.rank else decoder.RULES
    return Method(init=init, step=step, evals=evals, consts=consts, rules=rules, warm=warm)


def pair_loss(trainable: Any, batch: dict, consts: dict, policy: Policy, config: ConfigDict) -> tuple[jax.Array, dict]:
    """The loss on rows of `data.pair_rows`; S sums over a completion and its EOS."""

    def sums(weights: dict, side: str) -> jax.Array:
        logps = decoder.token_logprobs(weights, policy.cfg, batch[f"ids_{side}"], batch[f"mask_{side}"])
        return masked_sum(logps, batch[f"loss_{side}"])

    now, start = (policy.weights(x, consts["frozen"]) for x in (trainable, consts["init"]))
    sides = [sums(weights, side) for weights in (now, start) for side in ("chosen", "rejected")]
    return LOSSES[config.loss](*sides, config.beta)
