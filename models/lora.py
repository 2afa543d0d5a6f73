"""Low-rank adaptation (Hu et al. 2021): y = x W + (alpha / rank) (x a) b, with W frozen and a, b trained.

The trained tree holds nothing but a and b, in the places of their layers, so that optimiser, EMA and resets see only them:

    {"blocks": {"attn": {"q": {"a" [L, in, r], "b" [L, r, out]}, ...}, "mlp": {...}}}
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from training.errors import UserError

PLACES = {"q": "attn", "k": "attn", "v": "attn", "o": "attn", "up": "mlp", "gate": "mlp", "down": "mlp"}


def init(key: jax.Array, params: dict, rank: int, targets: Sequence[str] = ("q", "v")) -> dict:
    """Fresh float32 matrices: a uniform(+-1 / sqrt(in)) (peft's Kaiming start), b 0, so that nothing changes at first.

    Args:
      params: the decoder's parameters or their shapes (jax.eval_shape).
      targets: dense layers by name, see PLACES. A layer's start does not depend on the other targets.
    """
    if rank < 1:
        raise UserError(f"lora.rank {rank} must be above 0")
    known = [name for name, place in PLACES.items() if name in params["blocks"][place]]
    if not targets or set(targets) - set(known) or len(set(targets)) < len(targets):
        raise UserError(f"lora.targets {list(targets)} must be dense layers of this model, each once: {', '.join(known)}")
    blocks: dict[str, dict] = {}
    for name in targets:
        L, fan_in, out = params["blocks"][PLACES[name]][name]["kernel"].shape
        own, bound = jax.random.fold_in(key, list(PLACES).index(name)), 1 / math.sqrt(fan_in)
        a = jax.random.uniform(own, (L, fan_in, rank), minval=-bound, maxval=bound)
        blocks.setdefault(PLACES[name], {})[name] = {"a": a, "b": jnp.zeros((L, rank, out))}
    return {"blocks": blocks}


def combine(base: dict, lora: dict, alpha: float, rank: int) -> dict:
    """Parameters that `decoder` takes: `base`, through which no gradient flows, with `lora` in its dense layers.

    Raises UserError if the matrices have another rank.
    """
    params = jax.lax.stop_gradient(base)  # new dicts
    for place, layers in lora["blocks"].items():
        for name, matrices in layers.items():
            L, _, given = matrices["a"].shape
            if given != rank:
                raise UserError(f"the LoRA matrices of {name} have rank {given}, lora.rank is {rank}; make them equal")
            params["blocks"][place][name] |= {**matrices, "scale": jnp.full(L, alpha / rank, jnp.float32)}
    return params


def merge(params: dict) -> dict:
    """Plain parameters of what `combine` made, with W + scale a b as kernels, in W's dtype."""
    if "a" not in params:
        return {name: merge(x) if isinstance(x, dict) else x for name, x in params.items()}
    a, b, kernel = (jnp.asarray(params[name], jnp.float32) for name in ("a", "b", "kernel"))
    change = jnp.einsum("lir,lro->lio", a, b, precision="highest")
    rest = {name: x for name, x in params.items() if name not in ("a", "b", "scale")}
    return {**rest, "kernel": (kernel + params["scale"][:, None, None] * change).astype(params["kernel"].dtype)}
