"""Reward models: a decoder with a scalar head, trained on pairs (Bradley-Terry) or on labelled texts (logistic regression)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import decoder
from models.decoder import TransformerConfig
from models.tokenisers import Tokeniser
from rlhf_jax import policy, preferences
from rlhf_jax.policy import last_score, model_config, with_head
from rlhf_jax.rollouts import rows as data
from rlhf_jax.tasks import Task
from training import optim
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, Method, Stream, TrainState
from training.rng import key_for
from training.sharding import check_batch, replicated
from training.step import make_step

OBJECTIVES = ("pairs", "labels")


def make(config: ConfigDict, mesh: Mesh) -> tuple[Method, Stream]:
    """A scorer of texts, from the weights of `config.init_from` (an SFT run or a Hugging Face folder) with a fresh head."""
    check_batch(config.batch, mesh, config.accumulate)
    if config.objective not in OBJECTIVES:
        raise UserError(f"objective {config.objective!r} is unknown: use one of {', '.join(OBJECTIVES)}")
    task, tokeniser = policy.open_data(config)
    cfg = model_config(config.model, tokeniser)
    stream = DatasetStream(rows(config, task, tokeniser, "train"), batch=config.batch, seed=config.seed, mesh=mesh)
    return make_method(config, cfg, rows(config, task, tokeniser, "validation"), mesh), stream


def rows(config: ConfigDict, task: Task, tokeniser: Tokeniser, split: str) -> data.Rows:
    """Pairs or labelled texts of a split."""
    if config.objective == "labels":
        if split not in task.labelled:
            raise UserError(f"the task {task.name} has no labelled texts ({split}): use objective 'pairs'")
        return data.labelled_rows(*task.labelled[split], tokeniser, config.length)
    return pairs(config, task, tokeniser, split)


def pairs(config: ConfigDict, task: Task, tokeniser: Tokeniser, split: str) -> data.Rows:
    """Pairs of a split, from the file `config.pairs` or the task."""
    found = preferences.read(config.pairs)[split] if config.pairs else task.pairs.get(split)
    if found is None:
        raise UserError(f"the task {task.name} has no pairs ({split}): give config.pairs, or use objective 'labels'")
    return data.pair_rows(*found, tokeniser, data.Lengths.of(config.sample))


def make_method(config: ConfigDict, cfg: TransformerConfig, validation: data.Rows, mesh: Mesh) -> Method:
    tx = optim.build(**config.optim)
    objective = {"pairs": pair_loss, "labels": label_loss}[config.objective]

    def init(seed: jax.Array, spec: Any) -> TrainState:
        params = {"reward": with_head(key_for(seed, 0, "head"), decoder.init(key_for(seed, 0, "init"), cfg), cfg)}
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params))

    def warm(state: TrainState) -> TrainState:
        loaded = policy.load(config.init_from, cfg, ("reward", "policy"), head=True)
        trunk = {name: jax.tree.map(jnp.asarray, x) for name, x in loaded.items() if name != "head"}
        params = {"reward": {**state.params["reward"], **trunk}}
        return state.replace(params=params, opt_state=tx.init(params))

    def loss_fn(params: dict, batch: dict, key: jax.Array, extra: Any, consts: Any) -> Any:
        loss, metrics = objective(params["reward"], cfg, batch)
        return loss, (metrics, extra)

    step = make_step(loss_fn, tx, accumulate=config.accumulate)
    look = lambda state, rows, consts: objective(state.params["reward"], cfg, rows)  # noqa: E731
    evals = {"eval": Eval(config.eval.every, evaluate(look, validation, config.eval.rows, mesh))}
    warm_or_none = warm if config.init_from else None
    return Method(init=init, step=step, evals=evals, rules=decoder.RULES, warm=warm_or_none)


def pair_loss(params: dict, cfg: TransformerConfig, batch: dict) -> tuple[jax.Array, dict]:
    """-log sigmoid(r_chosen - r_rejected), no margin and no centring (async_rlhf, reward_modeling.py); both in one pass."""
    ids = jnp.concatenate([batch["ids_chosen"], batch["ids_rejected"]])
    mask = jnp.concatenate([batch["mask_chosen"], batch["mask_rejected"]])
    chosen, rejected = jnp.split(last_score(params, cfg, ids, mask), 2)
    gap = chosen - rejected
    return jax.nn.softplus(-gap).mean(), {"accuracy": (gap > 0).mean(), "gap": gap.mean(), "score": chosen.mean()}


def label_loss(params: dict, cfg: TransformerConfig, batch: dict) -> tuple[jax.Array, dict]:
    """Cross-entropy of sigmoid(score) against labels in [0, 1]."""
    score, label = last_score(params, cfg, batch["ids"], batch["mask"]), batch["label"]
    loss = (jax.nn.softplus(score) - label * score).mean()
    return loss, {"accuracy": ((score > 0) == (label > 0.5)).mean(), "score": score.mean()}


def evaluate(
    objective: Callable[[TrainState, dict, Any], tuple[jax.Array, dict]], validation: data.Rows, batch: int, mesh: Mesh,
    consts: Callable[[], Any] = tuple,
) -> Callable[[TrainState, int], dict[str, float]]:  # fmt: skip
    """Loss and metrics over the validation rows, in whole batches of `batch` rows (the last rows may be left out).

    Args:
      objective: (state, rows, `consts()`) -> (loss, metrics).
    """
    run = jax.jit(objective, out_shardings=replicated(mesh))
    size = min(batch, len(validation))
    starts = range(0, len(validation) - size + 1, size)

    def look(state: TrainState, step: int) -> dict[str, float]:
        found = []
        for start in starts:
            part = validation.batch(np.arange(start, start + size), np.zeros(0))
            loss, metrics = run(state, policy.spread_rows(part, mesh), consts())
            found.append({"loss": float(loss), **{name: float(x) for name, x in metrics.items()}})
        return {name: float(np.mean([row[name] for row in found])) for name in found[0]}

    return look
