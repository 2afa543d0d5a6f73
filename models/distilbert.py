"""DistilBERT with a classifier on the first token (Sanh et al. 2019): the sentiment reward of the IMDB task.

Its layers are BERT's; gone are segment embeddings and the pooler. float32, no dropout.

Legend: B texts, T tokens, D width, F feed-forward width, V vocabulary, L layers.

Parameters; DENSE = {"kernel" [in, out], "bias" [out]}, NORM = {"scale" [D], "bias" [D]}:

    {"embeddings": {"word" [V, D], "position" [context, D], "norm": NORM},
     "layers": {"query", "key", "value", "attention_output": DENSE, "attention_norm": NORM,
                "intermediate", "output": DENSE, "output_norm": NORM},    # with a leading axis L
     "pre_classifier", "classifier": DENSE}
"""

import dataclasses

import jax
import jax.numpy as jnp

from models import bert
from training.errors import UserError


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes; ffn None is 4 * width."""

    vocab: int
    layers: int
    width: int
    heads: int
    context: int
    ffn: int | None = None
    labels: int = 2
    eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"width {self.width} does not split into {self.heads} heads; change one of them")

    @property
    def inner(self) -> int:
        """Width of the feed-forward part's hidden layer."""
        return self.ffn or 4 * self.width


def init(key: jax.Array, cfg: EncoderConfig) -> dict:
    """Fresh float32 parameters: normal(0.02), biases 0, norms 1."""
    L, D, F = cfg.layers, cfg.width, cfg.inner
    keys = iter(jax.random.split(key, 10))

    def normal(*shape: int) -> jax.Array:
        return 0.02 * jax.random.normal(next(keys), shape)

    def dense(*shape: int) -> dict:
        return {"kernel": normal(*shape), "bias": jnp.zeros((*shape[:-2], shape[-1]))}

    def norm(*shape: int) -> dict:
        return {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}

    square = {name: dense(L, D, D) for name in ("query", "key", "value", "attention_output")}
    ffn = {"intermediate": dense(L, D, F), "output": dense(L, F, D)}
    return {
        "embeddings": {"word": normal(cfg.vocab, D), "position": normal(cfg.context, D), "norm": norm(D)},
        "layers": {**square, "attention_norm": norm(L, D), **ffn, "output_norm": norm(L, D)},
        "pre_classifier": dense(D, D),
        "classifier": dense(D, cfg.labels),
    }


def hidden(params: dict, cfg: EncoderConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """States of the last layer [B, T, D] of ids int32 [B, T]. No token attends to padding (mask False)."""
    T = ids.shape[1]
    if cfg.context < T:
        raise UserError(f"{T} tokens do not fit the encoder's {cfg.context} positions; cut the texts")
    sizes = bert.BertConfig(num_attention_heads=cfg.heads, layer_norm_eps=cfg.eps)
    tables = params["embeddings"]
    x = bert.layer_norm(tables["norm"], tables["word"][ids] + tables["position"][:T], cfg.eps)
    return jax.lax.scan(lambda x, layer: (bert.layer(layer, sizes, x, mask), None), x, params["layers"])[0]


def classify(params: dict, cfg: EncoderConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits [B, labels] of texts, ids int32 and mask bool [B, T], read off the first column.

    Pad on the right, after [CLS] text [SEP] (`Tokeniser.encode_batch(..., special=True)`): positions count columns.
    """
    first = hidden(params, cfg, ids, mask)[:, 0]
    return bert.dense(params["classifier"], jax.nn.relu(bert.dense(params["pre_classifier"], first)))
