"""Optimisers from plain config values: Adam(W) with clipping, schedules and parameter groups."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax

from training.errors import UserError
from training.sharding import path_name


def build(*, groups: Mapping[str, Mapping[str, Any]] | None = None, **default: Any) -> optax.GradientTransformation:
    """The optimiser of a method.

    Args:
      groups: name -> {'match': regex over parameter paths, 'scale': factor on the learning rate, and any of the keywords of
        `adam`}. The first match wins; what no group matches uses `default`. Each group has its own gradient clipping and
        learning rate; scale 0 freezes it.
        A group that matches no parameter raises UserError at init.
      **default: keywords of `adam`; groups start from them.
    """
    if not groups:
        return adam(**default)
    chains = {"default": adam(**default)}
    for name, options in groups.items():
        own = {**default, **{k: v for k, v in options.items() if k not in ("match", "scale")}}
        chains[name] = adam(**{**own, "lr": own["lr"] * options.get("scale", 1.0)})
    return optax.partition(chains, lambda params: _labels(params, groups))


def _labels(params: Any, groups: Mapping[str, Mapping[str, Any]]) -> Any:
    def label(path: tuple, _: Any) -> str:
        return next((name for name, g in groups.items() if re.search(g["match"], path_name(path))), "default")

    labels = jax.tree_util.tree_map_with_path(label, params)
    missing = set(groups) - set(jax.tree.leaves(labels))
    if missing:
        raise UserError(f"optimiser groups match no parameter: {sorted(missing)}; check config.optim.groups")
    return labels


def adam(
    *,
    lr: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: float | None = None,
    schedule: str = "constant",
    warmup: int = 0,
    steps: int | None = None,
) -> optax.GradientTransformation:
    """Adam, or AdamW when `weight_decay` > 0 (not on vectors, nor on stacked ones: arrays called bias or scale).

    Args:
      lr: peak learning rate; 0 freezes the parameters.
      clip: global gradient norm of the group, None for no clipping.
      schedule: 'constant', 'linear' or 'cosine' (to 0 at `steps`), after `warmup` linear steps.
    """
    if lr == 0:
        return optax.set_to_zero()
    chain = [] if clip is None else [optax.clip_by_global_norm(clip)]
    chain.append(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))
    if weight_decay:
        chain.append(optax.add_decayed_weights(weight_decay, mask=decays))
    chain.append(optax.scale_by_learning_rate(_schedule(lr, schedule, warmup, steps)))
    return optax.chain(*chain)


def decays(params: Any) -> Any:
    """Which arrays weight decay is for."""
    is_matrix = lambda path, p: p.ndim >= 2 and path_name(path[-1:]) not in ("bias", "scale")  # noqa: E731
    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _schedule(lr: float, schedule: str, warmup: int, steps: int | None) -> optax.Schedule | float:
    if schedule not in ("constant", "linear", "cosine"):
        raise UserError(f"unknown schedule {schedule!r}: use 'constant', 'linear' or 'cosine'")
    if schedule != "constant" and not steps:
        raise UserError(f"schedule {schedule!r} needs config.optim.steps")
    if schedule == "constant":
        after = optax.constant_schedule(lr)
    elif schedule == "linear":
        after = optax.linear_schedule(lr, 0.0, steps - warmup)
    else:
        after = optax.cosine_decay_schedule(lr, steps - warmup)
    if not warmup:
        return lr if schedule == "constant" else after
    return optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), after], [warmup])
