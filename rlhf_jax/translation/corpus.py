"""Data of the agents: joint BPE, a vocabulary a language, parts A (pretraining) and B (the game), and Sources of batches.

All sentences are int32 rows of one static length: subwords, END, then PAD.
"""

import functools
import json
import logging
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from rlhf_jax.translation.data import LANGUAGES, Texts, find_directory, load, read, tokenise
from training.data import uniforms
from training.errors import UserError
from training.runs import Run, is_run

PAD, START, END, UNKNOWN = range(4)
SUBWORDS = "subwords.json"  # saved with a run
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")

log = logging.getLogger(__name__)


class Pair(NamedTuple):
    """Sentences and their translations, int32 [n, length] each."""

    source: np.ndarray
    target: np.ndarray


class Held(NamedTuple):
    """Held-out triples: ids int32 [n, length] of each language (longer sentences are cut), and the tokenised text."""

    ids: dict[str, np.ndarray]
    text: Texts


class Corpus(NamedTuple):
    """The data of a run, as ids, and the vocabularies that they are written in."""

    vocabulary: dict[str, "Vocabulary"]  # by language
    sender: Pair  # supervised French-English
    receiver: Pair  # supervised English-German
    captions: np.ndarray  # English, int32 [n, length]
    game: Pair  # French-German of part B
    held: dict[str, Held]  # 'val' and 'test'
    fingerprint: int  # of the vocabularies and the supervised part: runs that share weights must agree on it
    subwords: bytes  # the vocabularies, as a file that is saved with a run


class Vocabulary:
    """Subwords of one language: those of the joint BPE that its training text uses, so that no message can be half German.

    joint       int32 [size]: their ids in the joint BPE, with those of PAD, START, END and UNKNOWN
    size        number of ids
    subwords    tuple of str
    """

    def __init__(self, bpe: Tokenizer, joint: Sequence[int]):
        self.joint = np.array(joint, np.int32)
        self._from_joint = np.full(bpe.get_vocab_size(), UNKNOWN, np.int32)
        self._from_joint[self.joint] = np.arange(len(self.joint))
        self._bpe, self.size = bpe, len(self.joint)
        self.subwords = tuple(bpe.id_to_token(int(i)) for i in self.joint)

    @classmethod
    def of_texts(cls, bpe: Tokenizer, texts: Sequence[str]) -> "Vocabulary":
        """The vocabulary of all subwords in a language's training texts."""
        used = {i for encoding in bpe.encode_batch(list(texts)) for i in encoding.ids}
        return cls(bpe, [*range(len(SPECIAL)), *sorted(used - set(range(len(SPECIAL))))])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, END included."""
        return [[*self._from_joint[encoding.ids].tolist(), END] for encoding in self._bpe.encode_batch(list(texts))]

    def decode(self, ids: np.ndarray) -> list[str]:
        """Text of each row of ids [n, length], up to its first END."""
        rows = [row[: row.index(END)] if END in row else row for row in ids.tolist()]
        joint = [[int(self.joint[i]) for i in row if i != PAD] for row in rows]
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
    """Rows of ids padded with PAD to int32 [n, length]; a longer row is cut, with END in its last place."""
    table = np.full((len(rows), length), PAD, np.int32)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row if len(row) <= length else [*row[: length - 1], END]
    return table


def open_run(config: ConfigDict) -> Corpus:
    """The corpus of a run, in the subwords saved by the run or by the one it starts from, or else in new ones."""
    for workdir in (config.workdir, config.sources.init):
        if workdir and is_run(workdir):
            run = Run(workdir)
            if run.has_file(SUBWORDS):
                return open_corpus(config.data, run.file(SUBWORDS))
            if run.steps:
                log.warning("%s has saved no subwords (an earlier version): they are made anew from today's data", run.path)
    return open_corpus(config.data)


def open_corpus(data: ConfigDict, subwords: bytes = b"") -> Corpus:
    """The corpus that `config.data` names, in `subwords` (`Corpus.subwords`) or in new ones made from its training texts.

    Raises UserError for sizes out of range.
    """
    if not 0 <= data.share < 1 or data.length < 2 or data.bpe <= len(SPECIAL):
        raise UserError("config.data needs 0 <= share < 1, a length of 2 or more and a bpe of more than 4 subwords")
    if bool(data.fr_en) != bool(data.en_de):
        raise UserError("data.fr_en and data.en_de go together: give both files or none")
    if not data.share and not data.fr_en:
        raise UserError("data.share 0 leaves no sentences to pretrain on: raise it, or give data.fr_en and data.en_de")
    folder = find_directory(data.dir)
    where = str(folder) if folder else "toy"
    return _open(where, data.share, data.seed, data.bpe, data.length, data.fr_en, data.en_de, subwords)


@functools.lru_cache(maxsize=2)  # the members of a population share it
def _open(directory: str, share: float, seed: int, size: int, length: int, fr_en: str, en_de: str, subwords: bytes) -> Corpus:
    parts = load(directory)
    train = parts["train"]
    rows = len(train["en"])
    order = np.random.default_rng(seed).permutation(rows)
    cut = round(share * rows)
    a, b = (_take(train, order[:cut]), _take(train, order[cut:]))
    to_english, to_german = (_read_pairs(fr_en, ("fr", "en")), _read_pairs(en_de, ("en", "de"))) if fr_en else (a, a)
    if subwords:
        vocabulary, subwords = _read_subwords(subwords, size), subwords
    else:
        bpe = train_bpe([text for lang in LANGUAGES for text in train[lang]], size)
        written = {lang: [t for texts in (train, to_english, to_german) for t in texts.get(lang, ())] for lang in LANGUAGES}
        vocabulary = {lang: Vocabulary.of_texts(bpe, texts) for lang, texts in written.items()}
        joint = {lang: vocabulary[lang].joint.tolist() for lang in LANGUAGES}
        subwords = json.dumps({"asked": size, "joint": joint, "bpe": bpe.to_str()}, ensure_ascii=False).encode()

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
    return Corpus(vocabulary, sender, receiver, captions, game, held, zlib.crc32(json.dumps(facts).encode()), subwords)


def _read_subwords(content: bytes, size: int) -> dict[str, Vocabulary]:
    saved = json.loads(content)
    if saved["asked"] != size:
        raise UserError(f"config.data.bpe is {size}, but the run's subwords were made with {saved['asked']}: use its own")
    bpe = Tokenizer.from_str(saved["bpe"])
    return {lang: Vocabulary(bpe, saved["joint"][lang]) for lang in LANGUAGES}


def _take(texts: Texts, rows: np.ndarray) -> Texts:
    return {lang: tuple(column[i] for i in rows) for lang, column in texts.items()}


def _read_pairs(path: str, languages: tuple[str, str]) -> Texts:
    """Tokenised pairs of another file."""
    return {lang: tokenise(lang, texts) for lang, texts in read(Path(path), languages).items()}


class SupervisedSource:
    """Source of pretraining batches {'sender': Pair, 'receiver': Pair, 'captions': int32 [n, length]}.

    The three are independent of each other. An epoch is one pass over the largest of the three.
    """

    def __init__(self, corpus: Corpus):
        self._corpus = corpus

    def __len__(self) -> int:
        return max(len(self._corpus.sender.source), len(self._corpus.receiver.source), len(self._corpus.captions))

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, Any]:
        return {name: _rows(getattr(self._corpus, name), indices) for name in ("sender", "receiver", "captions")}


class GameSource:
    """Source of game batches: {'game': Pair of French and German}, and supervised pairs of the agents in `supervised`."""

    def __init__(self, corpus: Corpus, supervised: Sequence[str] = ()):
        self._corpus, self._supervised = corpus, tuple(supervised)

    def __len__(self) -> int:
        return len(self._corpus.game.source)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> dict[str, Pair]:
        rows = {"game": _rows(self._corpus.game, indices)}
        for name, uniform in zip(self._supervised, uniforms(seeds, len(self._supervised)).T, strict=True):
            pairs = getattr(self._corpus, name)
            rows[name] = _rows(pairs, (uniform * len(pairs.source)).astype(np.int64))
        return rows


def _rows(table: Pair | np.ndarray, indices: np.ndarray) -> Any:
    if isinstance(table, Pair):
        return Pair(*(_rows(column, indices) for column in table))
    return table[indices % len(table)]
