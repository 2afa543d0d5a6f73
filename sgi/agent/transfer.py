"""What fine-tuning takes over from pretraining (docs/sgi.md, Fine-tuning)."""

from typing import Any

import jax
import jax.numpy as jnp

from sgi.reference import weights
from sgi.reference.state_dict import from_reference
from training.errors import UserError
from training.method import TrainState
from training.runs import Run

FIRST_LAYERS = ("goal", "reward", "none")
PROJECTION = ("advantage_1", "value_1")
OUTPUT = ("advantage_2", "value_2")
SHARED = ("encoder", "dynamics", "predictor")


def load_pretrained(source: str, game: str) -> tuple[dict, dict, dict]:
    """Weights (params, batch_stats, spr_target), as numpy, of a run's workdir or a reference state dict (.npz, .pt, .pth)."""
    if source.endswith(weights.SUFFIXES):
        _, variables, target = from_reference(weights.read(source))
        return variables["params"], variables["batch_stats"], target
    run = Run(source).needs("sgi.pretrain", "sgi.finetune")
    config = run.config
    run.announce((config.env if "env" in config else config.data).game, game)
    arrays = run.arrays(only=("params", "extra/stats", "extra/spr_target"))
    return arrays["params"], arrays["extra"]["stats"], arrays["extra"]["spr_target"]


def transfer(state: TrainState, source: str, *, game: str, first_layers: str) -> TrainState:
    """The state with the encoder, transition model, predictor, EMA target and first head layers of a pretraining run.

    The noise scales and the optimiser stay as initialised; so do the head's second layers unless `first_layers` is 'reward'.

    Args:
      source: see `load_pretrained`.
      game: the one at hand; weights of another one are taken with a warning.
      first_layers: 'goal' copies the pretrained goal head's first layers into the reward head (falling back to the reward
        head's own where there is no goal head), 'reward' takes the whole reward head (behaviour cloning trains all of it),
        'none' keeps a fresh one.

    Raises:
      UserError: a pretrained array has another shape (another encoder, width or action count).
    """
    params, stats, target = load_pretrained(source, game)
    head = "goal_head" if first_layers == "goal" and "goal_head" in params else "reward_head"
    new, target_new = dict(state.params), dict(state.extra["spr_target"]["params"])
    for name in SHARED:
        new[name] = _fit(state.params[name], params[name], name, source)
    if first_layers != "none":
        reward = dict(state.params["reward_head"])
        for name in PROJECTION if first_layers == "goal" else PROJECTION + OUTPUT:
            reward[name] = {**reward[name], **_means(reward[name], params[head][name], f"{head}/{name}", source)}
        if first_layers == "reward":
            reward["bias"] = _fit(reward["bias"], params[head]["bias"], f"{head}/bias", source)
        new["reward_head"] = reward
    target_head = target["params"].get(head, params[head])
    target_new["encoder"] = _fit(target_new["encoder"], target["params"]["encoder"], "target encoder", source)
    if first_layers != "none":
        old = target_new["reward_head"]
        target_new["reward_head"] = {n: {**old[n], **_means(old[n], target_head[n], n, source)} for n in PROJECTION}
    stats_new = {k: _fit(v, stats[k], f"statistics of {k}", source) for k, v in state.extra["stats"].items()}
    target_stats = state.extra["spr_target"]["batch_stats"]
    target_stats = {k: _fit(v, target["batch_stats"][k], f"target statistics of {k}", source) for k, v in target_stats.items()}
    extra = {**state.extra, "stats": stats_new, "spr_target": {"params": target_new, "batch_stats": target_stats}}
    if "q_target" in extra:
        extra["q_target"] = jax.tree.map(jnp.copy, new)
    return state.replace(params=new, extra=extra)


def _means(old: dict, loaded: dict, name: str, source: str) -> dict:
    """Mean weights of a noisy layer; its noise scales are not taken over."""
    means = [k for k in old if "sigma" not in k]
    return _fit({k: old[k] for k in means}, {k: loaded[k] for k in means}, name, source)


def _fit(old: Any, loaded: Any, name: str, source: str) -> Any:
    def one(a: Any, b: Any) -> jax.Array:
        if a.shape != b.shape:
            raise UserError(
                f"{source}: {name} has shape {b.shape} there and {a.shape} here; "
                "config.net and the game must be those of pretraining"
            )
        return jnp.asarray(b, a.dtype)

    if jax.tree.structure(old) != jax.tree.structure(jax.tree.map(lambda x: x, loaded)):
        raise UserError(f"{source}: {name} has other parameters than here; config.net must be that of pretraining")
    return jax.tree.map(one, old, loaded)
