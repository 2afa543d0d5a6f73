"""What the agents read: joint BPE, a vocabulary a language, parts A (pretraining) and B (the game), and Sources of batches.

All sentences are int32 rows of one static length: subwords, END, then PAD.
"""

import functools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rlhf_jax.translation.data import LANGUAGES, Texts, find_directory, load, read, tokenise
from training.errors import UserError

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


class Pair(NamedTuple):
    """Sentences and their translations, int32 [n, length] each."""

    source: np.ndarray
    target: np.ndarray


class Held(NamedTuple):
    """Held-out triples: ids of each language, int32 [n, length] (longer sentences are cut), and the tokenised text."""

    ids: dict[str, np.ndarray]
    text: Texts


class Corpus(NamedTuple):
    """sender, receiver, captions: supervised French-English, English-German, English. game: French-German of part B."""

    vocabulary: dict[str, "Vocabulary"]
    sender: Pair
    receiver: Pair
    captions: np.ndarray
    game: Pair
    held: dict[str, Held]  # 'val' and 'test'
    fingerprint: int  # of the vocabularies and the supervised part: runs that share weights must agree on it


class Vocabulary:
    """The subwords of one language: those of the joint BPE that its training text uses, so that no message can be half German.

    size        number of ids, with PAD, START, END and UNKNOWN
    subwords    tuple of str
    """

    def __init__(self, bpe: Tokenizer, texts: Sequence[str]):
        used = {i for encoding in bpe.encode_batch(list(texts)) for i in encoding.ids}
        self._joint = np.array([*range(len(SPECIAL)), *sorted(used - set(range(len(SPECIAL))))], np.int32)
        self._own = np.full(bpe.get_vocab_size(), UNKNOWN, np.int32)
        self._own[self._joint] = np.arange(len(self._joint))
        self._bpe, self.size = bpe, len(self._joint)
        self.subwords = tuple(bpe.id_to_token(int(i)) for i in self._joint)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, END included."""
        return [[*self._own[encoding.ids].tolist(), END] for encoding in self._bpe.encode_batch(list(texts))]

    def decode(self, ids: np.ndarray) -> list[str]:
        """Words of each row of ids [n, length], up to its first END."""
        rows = [row[: row.index(END)] if END in row else row for row in ids.tolist()]
        joint = [[int(self._joint[i]) for i in row if i != PAD] for row in rows]
        return self._bpe.decode_batch(joint, skip_special_tokens=False)


def train_bpe(texts: Sequence[str], size: int) -> Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) of `size` subwords at most, in which a word begins with ▁.

    A mark at the end of words, as in subword-nmt, would do too, but then the trainer numbers them in another order each time.
    """
    bpe = Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return bpe


def pad(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """int32 [n, length]; a longer row is cut and still has END in its last place."""
    table = np.full((len(rows), length), PAD, np.int32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row if len(row) <= length else [*row[: length - 1], END]
    return table


def open_corpus(data: ConfigDict) -> Corpus:
    """The data that `config.data` names."""
    if not 0 <= data.share < 1 or data.length < 2 or data.bpe <= len(SPECIAL):
        raise UserError("config.data needs 0 <= share < 1, a length of 2 or more and a bpe of more than 4 subwords")
    if bool(data.fr_en) != bool(data.en_de):
        raise UserError("data.fr_en and data.en_de go together: give both files or none")
    if not data.share and not data.fr_en:
        raise UserError("data.share 0 leaves no sentences to pretrain on: raise it, or give data.fr_en and data.en_de")
    folder = find_directory(data.dir)
    where = str(folder) if folder else "toy"
    return _open(where, data.share, data.seed, data.bpe, data.length, data.fr_en, data.en_de)


@functools.lru_cache(maxsize=2)  # the members of a population share it
def _open(directory: str, share: float, seed: int, size: int, length: int, fr_en: str, en_de: str) -> Corpus:
    parts = load(directory)
    train = parts["train"]
    rows = len(train["en"])
    order = np.random.default_rng(seed).permutation(rows)
    cut = round(share * rows)
    a, b = (_take(train, order[:cut]), _take(train, order[cut:]))
    to_english, to_german = (_outside(fr_en, ("fr", "en")), _outside(en_de, ("en", "de"))) if fr_en else (a, a)
    bpe = train_bpe([text for lang in LANGUAGES for text in train[lang]], size)
    everything = (train, to_english, to_german)
    vocabulary = {lang: Vocabulary(bpe, [t for texts in everything for t in texts.get(lang, ())]) for lang in LANGUAGES}

    def pair(texts: Texts, *languages: str) -> Pair:
        columns = [vocabulary[lang].encode(texts[lang]) for lang in languages]
        fits = [row for row in zip(*columns, strict=True) if max(map(len, row)) <= length]
        if not fits:
            raise UserError(f"no {'-'.join(languages)} pair fits into {length} subwords; raise config.data.length")
        return Pair(*(pad(column, length) for column in zip(*fits, strict=True)))

    held = {
        name: Held({lang: pad(vocabulary[lang].encode(parts[name][lang]), length) for lang in LANGUAGES}, parts[name])
        for name in ("val", "test")
    }
    sender, receiver, game = pair(to_english, "fr", "en"), pair(to_german, "en", "de"), pair(b, "fr", "de")
    captions = pair(a if cut else train, "en", "en").source
    facts = [to_english["fr"], to_german["de"], *(vocabulary[lang].subwords for lang in LANGUAGES)]
    return Corpus(vocabulary, sender, receiver, captions, game, held, zlib.crc32(json.dumps(facts).encode()))


def _take(texts: Texts, rows: np.ndarray) -> Texts:
    return {lang: tuple(column[i] for i in rows) for lang, column in texts.items()}


def _outside(path: str, languages: tuple[str, str]) -> Texts:
    return {lang: tokenise(lang, texts) for lang, texts in read(Path(path), languages).items()}


class SupervisedSource:
    """Batches for pretraining: {'sender': Pair, 'receiver': Pair, 'captions': int32 [n, length]}, independent of each other.

    An epoch is one pass over the largest of the three.
    """

    randoms = 0

    def __init__(self, corpus: Corpus):
        self._corpus = corpus

    def __len__(self) -> int:
        return max(len(self._corpus.sender.source), len(self._corpus.receiver.source), len(self._corpus.captions))

    def batch(self, indices: np.ndarray, uniforms: np.ndarray) -> dict[str, Any]:
        return {name: _rows(getattr(self._corpus, name), indices) for name in ("sender", "receiver", "captions")}


class GameSource:
    """Batches for the game: {'game': Pair of French and German}, and supervised pairs for the agents named in `supervised`."""

    def __init__(self, corpus: Corpus, supervised: Sequence[str] = ()):
        self._corpus, self._supervised = corpus, tuple(supervised)
        self.randoms = len(self._supervised)

    def __len__(self) -> int:
        return len(self._corpus.game.source)

    def batch(self, indices: np.ndarray, uniforms: np.ndarray) -> dict[str, Pair]:
        rows = {"game": _rows(self._corpus.game, indices)}
        for name, uniform in zip(self._supervised, uniforms.T, strict=True):
            pairs = getattr(self._corpus, name)
            rows[name] = _rows(pairs, (uniform * len(pairs.source)).astype(np.int64))
        return rows


def _rows(table: Pair | np.ndarray, indices: np.ndarray) -> Any:
    if isinstance(table, Pair):
        return Pair(*(_rows(column, indices) for column in table))
    return table[indices % len(table)]
