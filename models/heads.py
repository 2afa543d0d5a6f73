"""A scalar head on a decoder: values of all positions for a critic, the score of a text for a reward model.

Legend: B rows, T tokens, D width.
"""

import jax
import jax.numpy as jnp

from models import decoder
from models.decoder import TransformerConfig


def with_head(key: jax.Array, weights: dict, cfg: TransformerConfig) -> dict:
    """A decoder's trunk with a scalar head 'score' (no bias), fresh unless there is one: normal, sd 1 / sqrt(D + 1)."""
    trunk = {name: x for name, x in weights.items() if name != "head"}
    kernel = jax.random.normal(key, (cfg.width, 1)) * (cfg.width + 1) ** -0.5
    return {"score": {"kernel": kernel}, **trunk}


def without_head(weights: dict) -> dict:
    """A decoder without its scalar head."""
    return {name: x for name, x in weights.items() if name != "score"}


def head(params: dict, hidden: jax.Array) -> jax.Array:
    """The head's number for hidden states [..., D]: float32 [...]."""
    return (hidden.astype(jnp.float32) @ params["kernel"].astype(jnp.float32))[..., 0]


def values(params: dict, cfg: TransformerConfig, ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """The head's number at every position: float32 [B, T]."""
    return head(params["score"], decoder.hidden(params, cfg, ids_BT, mask_BT))


def last_score(params: dict, cfg: TransformerConfig, ids_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
    """A reward model's score, the head's number at the last real token: float32 [B]."""
    last_B = mask_BT.shape[1] - 1 - jnp.argmax(mask_BT[:, ::-1], 1)
    hidden_BTD = decoder.hidden(params, cfg, ids_BT, mask_BT)
    return head(params["score"], jnp.take_along_axis(hidden_BTD, last_B[:, None, None], 1)[:, 0])
