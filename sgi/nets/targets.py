"""What pretraining and fine-tuning share about target networks: their parts, and training-mode calls without side effects."""

from typing import Any

import jax
import jax.numpy as jnp

from sgi.nets.losses import normalise
from sgi.nets.sgi_net import SGINet

SUPPORT = (-10.0, 10.0)  # of the return distributions


def spr_part(params: dict, stats: dict, head: str) -> dict:
    """The parameters of the self-prediction target: encoder and projection (the first layers of a head)."""
    first = {name: x for name, x in params[f"{head}_head"].items() if name.endswith("_1")}
    return {"params": {"encoder": params["encoder"], f"{head}_head": first}, "batch_stats": part(stats, "encoder")}


def q_part(params: dict, stats: dict) -> dict:
    """The parameters of the goal-conditioned Q target."""
    return {"params": {k: params[k] for k in ("encoder", "goal_head")}, "batch_stats": part(stats, "encoder")}


def part(stats: dict, name: str) -> dict:
    """The statistics of one module; none for an encoder without BatchNorm."""
    return {name: stats[name]} if name in stats else {}


def frozen_statistics(net: SGINet, variables: dict, *args: Any, **kwargs: Any) -> Any:
    """A training-mode call (batch statistics) that leaves the running statistics alone: target networks and repeated passes."""
    out, _ = net.apply(variables, *args, train=True, mutable=["batch_stats"], **kwargs)
    return out


def project(net: SGINet, variables: dict, latents_KB: jax.Array, head: str) -> jax.Array:
    """Projections of latents: [K + 1, B, 7, 7, C] -> [K + 1, B, P]."""
    K, B = latents_KB.shape[:2]
    y = net.apply(variables, latents_KB.reshape(K * B, *latents_KB.shape[2:]), head, method="project")
    return y.reshape(K, B, -1)


def mean_cosine(y_BP: jax.Array) -> jax.Array:
    """Mean cosine between the vectors of different samples; near 1 the representation has collapsed."""
    y = normalise(y_BP)
    B = y.shape[0]
    return (jnp.square(y.sum(0)).sum() - B) / (B * max(B - 1, 1))
