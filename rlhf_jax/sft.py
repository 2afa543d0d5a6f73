"""Supervised fine-tuning: next-token loss on texts (packed) or on the completions of prompts (padded)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import decoder
from models.decoder import TransformerConfig
from models.tokenisers import Tokeniser
from rlhf_jax import policy as policies
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts import rows
from rlhf_jax.rollouts.evaluate import held_out
from rlhf_jax.rollouts.rows import Lengths
from rlhf_jax.tasks import Task
from rlhf_jax.tasks.tokenised import open_data
from training import optim
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, Method, Stream, TrainState, on_first_run
from training.rng import key_for
from training.sharding import batch_spec, check_batch
from training.step import make_step

FORMS = ("packed", "examples", "completions")

sizes = policies.sizes


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """A language model trained on the texts or examples of `config.data`."""
    check_batch(config.batch, mesh, config.accumulate)
    if config.form not in FORMS:
        raise UserError(f"form {config.form!r} is unknown: use one of {', '.join(FORMS)}")
    policy, tx = Policy(config, policies.model_config(config)), optim.build(**config.optim)
    length = config.length if config.form == "packed" else Lengths.of(config.sample).total
    spec = batch_spec(rows.text_spec(length), config.batch, mesh)
    frozen_spec = policies.frozen_spec(policy, mesh, config.mesh.min_shard, start=False)
    data = functools.cache(lambda: open_data(config))

    def init(seed: jax.Array) -> TrainState:
        params = {"policy": policy.fresh(key_for(seed, 0, "init"))}
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params))

    def warm(state: TrainState, consts: dict) -> TrainState:
        params = {"policy": jax.tree.map(jnp.asarray, policy.start())}
        return state.replace(params=params, opt_state=tx.init(params))

    def loss_fn(params: dict, batch: dict, key: jax.Array, extra: Any, consts: dict) -> Any:
        loss, counted = cross_entropy(policy.weights(params["policy"], consts["frozen"]), policy.cfg, batch)
        return loss, ({"tokens": counted}, extra)

    def stream(consts: dict) -> Stream:
        return DatasetStream(split_rows(config, *data(), "train"), spec, seed=config.seed)

    return Method(
        spec=spec,
        init=init,
        step=make_step(loss_fn, tx, accumulate=config.accumulate),
        stream=stream,
        evals={"eval": Eval(config.eval.every, on_first_run(lambda: held_out(config, policy, *data(), mesh)))},
        consts=lambda: policies.frozen(policy, frozen_spec),
        consts_spec=frozen_spec,
        rules=() if policy.rank else decoder.RULES,
        warm=warm if config.sources.init else None,
        files=lambda: data()[1].files(),
    )


def split_rows(config: ConfigDict, task: Task, tokeniser: Tokeniser, split: str) -> rows.Rows:
    """Examples of a split in the form that `config.form` names."""
    if config.form == "packed":
        return rows.packed(task.texts[split], tokeniser, config.length)
    examples = task.splits[split]
    arrays = rows.pieces(examples.prompts, examples.references, tokeniser, Lengths.of(config.sample))
    if config.form == "examples":  # prompts are learned too (TL;DR, StackLLaMA)
        arrays["loss"] = arrays["mask"]
    return rows.Rows(arrays)


def cross_entropy(weights: dict, cfg: TransformerConfig, batch: dict) -> tuple[jax.Array, jax.Array]:
    """Mean of -log p over the tokens marked 'loss' (the first of a row has no context and is left out), and their number."""
    logps_BT = decoder.token_logprobs(weights, cfg, batch["ids"], batch["mask"])
    first_BT = jnp.cumsum(batch["mask"], 1) <= 1
    wanted_BT = batch["loss"] & batch["mask"] & ~first_BT
    count = wanted_BT.sum()
    return -jnp.where(wanted_BT, logps_BT, 0).sum() / jnp.maximum(count, 1), count
