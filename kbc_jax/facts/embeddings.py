"""Word and phrase vectors to start from. Word tables are float32 [words, D], a row for each of the lexicon's words.

Row 0 (padding) is zero. Row 1 is UUUNKKK, the vector of unknown words: the one of that name where the source has it, else the
mean of the other rows. Words that the source does not know start from row 1, as in Li et al. 2016's code; with 'skipgram'
these are the words that occur in dev, test or mined triples only.

    skipgram     200-d, trained on the training triples of the split at hand, and on nothing else: vectors that saw the test
                 triples, such as Li et al.'s, leak the test set into their similarities
    static       256-d vectors of general text (wordllama), mean over a word's pieces; mean length 8.6, so `normalise` them
                 for a model that learns, as the authors did with GloVe
    minilm       384-d, every word encoded alone by a sentence encoder; 'minilm:FOLDER' for one of your own
    random       200-d, normal, of the same mean length as skip-gram's
    text:FILE    lines "word v1 ... vD": Li et al.'s embeddings.txt, GloVe, word2vec's text format
"""

import contextlib
import hashlib
import json
import logging
import os
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kbc_jax.facts.data import UNKNOWN, Lexicon, Triples
from models import minilm
from training.errors import UserError

KINDS = ("skipgram", "static", "minilm", "random", "text:FILE")
SKIPGRAM = {"sg": 1, "vector_size": 200, "window": 5, "min_count": 1, "sample": 0, "epochs": 20}  # Li et al. 2016
RECIPE = 1  # raise it whenever cached files would hold other vectors
SIZES = {"skipgram": 200, "static": 256, "minilm": 384, "random": 200}  # of a word's vector, by kind
SENTENCE_SIZE = 384  # of a phrase's sentence vector
RANDOM_SIZE, RANDOM_SD = 200, 0.134  # mean length 1.9, as skip-gram's on ConceptNet-100k
WORDLLAMA = ("wordllama", "wordllama==0.4.0.post1")  # package, requirement

log = logging.getLogger(__name__)


def word_vectors(
    kind: str, lexicon: Lexicon, train: Triples, *, seed: int = 0, cache: Path | str = "", normalise: bool = False
) -> np.ndarray:
    """The word table of a lexicon, float32 [words, D].

    Args:
      kind: see the top of this file.
      train: the training triples of the lexicon's split; only 'skipgram' looks at them.
      seed: of the random numbers of 'skipgram' and 'random'.
      cache: folder of vectors made before; default $QUINTET_CACHE/kbc or ~/.cache/quintet/kbc.
      normalise: divide each row by its length.

    Raises UserError for an unknown kind.
    """
    name, _, place = kind.partition(":")
    words = lexicon.words[2:]
    if name == "text" and place:
        vectors = _lookup(lexicon.words, *read_text(place, lexicon.words))
    elif name == "minilm":
        vectors = _prepend_special(_encode_sorted("words", words, place, cache))
    elif kind == "skipgram":
        vectors = _lookup(lexicon.words, *skipgram(train, seed=seed, cache=cache))
    elif kind == "static":
        vectors = _prepend_special(static(words))
    elif kind == "random":
        vectors = np.random.default_rng(seed).normal(0, RANDOM_SD, (len(lexicon.words), RANDOM_SIZE)).astype(np.float32)
    else:
        raise UserError(f"no word vectors {kind!r}; there are {', '.join(KINDS)}")
    vectors[0] = 0
    return unit(vectors) if normalise else vectors


def phrase_vectors(lexicon: Lexicon, *, directory: Path | str = "", cache: Path | str = "") -> np.ndarray:
    """MiniLM's sentence vector of every phrase, of length 1, float32 [phrases, 384]. 1-2 minutes of CPU for ConceptNet-100k.

    `directory`: another sentence encoder (`minilm.load`). `cache`: as for `word_vectors`.
    """
    return _encode_sorted("phrases", lexicon.phrases, directory, cache)


def width(kind: str, lexicon: Lexicon) -> int:
    """Length of the word vectors of a kind, read from the file for 'text:FILE'. Raises UserError for an unknown kind."""
    name, _, place = kind.partition(":")
    if name == "text" and place:
        return read_text(place, lexicon.words)[1].shape[1]
    if name not in SIZES:
        raise UserError(f"no word vectors {kind!r}; there are {', '.join(KINDS)}")
    return SIZES[name]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths; a zero row stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def skipgram(train: Triples, *, seed: int = 0, cache: Path | str = "") -> tuple[dict[str, int], np.ndarray]:
    """Skip-gram with 5 negative samples (Mikolov et al. 2013) on lines "head words, relation, tail words" of `train`.

    Returns rows ({word: row}) and vectors float32 [V, 200]. The relation is a word of its own: '/r/causes' is not 'causes'.
    The same triples in the same order and the same seed give the same vectors. Under a minute for 100,000 triples, then cached.
    """
    lines = [[*head.split(), f"/r/{relation}", *tail.split()] for relation, head, tail in zip(*train[:3], strict=True)]
    words = dict.fromkeys(word for phrase in (*train.head, *train.tail) for word in phrase.split())
    rows = {word: row for row, word in enumerate(words)}
    vectors = load_or_make("skipgram", [seed, SKIPGRAM, lines], len(rows), lambda: _train(lines, list(rows), seed), cache)
    return rows, vectors


def _train(lines: list[list[str]], words: list[str], seed: int) -> np.ndarray:
    from gensim.models import Word2Vec  # takes a second to import

    logging.getLogger("gensim").setLevel(logging.WARNING)  # it reports every second
    model = Word2Vec(lines, **SKIPGRAM, workers=1, seed=seed)  # more workers would make every run another
    return model.wv[words]


def static(words: Sequence[str]) -> np.ndarray:
    """Wordllama's token vectors, mean over each word's pieces, float32 [n, 256]."""
    folder = minilm.installed_folder(*WORDLLAMA)
    try:
        table = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"].astype(np.float32)
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder} lacks its vectors ({error}): pip install --no-deps {WORDLLAMA[1]}") from None
    tokenizer = minilm.read_tokenizer(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")
    encodings = tokenizer.encode_batch(list(words), add_special_tokens=False)
    return np.stack([table[encoding.ids].mean(0) for encoding in encodings])


def read_text(path: Path | str, words: Sequence[str]) -> tuple[dict[str, int], np.ndarray]:
    """The vectors of `words` in a text file: rows ({word: row}) and vectors float32 [n, D].

    A first line of two numbers is word2vec's header. A word may hold blanks (GloVe 840B); of two lines for a word the first
    counts. Raises UserError with file and line for a line of another width or without numbers.
    """
    vocabulary, rows, vectors, width = set(words), {}, [], 0
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip(" \t\r\n").replace("\t", " ").split(" ")
                if fields == [""] or (number == 1 and len(fields) == 2):
                    continue
                width = width or len(fields) - 1
                word = " ".join(fields[:-width])
                if len(fields) <= width or width < 2:
                    raise UserError(f"{path} line {number} is not a word and {max(width, 2)} numbers with blanks between")
                if word in vocabulary and word not in rows:
                    rows[word] = len(rows)
                    vectors.append(_numbers(fields[-width:], f"{path} line {number}"))
    except OSError as error:
        raise UserError(f"cannot read the word vectors {path}: {error.strerror}") from None
    if not rows.keys() - {UNKNOWN}:
        raise UserError(f"{path} has vectors for none of the words: is it a file of lines 'word v1 ... vD'?")
    return rows, np.stack(vectors)


def _numbers(fields: list[str], where: str) -> np.ndarray:
    try:
        values = np.array(fields, np.float32)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if not np.isfinite(values).all():
        raise UserError(f"{where} has a number that is not finite")
    return values


def _encode_sorted(name: str, texts: Sequence[str], directory: Path | str, cache: Path | str) -> np.ndarray:
    """MiniLM vectors float32 [n, 384] of the texts, from the cache where it has them."""
    ordered = sorted(texts)  # splits of the same facts number them differently, and share a file
    key = [minilm.fingerprint(directory), ordered]
    vectors = load_or_make(f"minilm-{name}", key, len(ordered), lambda: minilm.encode(ordered, minilm.load(directory)), cache)
    rows = {text: row for row, text in enumerate(ordered)}
    return vectors[[rows[text] for text in texts]]


def _lookup(words: Sequence[str], rows: Mapping[str, int], vectors: np.ndarray) -> np.ndarray:
    """The row of each word; words without one get that of UNKNOWN or, if it has none either, the mean."""
    unknown = vectors[rows[UNKNOWN]] if UNKNOWN in rows else vectors.mean(0)
    return np.concatenate([vectors, unknown[None]])[[rows.get(word, -1) for word in words]]


def _prepend_special(vectors: np.ndarray) -> np.ndarray:
    """`vectors` with rows for padding (zero) and unknown words (their mean) put first."""
    return np.concatenate([np.zeros_like(vectors[:1]), vectors.mean(0, keepdims=True), vectors])


def default_cache() -> Path:
    """The folder in which vectors are kept by default."""
    return Path(os.environ.get("QUINTET_CACHE") or Path.home() / ".cache" / "quintet") / "kbc"


def load_or_make(name: str, key, count: int, make: Callable[[], np.ndarray], cache: Path | str = "") -> np.ndarray:
    """The vectors float32 [count, D] that `make()` returns, or has returned before for the same name and key.

    Args:
      name: start of the file's name.
      key: all that the vectors depend on, anything that JSON can hold.
      cache: as for `word_vectors`.

    A file that cannot be read is made again; a folder that cannot be written to is a warning. Two processes at once are safe:
    each writes a file of its own and renames it.
    """
    digest = hashlib.sha256(json.dumps([RECIPE, key]).encode()).hexdigest()
    folder = Path(cache) if cache else default_cache()
    target, hidden = folder / f"{name}-{digest[:32]}.npz", folder / f".{uuid.uuid4().hex}.npz"
    if (vectors := _read(target, count)) is not None:
        return vectors
    log.info("making %s vectors (%d)", name, count)
    vectors = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(hidden, vectors=vectors)
        os.replace(hidden, target)
    except OSError as error:
        log.warning("cannot keep the vectors in %s (%s): set QUINTET_CACHE to another folder", folder, error.strerror)
        with contextlib.suppress(OSError):
            hidden.unlink()
    return vectors


def _read(path: Path, count: int) -> np.ndarray | None:
    """The vectors of a cache file; None if it is missing, damaged or of another size."""
    try:
        with np.load(path, allow_pickle=False) as file:
            vectors = file["vectors"]
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None
    return vectors if vectors.dtype == np.float32 and vectors.ndim == 2 and len(vectors) == count else None
