"""Reward models: a decoder with a scalar head, trained on pairs (Bradley-Terry) or on labelled texts (logistic regression)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import decoder
from models.decoder import TransformerConfig
from models.heads import last_score, with_head
from models.tokenisers import Tokeniser
from rlhf_jax import policy, preferences
from rlhf_jax.rollouts import rows
from rlhf_jax.rollouts.rows import Lengths
from rlhf_jax.tasks import Task
from rlhf_jax.tasks.tokenised import open_data
from training import optim
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, EvalRun, Method, Stream, TrainState, on_first_run
from training.rng import key_for
from training.sharding import batch_spec, check_batch, replicated
from training.step import make_step

OBJECTIVES = ("pairs", "labels")

sizes = policy.sizes


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """A scorer of texts, from the weights of `sources.init` (an SFT run or a Hugging Face folder) with a fresh head."""
    check_batch(config.batch, mesh, config.accumulate)
    if config.objective not in OBJECTIVES:
        raise UserError(f"objective {config.objective!r} is unknown: use one of {', '.join(OBJECTIVES)}")
    labels = config.objective == "labels"
    cfg, tx, objective = policy.model_config(config), optim.build(**config.optim), label_loss if labels else pair_loss
    row = rows.labelled_spec(config.length) if labels else rows.pair_spec(Lengths.of(config.sample).total)
    spec = batch_spec(row, config.batch, mesh)
    data = functools.cache(lambda: open_data(config))

    def init(seed: jax.Array) -> TrainState:
        params = {"reward": with_head(key_for(seed, 0, "head"), decoder.init(key_for(seed, 0, "init"), cfg), cfg)}
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params))

    def warm(state: TrainState, consts: Any) -> TrainState:
        weights = policy.load_source(config, "init", cfg, ("reward", "policy"), head=True)
        trunk = {name: jax.tree.map(jnp.asarray, x) for name, x in weights.items() if name != "head"}
        params = {"reward": {**state.params["reward"], **trunk}}
        return state.replace(params=params, opt_state=tx.init(params))

    def loss_fn(params: dict, batch: dict, key: jax.Array, extra: Any, consts: Any) -> Any:
        loss, metrics = objective(params["reward"], cfg, batch)
        return loss, (metrics, extra)

    def stream(consts: Any) -> Stream:
        return DatasetStream(split_rows(config, *data(), "train"), spec, seed=config.seed)

    def open_eval() -> EvalRun:
        validation = split_rows(config, *data(), "validation")
        return evaluation(lambda state, batch, _: objective(state.params["reward"], cfg, batch), validation, config, mesh)

    return Method(
        spec=spec,
        init=init,
        step=make_step(loss_fn, tx, accumulate=config.accumulate),
        stream=stream,
        evals={"eval": Eval(config.eval.every, on_first_run(open_eval))},
        rules=decoder.RULES,
        warm=warm if config.sources.init else None,
        files=lambda: data()[1].files(),
    )


def split_rows(config: ConfigDict, task: Task, tokeniser: Tokeniser, split: str) -> rows.Rows:
    """Pairs or labelled texts of a split."""
    if config.objective == "pairs":
        return pairs(config, task, tokeniser, split)
    if split not in task.labelled:
        raise UserError(f"the task {task.name} has no labelled texts ({split}): use objective 'pairs'")
    return rows.labelled_rows(*task.labelled[split], tokeniser, config.length)


def pairs(config: ConfigDict, task: Task, tokeniser: Tokeniser, split: str) -> rows.Rows:
    """Pairs of a split, from the file `config.pairs` or the task."""
    texts = preferences.read(config.pairs)[split] if config.pairs else task.pairs.get(split)
    if texts is None:
        raise UserError(f"the task {task.name} has no pairs ({split}): give config.pairs, or use objective 'labels'")
    return rows.pair_rows(*texts, tokeniser, Lengths.of(config.sample))


def pair_loss(params: dict, cfg: TransformerConfig, batch: dict) -> tuple[jax.Array, dict]:
    """-log sigmoid(r_chosen - r_rejected), no margin and no centring (async_rlhf, reward_modeling.py); both in one pass."""
    ids = jnp.concatenate([batch["ids_chosen"], batch["ids_rejected"]])
    mask = jnp.concatenate([batch["mask_chosen"], batch["mask_rejected"]])
    chosen_B, rejected_B = jnp.split(last_score(params, cfg, ids, mask), 2)
    gap_B = chosen_B - rejected_B
    return jax.nn.softplus(-gap_B).mean(), {"accuracy": (gap_B > 0).mean(), "gap": gap_B.mean(), "score": chosen_B.mean()}


def label_loss(params: dict, cfg: TransformerConfig, batch: dict) -> tuple[jax.Array, dict]:
    """Cross-entropy of sigmoid(score) against labels in [0, 1]."""
    score_B, label_B = last_score(params, cfg, batch["ids"], batch["mask"]), batch["label"]
    loss = (jax.nn.softplus(score_B) - label_B * score_B).mean()
    return loss, {"accuracy": ((score_B > 0) == (label_B > 0.5)).mean(), "score": score_B.mean()}


def evaluation(
    objective: Callable[[TrainState, dict, Any], tuple[jax.Array, dict]], validation: rows.Rows, config: ConfigDict, mesh: Mesh
) -> EvalRun:
    """Loss and metrics over the validation rows, in whole batches of `eval.rows` rows (the last rows may be left out).

    Args:
      objective: (state, batch, consts) -> (loss, metrics).
    """
    jitted = jax.jit(objective, out_shardings=replicated(mesh))
    size = min(config.eval.rows, len(validation))
    starts = range(0, len(validation) - size + 1, size)

    def run(state: TrainState, consts: Any, step: int) -> dict[str, float]:
        results = []
        for start in starts:
            batch = validation.batch(np.arange(start, start + size), np.zeros(size, np.uint64))
            loss, metrics = jitted(state, rows.place(batch, mesh), consts)
            results.append({"loss": float(loss), **{name: float(x) for name, x in metrics.items()}})
        return {name: float(np.mean([row[name] for row in results])) for name in results[0]}

    return run
