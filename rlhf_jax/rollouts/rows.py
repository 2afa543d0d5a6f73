"""Token batches for language models: prompts, texts with a loss mask, pairs, labelled texts. All shapes are static."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from models.tokenisers import Tokeniser, left_pad, right_pad
from training.errors import UserError


class Rows:
    """A `training.data.Source` over arrays held in memory: dict of numpy arrays with one leading axis."""

    randoms = 0

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, indices: np.ndarray, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        return {name: x[indices] for name, x in self.arrays.items()}


class Lengths(NamedTuple):
    """Static lengths in tokens. cut: longer prompts lose their beginning; else they are an error."""

    prompt: int
    response: int
    cut: bool = False

    @classmethod
    def of(cls, options: ConfigDict) -> "Lengths":
        """From a config's `sample` section."""
        return cls(options.prompt, options.response, options.cut)


def left(prompts: Sequence[str], tokeniser: Tokeniser, lengths: Lengths) -> tuple[np.ndarray, np.ndarray]:
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
    ids, mask = left(prompts, tokeniser, lengths)
    if empty := int((~mask.any(1)).sum()):
        raise UserError(f"{empty} of {len(prompts)} prompts have no token; drop them from the data")
    return Rows({"prompt": ids, "prompt_mask": mask, "index": np.arange(len(ids), dtype=np.int32)})


def pieces(prompts: Sequence[str], completions: Sequence[str], tokeniser: Tokeniser, lengths: Lengths) -> dict[str, np.ndarray]:
    """[prompt, left-padded | completion and EOS, right-padded]: the layout that generation has too.

    Returns 'ids' int32 [n, C + N], 'mask' bool (False = padding), 'loss' bool (True on the completion and its EOS). A
    completion that is too long is cut and then has no EOS.
    """
    if not prompts:
        raise UserError("there are no examples: check config.data")
    start, start_mask = left(prompts, tokeniser, lengths)
    ended = [[*ids, tokeniser.eos] for ids in tokeniser.encode_batch(list(completions))]
    right, right_mask = right_pad(ended, lengths.response, tokeniser.pad)
    loss = np.concatenate([np.zeros_like(start_mask), right_mask], 1)
    return {"ids": np.concatenate([start, right], 1), "mask": np.concatenate([start_mask, right_mask], 1), "loss": loss}


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
    """'<name>_<side>' for the arrays of `pieces` and the sides 'chosen' and 'rejected'."""
    sides = {"chosen": chosen, "rejected": rejected}
    return Rows(
        {f"{name}_{side}": x for side, texts in sides.items() for name, x in pieces(prompts, texts, tokeniser, lengths).items()}
    )


def labelled_rows(texts: Sequence[str], labels: np.ndarray, tokeniser: Tokeniser, length: int) -> Rows:
    """{'ids' int32 [n, T], 'mask', 'label' float32 [n] in [0, 1]}: texts padded on the right and cut on the left, end kept."""
    ids, mask = right_pad([row[-length:] for row in tokeniser.encode_batch(list(texts))], length, tokeniser.pad)
    return Rows({"ids": ids, "mask": mask, "label": np.asarray(labels, np.float32)})
