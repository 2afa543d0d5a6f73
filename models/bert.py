"""The BERT encoder (Devlin et al. 2019) as pure functions of a dictionary of arrays, and its weights in Hugging Face's format.

Post-norm layers, exact (erf) GELU, learnt absolute positions, no dropout. Legend: B texts, T tokens, N = B * T, D hidden width,
H heads, F feed-forward width, V vocabulary.

Parameters, float32; DENSE = {"kernel" [in, out], "bias" [out]}, NORM = {"scale" [D], "bias" [D]}:

    {"embeddings": {"word" [V, D], "position" [positions, D], "type" [types, D], "norm": NORM},
     "layers": [{"query", "key", "value", "attention_output": DENSE, "attention_norm": NORM,
                 "intermediate", "output": DENSE, "output_norm": NORM}, ...]}
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from training.errors import UserError

FIXED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
FLOATS = ("F16", "F32", "F64")


class BertConfig(NamedTuple):
    """Sizes, under the names of config.json; the defaults are those of all-MiniLM-L6-v2."""

    vocab_size: int = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12


class Tensor(NamedTuple):
    """One array of a weight file: its name and the shape it has there."""

    name: str
    shape: tuple[int, ...]


def read_config(path: Path | str) -> BertConfig:
    """Read a config.json; keys that it lacks keep their defaults. Raises UserError for anything but a BERT of this kind."""
    try:
        found = json.loads(Path(path).read_text("utf-8"))
        sizes = {key: type(default)(found.get(key, default)) for key, default in BertConfig._field_defaults.items()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a Hugging Face style model folder") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a BERT configuration ({error}); fetch it again") from None
    if wrong := [f"{key} {found[key]!r}" for key, value in FIXED.items() if found.get(key, value) != value]:
        raise UserError(f"{path} has {', '.join(wrong)}; only {', '.join(FIXED.values())} is supported")
    if bad := [key for key, size in sizes.items() if size <= 0]:
        raise UserError(f"{path}: {', '.join(bad)} must be above 0")
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise UserError(f"{path}: hidden_size must be a multiple of num_attention_heads")
    return BertConfig(**sizes)


def layout(config: BertConfig) -> dict:
    """The tree of parameters with `Tensor`s as leaves. The file stores dense kernels as [out, in]."""
    hidden, inner = config.hidden_size, config.intermediate_size

    def dense(name, into, out):
        return {"kernel": Tensor(f"{name}.weight", (out, into)), "bias": Tensor(f"{name}.bias", (out,))}

    def norm(name):
        return {"scale": Tensor(f"{name}.weight", (hidden,)), "bias": Tensor(f"{name}.bias", (hidden,))}

    def layer(name):
        return {
            "query": dense(f"{name}.attention.self.query", hidden, hidden),
            "key": dense(f"{name}.attention.self.key", hidden, hidden),
            "value": dense(f"{name}.attention.self.value", hidden, hidden),
            "attention_output": dense(f"{name}.attention.output.dense", hidden, hidden),
            "attention_norm": norm(f"{name}.attention.output.LayerNorm"),
            "intermediate": dense(f"{name}.intermediate.dense", hidden, inner),
            "output": dense(f"{name}.output.dense", inner, hidden),
            "output_norm": norm(f"{name}.output.LayerNorm"),
        }

    return {
        "embeddings": {
            "word": Tensor("embeddings.word_embeddings.weight", (config.vocab_size, hidden)),
            "position": Tensor("embeddings.position_embeddings.weight", (config.max_position_embeddings, hidden)),
            "type": Tensor("embeddings.token_type_embeddings.weight", (config.type_vocab_size, hidden)),
            "norm": norm("embeddings.LayerNorm"),
        },
        "layers": [layer(f"encoder.layer.{i}") for i in range(config.num_hidden_layers)],
    }


def read_params(path: Path | str, config: BertConfig) -> dict:
    """Read a model.safetensors. Raises UserError for a missing or cut file, a tensor that lacks or has another shape."""
    try:
        with safe_open(path, "np") as file:
            return jax.tree_util.tree_map_with_path(
                lambda place, tensor: _read(file, tensor, place[-1], path), layout(config), is_leaf=_is_tensor
            )
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights {path} ({error}); fetch them again") from None


def _is_tensor(node) -> bool:
    return isinstance(node, Tensor)


def _read(file, tensor: Tensor, place, path) -> jax.Array:
    if tensor.name not in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
        raise UserError(f"{path} lacks {tensor.name}: it is not the weights of a BERT encoder of this config.json")
    stored = file.get_slice(tensor.name)
    if tuple(stored.get_shape()) != tensor.shape or stored.get_dtype() not in FLOATS:
        found = f"{stored.get_dtype()} {stored.get_shape()}"
        raise UserError(f"{path}: {tensor.name} is {found}, config.json asks for floats {list(tensor.shape)}")
    array = file.get_tensor(tensor.name).astype(np.float32)
    return jnp.asarray(array.T if place == jax.tree_util.DictKey("kernel") else array)


def encode_tokens(params: dict, config: BertConfig, ids_BT, mask_BT, types_BT=None) -> jax.Array:
    """Hidden states of the last layer, float32 [B, T, D]. Arguments as for `layer_outputs`."""
    return layer_outputs(params, config, ids_BT, mask_BT, types_BT)[-1]


def layer_outputs(params: dict, config: BertConfig, ids_BT, mask_BT, types_BT=None) -> list[jax.Array]:
    """Hidden states after the embeddings and after each layer, float32 [B, T, D] each.

    Args:
      ids_BT: int, numbers of word pieces, T <= max_position_embeddings; what stands at masked places does not matter.
      mask_BT: bool, true at tokens, false at padding, which no token attends to. States at padding mean nothing.
      types_BT: int, segment of each token; None = all 0.
    """
    states = [embed(params["embeddings"], config, ids_BT, types_BT)]
    for weights in params["layers"]:
        states.append(layer(weights, config, states[-1], mask_BT))
    return states


def embed(weights: dict, config: BertConfig, ids_BT, types_BT=None) -> jax.Array:
    """Normalised sum of word, position and type embeddings, float32 [B, T, D]."""
    types = weights["type"][0 if types_BT is None else types_BT]
    total = weights["word"][ids_BT] + weights["position"][: ids_BT.shape[1]] + types
    return layer_norm(weights["norm"], total, config.layer_norm_eps)


def layer(weights: dict, config: BertConfig, x_BTD, mask_BT) -> jax.Array:
    """One encoder layer: self-attention and feed-forward, each added to its input and normalised."""
    B, T, D = x_BTD.shape
    x_ND = x_BTD.reshape(B * T, D)  # XLA's CPU backend is slow at dense layers of three dimensions
    heads = (B, T, config.num_attention_heads, -1)
    query, key, value = (dense(weights[name], x_ND).reshape(heads) for name in ("query", "key", "value"))
    attended = dense(weights["attention_output"], attention(query, key, value, mask_BT).reshape(B * T, D))
    x_ND = layer_norm(weights["attention_norm"], x_ND + attended, config.layer_norm_eps)
    inner_NF = jax.nn.gelu(dense(weights["intermediate"], x_ND), approximate=False)
    x_ND = layer_norm(weights["output_norm"], x_ND + dense(weights["output"], inner_NF), config.layer_norm_eps)
    return x_ND.reshape(B, T, D)


def attention(query_BTHK, key_BTHK, value_BTHK, mask_BT) -> jax.Array:
    """Scaled dot-product attention over the tokens that `mask_BT` lets through, [B, T, H, K] with K = D / H."""
    logits = jnp.einsum("bqhk,bthk->bhqt", query_BTHK, key_BTHK) / np.sqrt(query_BTHK.shape[-1])
    logits = jnp.where(mask_BT[:, None, None, :], logits, jnp.finfo(logits.dtype).min)
    return jnp.einsum("bhqt,bthk->bqhk", jax.nn.softmax(logits), value_BTHK)


def dense(weights: dict, x) -> jax.Array:
    """A linear layer, x [..., in] -> [..., out]."""
    return x @ weights["kernel"] + weights["bias"]


def layer_norm(weights: dict, x, eps: float) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) over the last axis, scaled and shifted."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * weights["scale"] + weights["bias"]
