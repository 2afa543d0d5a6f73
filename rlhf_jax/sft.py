"""Supervised fine-tuning: next-token loss on texts (packed) or on the completions of prompts (padded)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import decoder
from models.tokenisers import Tokeniser
from rlhf_jax import policy as models
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts import rows as data
from rlhf_jax.rollouts.evaluate import held_out
from rlhf_jax.tasks import Task
from training import optim
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, Method, Stream, TrainState
from training.rng import key_for
from training.sharding import check_batch
from training.step import make_step


def make(config: ConfigDict, mesh: Mesh) -> tuple[Method, Stream]:
    """A language model trained on the texts or examples of `config.data`."""
    check_batch(config.batch, mesh, config.accumulate)
    task, tokeniser = models.open_data(config)
    policy = Policy(config, models.model_config(config.model, tokeniser))
    stream = DatasetStream(rows(config, task, tokeniser, "train"), batch=config.batch, seed=config.seed, mesh=mesh)
    return make_method(config, policy, task, tokeniser, mesh), stream


def rows(config: ConfigDict, task: Task, tokeniser: Tokeniser, split: str) -> data.Rows:
    """Examples of a split in the form that `config.form` names."""
    lengths = data.Lengths.of(config.sample)
    if config.form == "packed":
        return data.packed(task.texts[split], tokeniser, config.length)
    examples = task.splits[split]
    arrays = data.pieces(examples.prompts, examples.references, tokeniser, lengths)
    if config.form == "examples":  # prompts are learned too (TL;DR, StackLLaMA)
        arrays["loss"] = arrays["mask"]
    elif config.form != "completions":
        raise UserError(f"form {config.form!r} is unknown: use 'packed', 'examples' or 'completions'")
    return data.Rows(arrays)


def make_method(config: ConfigDict, policy: Policy, task: Task, tokeniser: Tokeniser, mesh: Mesh) -> Method:
    tx = optim.build(**config.optim)
    consts = models.frozen(policy, mesh, config.mesh.min_shard, start=False)

    def init(seed: jax.Array, spec: Any) -> TrainState:
        params = {"policy": policy.fresh(key_for(seed, 0, "init"))}
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params))

    def warm(state: TrainState) -> TrainState:
        params = {"policy": jax.tree.map(jnp.asarray, policy.start())}
        return state.replace(params=params, opt_state=tx.init(params))

    def loss_fn(params: dict, batch: dict, key: jax.Array, extra: Any, consts: dict) -> Any:
        loss, counted = cross_entropy(policy.weights(params["policy"], consts["frozen"]), policy, batch)
        return loss, ({"tokens": counted}, extra)

    step = make_step(loss_fn, tx, accumulate=config.accumulate)
    evals = {"eval": Eval(config.eval.every, held_out(config, policy, task, tokeniser, consts, mesh))}
    rules = () if policy.rank else decoder.RULES
    return Method(init=init, step=step, evals=evals, consts=consts, rules=rules, warm=warm if config.init_from else None)


def cross_entropy(weights: dict, policy: Policy, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Mean of -log p over the tokens marked 'loss' (the first of a row has no context and is left out), and their number."""
    logps = decoder.token_logprobs(weights, policy.cfg, batch["ids"], batch["mask"])
    first = jnp.cumsum(batch["mask"], 1) <= 1
    wanted = batch["loss"] & batch["mask"] & ~first
    count = wanted.sum()
    return -jnp.where(wanted, logps, 0).sum() / jnp.maximum(count, 1), count
