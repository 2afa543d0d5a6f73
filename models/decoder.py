"""Transformers of one stack: pure functions for GPT-2, GPT-NeoX (Pythia) and Llama, over a dict of arrays.

`causal` off lets every token see the whole text, as masked diffusion wants; nothing that predicts the next token takes that.

Layers are stacked on a leading axis and run by `lax.scan`. Dense layers see activations as [B*T, D]: XLA's CPU backend is up to
2.8 times slower on [B, T, D].

Legend: B rows, T tokens, D width, H heads, K key/value heads, E size of a head, F inner width, V vocabulary, L layers, S keys.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from models import attention
from training.errors import UserError

# For training/sharding.py. Vocabularies such as GPT-2's 50,257 divide by nothing, hence its width is split.
RULES = (
    (r"blocks/(attn/[qkv]|mlp/(up|gate))/kernel$", P(None, "fsdp", "tensor")),
    (r"blocks/(attn/o|mlp/down)/kernel$", P(None, "tensor", "fsdp")),
    (r"(^|/)(embed/tokens|head/kernel)$", P(None, ("fsdp", "tensor"))),
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Shape and kind of a decoder. Fields with None follow from the others: see `kv`, `size` and `inner`."""

    vocab: int
    layers: int
    width: int
    heads: int
    context: int
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn: int | None = None
    norm: str = "layer"  # 'layer' or 'rms'
    eps: float = 1e-5
    position: str = "learned"  # 'learned' or 'rotary'
    rotary_fraction: float = 1.0
    rotary_theta: float = 1e4
    rotary_scaling: tuple | None = None  # Llama 3.1: (factor, low, high, original context)
    parallel: bool = False  # NeoX: attention and MLP side by side
    activation: str = "gelu_tanh"  # 'gelu_tanh', 'gelu' or 'silu'
    gated: bool = False
    bias: bool = True
    tie: bool = True
    causal: bool = True  # no token sees those after it
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("norm", NORMS), ("position", POSITIONS), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} {getattr(self, name)!r} is unknown: use one of {', '.join(allowed)}")
        if self.head_dim is None and self.width % self.heads:
            raise UserError(f"width {self.width} does not split into {self.heads} heads; change one or give head_dim")
        if self.heads % self.kv:
            raise UserError(f"heads {self.heads} is not a multiple of kv_heads {self.kv}; change one of them")

    @property
    def kv(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def size(self) -> int:
        """Size of a head."""
        return self.head_dim or self.width // self.heads

    @property
    def inner(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.ffn or 4 * self.width


NORMS = ("layer", "rms")
POSITIONS = ("learned", "rotary")
ACTIVATIONS = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
}


def init(key: jax.Array, cfg: TransformerConfig) -> dict:
    """Fresh fp32 parameters: normal(0.02), residual projections over sqrt(2 L), biases 0, norms 1 (GPT-2)."""
    L, D, Q, KV, F = cfg.layers, cfg.width, cfg.heads * cfg.size, cfg.kv * cfg.size, cfg.inner
    keys = iter(jax.random.split(key, 10))
    small = 0.02 / math.sqrt(2 * L)

    def normal(*shape: int, std: float = 0.02) -> jax.Array:
        return std * jax.random.normal(next(keys), shape, jnp.float32)

    def dense_params(fan_in: int, out: int, std: float = 0.02) -> dict:
        p = {"kernel": normal(L, fan_in, out, std=std)}
        return {**p, "bias": jnp.zeros((L, out))} if cfg.bias else p

    def norm_params(*lead: int) -> dict:
        p = {"scale": jnp.ones((*lead, D))}
        return {**p, "bias": jnp.zeros((*lead, D))} if cfg.norm == "layer" else p

    attn = {"q": dense_params(D, Q), "k": dense_params(D, KV), "v": dense_params(D, KV), "o": dense_params(Q, D, small)}
    mlp = {"up": dense_params(D, F), "down": dense_params(F, D, small)}
    if cfg.gated:
        mlp["gate"] = dense_params(D, F)
    params = {
        "embed": {"tokens": normal(cfg.vocab, D)},
        "blocks": {"norm_1": norm_params(L), "norm_2": norm_params(L), "attn": attn, "mlp": mlp},
        "norm": norm_params(),
    }
    if cfg.position == "learned":
        params["embed"]["positions"] = normal(cfg.context, D)
    if not cfg.tie:
        params["head"] = {"kernel": normal(D, cfg.vocab)}
    return params


def dense(p: dict, x: jax.Array) -> jax.Array:
    """A layer on x [n, in]: x W (+ bias) (+ scale (x a) b if there are LoRA leaves) [n, out], in the dtype of x."""
    y = x @ p["kernel"].astype(x.dtype)
    if "a" in p:
        y = y + p["scale"].astype(x.dtype) * ((x @ p["a"].astype(x.dtype)) @ p["b"].astype(x.dtype))
    return y + p["bias"].astype(x.dtype) if "bias" in p else y


def normalise(p: dict, cfg: TransformerConfig, x: jax.Array) -> jax.Array:
    """LayerNorm or RMSNorm over the last axis, statistics in fp32."""
    y = x.astype(jnp.float32)
    if cfg.norm == "layer":
        y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + cfg.eps) * p["scale"]
    return (y + p["bias"] if "bias" in p else y).astype(x.dtype)


def mlp(p: dict, cfg: TransformerConfig, x: jax.Array) -> jax.Array:
    """The MLP on x [n, D]."""
    act = ACTIVATIONS[cfg.activation]
    return dense(p["down"], act(dense(p["gate"], x)) * dense(p["up"], x) if cfg.gated else act(dense(p["up"], x)))


def rotary_tables(cfg: TransformerConfig, position: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """Cosine and sine [B, T, 1, R/2] fp32 of the angles at integer positions [B, T]; R is the rotated part of a head."""
    if cfg.position != "rotary":
        return None
    rotated = int(cfg.size * cfg.rotary_fraction)
    frequency = cfg.rotary_theta ** (-jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    if cfg.rotary_scaling is not None:  # Llama 3.1: slow only the waves that are long for the original context
        factor, low, high, original = cfg.rotary_scaling
        turns = original * frequency / (2 * math.pi)
        keep = jnp.clip((turns - low) / (high - low), 0, 1)
        frequency = frequency * (keep + (1 - keep) / factor)
    angle = (position[..., None].astype(jnp.float32) * frequency)[:, :, None]
    return jnp.cos(angle), jnp.sin(angle)


def project(p: dict, cfg: TransformerConfig, x_BTD: jax.Array, tables: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotated queries [B, T, H, E], rotated keys and values [B, K, T, E] of normalised x."""
    B, T, D = x_BTD.shape
    flat = x_BTD.reshape(B * T, D)
    q, k, v = (dense(p[name], flat).reshape(B, T, -1, cfg.size) for name in ("q", "k", "v"))
    return attention.rotate(q, tables), attention.rotate(k, tables).swapaxes(1, 2), v.swapaxes(1, 2)


def block(p: dict, cfg: TransformerConfig, x_BTD: jax.Array, tables: Any, attend: Callable) -> tuple[jax.Array, Any]:
    """One layer: [B, T, D], and what `attend` hands on.

    Args:
      attend: (q, k, v as `project` gives them) -> ([B, T, H, E], anything to hand on).
    """
    B, T, D = x_BTD.shape
    out_BTHE, extra = attend(*project(p["attn"], cfg, normalise(p["norm_1"], cfg, x_BTD), tables))
    attended_BTD = dense(p["attn"]["o"], out_BTHE.reshape(B * T, -1)).reshape(B, T, D)
    middle_BTD = x_BTD if cfg.parallel else x_BTD + attended_BTD
    y_BTD = mlp(p["mlp"], cfg, normalise(p["norm_2"], cfg, middle_BTD).reshape(B * T, D)).reshape(B, T, D)
    return (x_BTD + attended_BTD + y_BTD if cfg.parallel else middle_BTD + y_BTD), extra


def embed(params: dict, cfg: TransformerConfig, ids: jax.Array, position: jax.Array) -> jax.Array:
    """Embeddings of ids at positions, both int32 [B, T]: [B, T, D] in the compute dtype."""
    x = params["embed"]["tokens"][ids].astype(cfg.dtype)
    return x + params["embed"]["positions"][position].astype(cfg.dtype) if cfg.position == "learned" else x


def positions(mask_BT: jax.Array) -> jax.Array:
    """Positions int32 [B, T] of the tokens: the number of real ones before each."""
    return jnp.cumsum(mask_BT, 1, dtype=jnp.int32) - mask_BT


def run(params: dict, cfg: TransformerConfig, ids_BT: jax.Array, mask_BT: jax.Array, attend: Callable) -> tuple[jax.Array, Any]:
    """All layers: ([B, T, D] before the final norm, what `attend` handed on, for all layers).

    Args:
      attend: (q, k, v, allowed) -> ([B, T, H, E], anything to hand on).
    """
    T = ids_BT.shape[1]
    if cfg.position == "learned" and cfg.context < T:
        raise UserError(f"{T} tokens do not fit the context of {cfg.context}; shorten prompt or response")
    place = positions(mask_BT)
    x = embed(params, cfg, jnp.where(mask_BT, ids_BT, 0), place)
    tables = rotary_tables(cfg, place)
    allowed_BTS = mask_BT[:, None, :] & (jnp.tri(T, dtype=bool) if cfg.causal else jnp.ones((T, T), bool))
    # Without `remat` the outputs of dense layers are kept, the rest (T^2 attention weights!) is computed again: on CPU that is
    # also faster than stacking it layer by layer.
    policy = None if cfg.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    @functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)  # a scan cannot merge the two passes anyway
    def layer(x: jax.Array, p: dict) -> tuple[jax.Array, Any]:
        return block(p, cfg, x, tables, lambda q, k, v: attend(q, k, v, allowed_BTS))

    if isinstance(params["blocks"], dict):
        return jax.lax.scan(layer, x, params["blocks"])
    kept = []
    for p in params["blocks"]:  # as from decoding.unstack
        x, extra = layer(x, p)
        kept.append(extra)
    return x, jax.tree.map(lambda *each: each, *kept)


def hidden(params: dict, cfg: TransformerConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """The last layer's output after the final norm, [B, T, D]; ids int32 and mask bool [B, T].

    mask is False at padding, on either side. Positions count real tokens only and padded ids are read as 0 (async_rlhf's
    forward). Outputs at padding mean nothing.
    """
    x, _ = run(params, cfg, ids, mask, lambda *qkv: (attention.in_blocks(*qkv, causal=cfg.causal), None))
    return normalise(params["norm"], cfg, x)


def logits(params: dict, cfg: TransformerConfig, x: jax.Array) -> jax.Array:
    """Logits fp32 [..., V] of hidden states x [..., D]."""
    table = params["embed"]["tokens"] if cfg.tie else params["head"]["kernel"].T
    return attention.product(x.reshape(-1, x.shape[-1]), table.astype(x.dtype)).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _chosen(z: jax.Array, ids: jax.Array, scale: jax.Array) -> jax.Array:
    return _chosen_fwd(z, ids, scale)[0]


def _chosen_fwd(z: jax.Array, ids: jax.Array, scale: jax.Array) -> tuple[jax.Array, tuple]:
    total = jax.nn.logsumexp(z / scale, -1)
    return jnp.take_along_axis(z, ids[..., None], -1)[..., 0] / scale - total, (z, ids, scale, total)


def _chosen_bwd(kept: tuple, g: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    z, ids, scale, total = kept
    hit = ids[..., None] == jnp.arange(z.shape[-1])
    change = (hit - jnp.exp(z / scale - total[..., None])) * g[..., None] / scale
    return change, None, -(change * z).sum() / scale


_chosen.defvjp(_chosen_fwd, _chosen_bwd)  # autodiff would keep a second array of the logits' size


def chosen_logprobs(
    params: dict, cfg: TransformerConfig, x: jax.Array, ids: jax.Array, temperature: float | jax.Array = 1.0
) -> jax.Array:
    """Log-probs fp32 [...] of tokens `ids` [...] after hidden states x [..., D]: of softmax(logits / (temperature + 1e-7))."""
    return _chosen(logits(params, cfg, x), ids, jnp.asarray(temperature + 1e-7, jnp.float32))


def needs_causal(cfg: TransformerConfig) -> None:
    """Raise UserError for a model whose tokens see those that they should predict."""
    if not cfg.causal:
        raise UserError(
            "this model is not causal: it has no log-probs of next tokens, and cannot be sampled from left to right"
        )


def token_logprobs(
    params: dict,
    cfg: TransformerConfig,
    ids: jax.Array,
    mask: jax.Array,
    temperature: float | jax.Array = 1.0,
    chunk: int | None = None,
) -> jax.Array:
    """Log-probs p(ids[:, t] | ids[:, :t]) fp32 [B, T] under softmax(logits / (temperature + 1e-7)); entry 0 is 0.

    With `chunk`, logits of that many columns exist at a time, and are computed again for the gradient.
    Values at padding, and at the first real token after it, mean nothing.
    """
    needs_causal(cfg)
    x, following = hidden(params, cfg, ids, mask)[:, :-1], ids[:, 1:]
    score = functools.partial(chosen_logprobs, params, cfg, temperature=temperature)
    if chunk is None or chunk >= x.shape[1]:
        logps = score(x, following)
    else:
        B, n = following.shape
        x = jnp.pad(x, ((0, 0), (0, -n % chunk), (0, 0))).reshape(B, -1, chunk, x.shape[-1]).swapaxes(0, 1)
        parts = jnp.pad(following, ((0, 0), (0, -n % chunk))).reshape(B, -1, chunk).swapaxes(0, 1)
        logps = jax.lax.map(jax.checkpoint(lambda part: score(*part)), (x, parts)).swapaxes(0, 1).reshape(B, -1)[:, :n]
    return jnp.pad(logps, ((0, 0), (1, 0)))
