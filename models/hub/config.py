"""Hugging Face's config.json <-> TransformerConfig or EncoderConfig, for gpt2, gpt_neox, llama and distilbert.

Missing keys have the defaults of transformers' config classes. What our networks cannot do is refused, never ignored.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from models.decoder import TransformerConfig
from models.distilbert import EncoderConfig
from training.errors import UserError

Config = TransformerConfig | EncoderConfig
ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu", "silu": "silu",
    "swish": "silu",
}  # fmt: skip
NAMES = {"gelu_tanh": "gelu_new", "gelu": "gelu", "silu": "silu"}


class Family(NamedTuple):
    """How one model_type writes its config, and its architectures with a language-model head and with another."""

    read: Callable[[dict], Config]
    write: Callable[[Any], dict]
    architectures: tuple[str, str]


def read(path: Path | str) -> tuple[str, Config]:
    """(model_type, config) of a config.json. Raises UserError for a missing or damaged file, or a model that we cannot run."""
    try:
        keys = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give a Hugging Face model folder") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None
    if not isinstance(keys, dict) or keys.get("model_type") not in FAMILIES:
        kind = keys.get("model_type") if isinstance(keys, dict) else keys
        raise UserError(f"{path}: model_type {kind!r} is not supported; use one of {', '.join(FAMILIES)}")
    try:
        return keys["model_type"], FAMILIES[keys["model_type"]].read(keys)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write(cfg: Config, family: str | None = None) -> tuple[str, dict]:
    """(model_type, the keys of config.json) of a config. Raises UserError if the family, or any family, cannot express it."""
    if family is not None and family not in FAMILIES:
        raise UserError(f"family {family!r} is unknown; use one of {', '.join(FAMILIES)}")
    differing: list[str] = []
    for name in [family] if family else FAMILIES:
        if (name == "distilbert") != isinstance(cfg, EncoderConfig):
            differing = [type(cfg).__name__]
            continue
        keys = {"model_type": name, **FAMILIES[name].write(cfg)}
        back = _canonical(FAMILIES[name].read(keys))
        differing = [key for key, value in _canonical(cfg).items() if value != back.get(key)]
        if not differing:
            return name, keys
    raise UserError(f"{family or 'no family'} can express this model's {', '.join(differing)}; choose another family or model")


def _canonical(cfg: Config) -> dict:
    """Fields with defaults filled in; those that change no number left out."""
    fields = dataclasses.asdict(cfg)
    if isinstance(cfg, EncoderConfig):
        return {**fields, "ffn": cfg.inner}
    fields |= {"kv_heads": cfg.kv, "head_dim": cfg.size, "ffn": cfg.inner}
    unused = {"dtype", "remat"}
    if cfg.position == "learned":
        unused |= {"rotary_fraction", "rotary_theta", "rotary_scaling"}
    return {name: value for name, value in fields.items() if name not in unused}


def _count(keys: dict, key: str, default: int | None = None) -> int:
    value = keys.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{key} is {value!r}, it must be a whole number above 0")
    return value


def _number(keys: dict, key: str, default: float) -> float:
    value = keys.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{key} is {value!r}, it must be a number")
    return float(value)


def _other(value: int, usual: int) -> int | None:
    """None where a field of TransformerConfig has its usual value, as in presets.py."""
    return None if value == usual else value


def _activation(keys: dict, key: str, default: str) -> str:
    if (name := keys.get(key, default)) not in ACTIVATIONS:
        raise UserError(f"{key} {name!r} is not supported; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _insist(keys: dict, **wanted: object) -> None:
    """Raise UserError where an optional key has another value than the one that our network has built in."""
    if wrong := [f"{key} {keys[key]!r}" for key, value in wanted.items() if keys.get(key, value) != value]:
        raise UserError(f"{', '.join(wrong)}: not supported")


def read_gpt2(keys: dict) -> TransformerConfig:
    """The config of a GPT-2's config.json."""
    _insist(keys, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width = _count(keys, "n_embd")
    return TransformerConfig(
        _count(keys, "vocab_size"), _count(keys, "n_layer"), width, _count(keys, "n_head"), _count(keys, "n_positions"),
        ffn=_other(_count(keys, "n_inner", 4 * width), 4 * width),
        eps=_number(keys, "layer_norm_epsilon", 1e-5),
        activation=_activation(keys, "activation_function", "gelu_new"),
        tie=keys.get("tie_word_embeddings", True),
    )  # fmt: skip


def write_gpt2(cfg: TransformerConfig) -> dict:
    """The config.json of a GPT-2."""
    return {
        "vocab_size": cfg.vocab, "n_layer": cfg.layers, "n_embd": cfg.width, "n_head": cfg.heads, "n_positions": cfg.context,
        "n_inner": cfg.inner, "layer_norm_epsilon": cfg.eps, "activation_function": NAMES[cfg.activation],
        "tie_word_embeddings": cfg.tie,
    }  # fmt: skip


def _sizes(keys: dict) -> dict:
    """What gpt_neox and llama call by the same names."""
    return {
        "vocab": _count(keys, "vocab_size"),
        "layers": _count(keys, "num_hidden_layers"),
        "width": _count(keys, "hidden_size"),
        "heads": _count(keys, "num_attention_heads"),
        "context": _count(keys, "max_position_embeddings"),
        "ffn": _other(_count(keys, "intermediate_size"), 4 * keys["hidden_size"]),
        "tie": keys.get("tie_word_embeddings", False),
        "position": "rotary",
    }


def _write_sizes(cfg: TransformerConfig) -> dict:
    return {
        "vocab_size": cfg.vocab, "num_hidden_layers": cfg.layers, "hidden_size": cfg.width, "num_attention_heads": cfg.heads,
        "max_position_embeddings": cfg.context, "intermediate_size": cfg.inner, "hidden_act": NAMES[cfg.activation],
        "tie_word_embeddings": cfg.tie,
    }  # fmt: skip


def _rotary(keys: dict, theta: str, fraction: str, default: float) -> dict:
    """Rotary fields: from `rope_parameters` (transformers 5), or `rope_scaling` and keys with names of the family."""
    rope = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"rotary embeddings of type {kind!r} are not supported; use 'default' or 'llama3'")
    scaling = None
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        if lacking := [key for key in names if key not in rope]:
            raise UserError(f"the rotary scaling lacks {', '.join(lacking)}; fetch it again")
        original = _count(rope, "original_max_position_embeddings", keys.get("max_position_embeddings"))
        scaling = (*(_number(rope, key, 0) for key in names), original)
    return {
        "rotary_theta": _number(rope, "rope_theta", _number(keys, theta, 1e4)),
        "rotary_fraction": _number(rope, "partial_rotary_factor", _number(keys, fraction, default)),
        "rotary_scaling": scaling,
    }


def read_gpt_neox(keys: dict) -> TransformerConfig:
    """The config of a GPT-NeoX's config.json."""
    _insist(keys, attention_bias=True)
    return TransformerConfig(
        **_sizes(keys), **_rotary(keys, "rotary_emb_base", "rotary_pct", 0.25),
        eps=_number(keys, "layer_norm_eps", 1e-5),
        parallel=keys.get("use_parallel_residual", True),
        activation=_activation(keys, "hidden_act", "gelu"),
    )  # fmt: skip


def write_gpt_neox(cfg: TransformerConfig) -> dict:
    """The config.json of a GPT-NeoX."""
    return {
        **_write_sizes(cfg), "layer_norm_eps": cfg.eps, "use_parallel_residual": cfg.parallel,
        "rotary_pct": cfg.rotary_fraction, "rotary_emb_base": cfg.rotary_theta,
    }  # fmt: skip


def read_llama(keys: dict) -> TransformerConfig:
    """The config of a Llama's config.json."""
    sizes = _sizes(keys)
    bias = keys.get("attention_bias", False)
    if keys.get("mlp_bias", False) != bias:
        raise UserError("attention_bias and mlp_bias differ: not supported")
    return TransformerConfig(
        **sizes, **_rotary(keys, "rope_theta", "partial_rotary_factor", 1.0),
        kv_heads=_other(_count(keys, "num_key_value_heads", sizes["heads"]), sizes["heads"]),
        head_dim=_other(_count(keys, "head_dim", sizes["width"] // sizes["heads"]), sizes["width"] // sizes["heads"]),
        norm="rms", eps=_number(keys, "rms_norm_eps", 1e-6), activation=_activation(keys, "hidden_act", "silu"), gated=True,
        bias=bias,
    )  # fmt: skip


def write_llama(cfg: TransformerConfig) -> dict:
    """The config.json of a Llama."""
    scaling = {}
    if cfg.rotary_scaling is not None:
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        scaling = {"rope_scaling": {"rope_type": "llama3", **dict(zip(names, cfg.rotary_scaling, strict=True))}}
    return {
        **_write_sizes(cfg), "num_key_value_heads": cfg.kv, "head_dim": cfg.size, "rms_norm_eps": cfg.eps,
        "attention_bias": cfg.bias, "mlp_bias": cfg.bias, "rope_theta": cfg.rotary_theta, **scaling,
    }  # fmt: skip


def read_distilbert(keys: dict) -> EncoderConfig:
    """The config of a DistilBERT's config.json."""
    _insist(keys, activation="gelu")
    width, labels = _count(keys, "dim"), keys.get("id2label") or {}
    return EncoderConfig(
        _count(keys, "vocab_size"), _count(keys, "n_layers"), width, _count(keys, "n_heads"),
        _count(keys, "max_position_embeddings"), ffn=_other(_count(keys, "hidden_dim"), 4 * width),
        labels=len(labels) or _count(keys, "num_labels", 2),
    )  # fmt: skip


def write_distilbert(cfg: EncoderConfig) -> dict:
    """The config.json of a DistilBERT."""
    return {
        "vocab_size": cfg.vocab, "n_layers": cfg.layers, "dim": cfg.width, "n_heads": cfg.heads, "hidden_dim": cfg.inner,
        "max_position_embeddings": cfg.context, "activation": "gelu", **labels(cfg.labels),
    }  # fmt: skip


def labels(n: int) -> dict:
    """What makes transformers build a classifier of n outputs."""
    return {"id2label": {str(i): f"LABEL_{i}" for i in range(n)}, "label2id": {f"LABEL_{i}": i for i in range(n)}}


FAMILIES = {
    "gpt2": Family(read_gpt2, write_gpt2, ("GPT2LMHeadModel", "GPT2ForSequenceClassification")),
    "llama": Family(read_llama, write_llama, ("LlamaForCausalLM", "LlamaForSequenceClassification")),
    "gpt_neox": Family(read_gpt_neox, write_gpt_neox, ("GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification")),
    "distilbert": Family(read_distilbert, write_distilbert, (2 * ("DistilBertForSequenceClassification",))),
}
