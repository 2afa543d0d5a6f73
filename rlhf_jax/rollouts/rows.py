"""Token batches for language models: prompts, texts with a loss mask, pairs, labelled texts. All shapes are static.

Each kind of rows has its row spec beside it: the shapes of one example, from lengths alone.

Legend: n examples, C prompt tokens, N response tokens, T = C + N or the length of a text.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models.tokenisers import Tokeniser, left_pad, right_pad
from training.errors import UserError
from training.sharding import batch_ways, my_rows, place_replicated, place_rows

Spec = dict[str, jax.ShapeDtypeStruct]
SIDES = ("chosen", "rejected")


class Rows:
    """A `training.data.Source` over arrays held in memory: dict of numpy arrays with one leading axis."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, np.ndarray]:
        return {name: x[indices] for name, x in self.arrays.items()}


def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    """Of a row spec: an array of one example."""
    return jax.ShapeDtypeStruct(shape, dtype)


class Lengths(NamedTuple):
    """Static lengths in tokens. cut: longer prompts lose their beginning; else they are an error."""

    prompt: int
    response: int
    cut: bool = False

    @property
    def total(self) -> int:
        """Of prompt and response."""
        return self.prompt + self.response

    @classmethod
    def of(cls, options: ConfigDict) -> "Lengths":
        """From a config's `sample` section."""
        return cls(options.prompt, options.response, options.cut)


def pad_prompts(prompts: Sequence[str], tokeniser: Tokeniser, lengths: Lengths) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as ids int32 [n, C], padded on the left, and their mask bool [n, C]; UserError for one that is too long."""
    rows = tokeniser.encode_batch(list(prompts))
    longest = max(map(len, rows), default=0)
    if longest > lengths.prompt and not lengths.cut:
        raise UserError(
            f"a prompt has {longest} tokens: raise sample.prompt ({lengths.prompt}), or set sample.cut to drop its beginning"
        )
    return left_pad(rows, lengths.prompt, tokeniser.pad)


def prompt_rows(prompts: Sequence[str], tokeniser: Tokeniser, lengths: Lengths) -> Rows:
    """{'prompt' int32 [n, C] padded on the left, 'prompt_mask' bool [n, C], 'index' int32 [n]}."""
    if not prompts:
        raise UserError("there are no prompts: check config.data")
    ids, mask = pad_prompts(prompts, tokeniser, lengths)
    if empty := int((~mask.any(1)).sum()):
        raise UserError(f"{empty} of {len(prompts)} prompts have no token; drop them from the data")
    return Rows({"prompt": ids, "prompt_mask": mask, "index": np.arange(len(ids), dtype=np.int32)})


def prompt_spec(length: int) -> Spec:
    """Row spec of `prompt_rows`."""
    return {"prompt": array(np.int32, length), "prompt_mask": array(bool, length), "index": array(np.int32)}


def pieces(prompts: Sequence[str], completions: Sequence[str], tokeniser: Tokeniser, lengths: Lengths) -> dict[str, np.ndarray]:
    """[prompt, left-padded | completion and EOS, right-padded]: the layout that generation has too.

    Returns 'ids' int32 [n, T], 'mask' bool (False = padding), 'loss' bool (True on the completion and its EOS). A completion
    that is too long is cut and then has no EOS.
    """
    if not prompts:
        raise UserError("there are no examples: check config.data")
    start, start_mask = pad_prompts(prompts, tokeniser, lengths)
    ended = [[*ids, tokeniser.eos] for ids in tokeniser.encode_batch(list(completions))]
    right, right_mask = right_pad(ended, lengths.response, tokeniser.pad)
    loss = np.concatenate([np.zeros_like(start_mask), right_mask], 1)
    return {"ids": np.concatenate([start, right], 1), "mask": np.concatenate([start_mask, right_mask], 1), "loss": loss}


def text_spec(length: int) -> Spec:
    """Row spec of `pieces` and of `packed`."""
    return {"ids": array(np.int32, length), "mask": array(bool, length), "loss": array(bool, length)}


def packed(texts: Sequence[str], tokeniser: Tokeniser, length: int) -> Rows:
    """Texts joined by EOS and cut into rows of `length` tokens; the rest is dropped. Every token is learned but the first."""
    stream = [token for ids in tokeniser.encode_batch(list(texts)) for token in (*ids, tokeniser.eos)]
    n = len(stream) // length
    if not n:
        raise UserError(f"{len(stream)} tokens of text do not fill one row of {length}; lower config.length or add text")
    ids = np.array(stream[: n * length], np.int32).reshape(n, length)
    return Rows({"ids": ids, "mask": np.ones_like(ids, bool), "loss": np.ones_like(ids, bool)})


def pair_rows(
    prompts: Sequence[str], chosen: Sequence[str], rejected: Sequence[str], tokeniser: Tokeniser, lengths: Lengths
) -> Rows:
    """Arrays '<name>_<side>': those of `pieces` for the sides 'chosen' and 'rejected'."""
    sides = {"chosen": chosen, "rejected": rejected}
    arrays = {side: pieces(prompts, texts, tokeniser, lengths) for side, texts in sides.items()}
    return Rows({f"{name}_{side}": x for side in SIDES for name, x in arrays[side].items()})


def pair_spec(length: int) -> Spec:
    """Row spec of `pair_rows`."""
    return {f"{name}_{side}": x for side in SIDES for name, x in text_spec(length).items()}


def labelled_rows(texts: Sequence[str], labels: np.ndarray, tokeniser: Tokeniser, length: int) -> Rows:
    """{'ids' int32 [n, T], 'mask', 'label' float32 [n] in [0, 1]}: texts padded on the right and cut on the left, end kept."""
    ids, mask = right_pad([row[-length:] for row in tokeniser.encode_batch(list(texts))], length, tokeniser.pad)
    return Rows({"ids": ids, "mask": mask, "label": np.asarray(labels, np.float32)})


def labelled_spec(length: int) -> Spec:
    """Row spec of `labelled_rows`."""
    return {"ids": array(np.int32, length), "mask": array(bool, length), "label": array(np.float32)}


def place(host: Any, mesh: Mesh) -> Any:
    """A global batch of rows that every process holds: over the mesh if they divide, else replicated."""
    n = len(jax.tree.leaves(host)[0])
    if n % batch_ways(mesh):
        return place_replicated(host, mesh)
    mine = my_rows(n, mesh)
    return place_rows(jax.tree.map(lambda x: x[mine], host), mesh, n)
