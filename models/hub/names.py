"""Which tensor of a Hugging Face model holds which of our arrays, and how it is laid out there.

Our arrays go by their paths, 'blocks/attn/q/kernel', and are stacked over layers. A file has a tensor for each layer, and some
tensors hold several of our arrays. Dense kernels are [in, out] with us and [out, in] there, GPT-2's apart.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from models.decoder import TransformerConfig
from models.distilbert import EncoderConfig

SCORE = "score/kernel"  # path of the scalar head of reward models


class Tensor(NamedTuple):
    """A tensor of a file. `split` gives our arrays (of one layer if `layer` is a number); `join` is its inverse."""

    name: str
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    layer: int | None
    split: Callable[[np.ndarray], Sequence[np.ndarray]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]


class Names(NamedTuple):
    """The tensors of a family. Files of a model without its head have names without `prefix`."""

    tensors: Callable[..., Iterator[Tensor]]
    prefix: str
    head: str | None  # name of the language-model head, which tied models lack
    ignored: str  # regex of buffers that old files hold: masks, frequencies, positions


def same(name: str, shape: tuple[int, ...], path: str, layer: int | None = None) -> Tensor:
    """A tensor that is one of our arrays."""
    return Tensor(name, shape, (path,), layer, lambda x: [x], lambda parts: parts[0])


def turned(name: str, shape: tuple[int, ...], path: str, layer: int | None = None) -> Tensor:
    """A tensor [out, in] of which our [in, out] is the transpose."""
    return Tensor(name, shape, (path,), layer, lambda x: [x.T], lambda parts: parts[0].T)


def norm(name: str, path: str, width: int, layer: int | None = None, bias: bool = True) -> Iterator[Tensor]:
    """A norm's scale and bias."""
    yield same(f"{name}.weight", (width,), f"{path}/scale", layer)
    if bias:
        yield same(f"{name}.bias", (width,), f"{path}/bias", layer)


def linear(name: str, path: str, into: int, out: int, layer: int | None = None, bias: bool = True) -> Iterator[Tensor]:
    """A dense layer's kernel and bias."""
    yield turned(f"{name}.weight", (out, into), f"{path}/kernel", layer)
    if bias:
        yield same(f"{name}.bias", (out,), f"{path}/bias", layer)


def score(width: int) -> Tensor:
    """The scalar head of a reward model, the same in all decoders."""
    return turned("score.weight", (1, width), SCORE)


def gpt2(cfg: TransformerConfig) -> Iterator[Tensor]:
    """Dense kernels are [in, out] as ours (Conv1D); queries, keys and values side by side in one."""
    D, F = cfg.width, cfg.inner
    yield same("transformer.wte.weight", (cfg.vocab, D), "embed/tokens")
    yield same("transformer.wpe.weight", (cfg.context, D), "embed/positions")
    for i in range(cfg.layers):
        at = f"transformer.h.{i}"
        for kind, part, shape in (("weight", "kernel", (D, 3 * D)), ("bias", "bias", (3 * D,))):
            paths = tuple(f"blocks/attn/{name}/{part}" for name in "qkv")
            split, join = lambda x: np.split(x, 3, -1), lambda parts: np.concatenate(parts, -1)
            yield Tensor(f"{at}.attn.c_attn.{kind}", shape, paths, i, split, join)
        for name, path, shape in (("attn.c_proj", "o", (D, D)), ("mlp.c_fc", "up", (D, F)), ("mlp.c_proj", "down", (F, D))):
            path = f"blocks/{name.partition('.')[0]}/{path}"
            yield same(f"{at}.{name}.weight", shape, f"{path}/kernel", i)
            yield same(f"{at}.{name}.bias", shape[1:], f"{path}/bias", i)
        yield from norm(f"{at}.ln_1", "blocks/norm_1", D, i)
        yield from norm(f"{at}.ln_2", "blocks/norm_2", D, i)
    yield from norm("transformer.ln_f", "norm", D)
    if not cfg.tie:
        yield turned("lm_head.weight", (cfg.vocab, D), "head/kernel")


def gpt_neox(cfg: TransformerConfig) -> Iterator[Tensor]:
    """Queries, keys and values in one tensor, head by head: its rows are [H, 3, size of a head]."""
    D, F, H, E = cfg.width, cfg.inner, cfg.heads, cfg.size
    yield same("gpt_neox.embed_in.weight", (cfg.vocab, D), "embed/tokens")
    for i in range(cfg.layers):
        at = f"gpt_neox.layers.{i}"
        yield Tensor(
            f"{at}.attention.query_key_value.weight", (3 * D, D), tuple(f"blocks/attn/{name}/kernel" for name in "qkv"), i,
            lambda x: x.reshape(H, 3, E, D).transpose(1, 3, 0, 2).reshape(3, D, D),
            lambda parts: np.stack(parts).reshape(3, D, H, E).transpose(2, 0, 3, 1).reshape(3 * D, D),
        )  # fmt: skip
        yield Tensor(
            f"{at}.attention.query_key_value.bias", (3 * D,), tuple(f"blocks/attn/{name}/bias" for name in "qkv"), i,
            lambda x: x.reshape(H, 3, E).transpose(1, 0, 2).reshape(3, D),
            lambda parts: np.stack(parts).reshape(3, H, E).transpose(1, 0, 2).reshape(3 * D),
        )  # fmt: skip
        yield from linear(f"{at}.attention.dense", "blocks/attn/o", D, D, i)
        yield from linear(f"{at}.mlp.dense_h_to_4h", "blocks/mlp/up", D, F, i)
        yield from linear(f"{at}.mlp.dense_4h_to_h", "blocks/mlp/down", F, D, i)
        yield from norm(f"{at}.input_layernorm", "blocks/norm_1", D, i)
        yield from norm(f"{at}.post_attention_layernorm", "blocks/norm_2", D, i)
    yield from norm("gpt_neox.final_layer_norm", "norm", D)
    if not cfg.tie:
        yield turned("embed_out.weight", (cfg.vocab, D), "head/kernel")


def llama(cfg: TransformerConfig) -> Iterator[Tensor]:
    """Queries, keys and values in tensors of their own."""
    D, F, Q, KV = cfg.width, cfg.inner, cfg.heads * cfg.size, cfg.kv * cfg.size
    yield same("model.embed_tokens.weight", (cfg.vocab, D), "embed/tokens")
    for i in range(cfg.layers):
        at = f"model.layers.{i}"
        for name, out in (("q", Q), ("k", KV), ("v", KV)):
            yield from linear(f"{at}.self_attn.{name}_proj", f"blocks/attn/{name}", D, out, i, cfg.bias)
        yield from linear(f"{at}.self_attn.o_proj", "blocks/attn/o", Q, D, i, cfg.bias)
        for name, into, out in (("gate", D, F), ("up", D, F), ("down", F, D)):
            yield from linear(f"{at}.mlp.{name}_proj", f"blocks/mlp/{name}", into, out, i, cfg.bias)
        yield from norm(f"{at}.input_layernorm", "blocks/norm_1", D, i, bias=False)
        yield from norm(f"{at}.post_attention_layernorm", "blocks/norm_2", D, i, bias=False)
    yield from norm("model.norm", "norm", D, bias=False)
    if not cfg.tie:
        yield turned("lm_head.weight", (cfg.vocab, D), "head/kernel")


def distilbert(cfg: EncoderConfig) -> Iterator[Tensor]:
    """The encoder and its classifier."""
    D, F = cfg.width, cfg.inner
    yield same("distilbert.embeddings.word_embeddings.weight", (cfg.vocab, D), "embeddings/word")
    yield same("distilbert.embeddings.position_embeddings.weight", (cfg.context, D), "embeddings/position")
    yield from norm("distilbert.embeddings.LayerNorm", "embeddings/norm", D)
    names = {"q_lin": "query", "k_lin": "key", "v_lin": "value", "out_lin": "attention_output"}
    for i in range(cfg.layers):
        at = f"distilbert.transformer.layer.{i}"
        for name, path in names.items():
            yield from linear(f"{at}.attention.{name}", f"layers/{path}", D, D, i)
        yield from norm(f"{at}.sa_layer_norm", "layers/attention_norm", D, i)
        yield from linear(f"{at}.ffn.lin1", "layers/intermediate", D, F, i)
        yield from linear(f"{at}.ffn.lin2", "layers/output", F, D, i)
        yield from norm(f"{at}.output_layer_norm", "layers/output_norm", D, i)
    yield from linear("pre_classifier", "pre_classifier", D, D)
    yield from linear("classifier", "classifier", D, cfg.labels)


FAMILIES = {
    "gpt2": Names(gpt2, "transformer.", "lm_head.weight", r"\.attn\.(masked_)?bias$"),
    "llama": Names(llama, "model.", "lm_head.weight", r"\.rotary_emb\.inv_freq$"),
    "gpt_neox": Names(gpt_neox, "gpt_neox.", "embed_out.weight", r"\.attention\.((masked_)?bias|rotary_emb\.inv_freq)$"),
    "distilbert": Names(distilbert, "distilbert.", None, r"\.position_ids$"),
}
