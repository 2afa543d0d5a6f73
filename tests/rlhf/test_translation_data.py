"""Reading and tokenising parallel text, its mistakes, vocabularies, and the parts to pretrain on and to play on."""

import gzip
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from rlhf_jax.translation import corpus, data, toy
from rlhf_jax.translation.corpus import END, PAD, UNKNOWN
from training.errors import UserError

ROOT = Path(__file__).parents[2]
ROWS = toy.sentences()[:90]


def write(path, rows, head="en\tfr\tde"):
    text = "\n".join([head, *("\t".join(row) for row in rows)]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "train.tsv.gz", ROWS[:60])
    write(tmp_path / "val.tsv", ROWS[60:75])
    write(tmp_path / "test_2016_flickr.tsv.gz", ROWS[75:])
    return tmp_path


def options(folder, **values):
    defaults = {"dir": str(folder), "share": 0.5, "seed": 0, "bpe": 300, "length": 40, "fr_en": "", "en_de": ""}
    return ConfigDict({**defaults, **values})


def test_moses_tokens():
    assert data.tokenise("fr", ["L'Homme  «regarde» près d’une rue."]) == ("l' homme \" regarde \" près d' une rue .",)
    assert data.tokenise("de", ["Ein z.B. großer Hund, der läuft!"]) == ("ein z.b. großer hund , der läuft !",)


def test_columns_are_found_by_name(tmp_path):
    path = write(tmp_path / "pairs.tsv", [("Hallo .", "7", "Hello .")], head="de\tnumber\ten")
    assert data.read(path, ("en", "de")) == {"en": ("Hello .",), "de": ("Hallo .",)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"en\tfr\nA\tB\n", "line 1 names the columns ['en', 'fr']; de is missing"),
        (b"en\tfr\tde\nA\tB\tC\nA\tB\n", "line 3 has 2 columns between tabs; line 1 names 3"),
        (b"en\tfr\tde\nA\t \tC\n", "line 2: the fr sentence is empty"),
        (b"en\tfr\tde\nA\tB\tC\nA\t\xff\tC\n", "line 3 is not UTF-8"),
        (b"en\tfr\tde\n", "has no sentences below its first line"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, content, message):
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        data.read(path, data.LANGUAGES)
    assert str(path) in str(error.value) and message in str(error.value)


def test_broken_gzip_and_missing_files(folder, monkeypatch):
    whole = (folder / "train.tsv.gz").read_bytes()
    (folder / "train.tsv.gz").write_bytes(whole[:-40])
    with pytest.raises(UserError, match=r"train.tsv.gz is not a whole gzip file"):
        data.load(str(folder))
    (folder / "train.tsv.gz").unlink()
    with pytest.raises(UserError, match=r"no file .*train.tsv; give the folder"):
        data.load(str(folder))
    with pytest.raises(UserError, match="no data folder"):
        data.find_directory(str(folder / "none"))
    monkeypatch.setenv("QUINTET_DATA", str(folder))
    with pytest.raises(UserError, match="no folder multi30k"):
        data.find_directory()
    monkeypatch.delenv("QUINTET_DATA")
    assert data.find_directory() is None


def test_toy_captions_are_distinct_and_parallel():
    rows = toy.sentences()
    assert len(rows) == 4000 and all(len(set(column)) == 4000 for column in zip(*rows, strict=True))
    assert ("A man in a red shirt runs very fast in a park.", "Un homme en chemise rouge court très vite dans un parc.",
            "Ein Mann in einem roten Hemd läuft sehr schnell in einem Park.") in rows  # fmt: skip


def test_halves_divide_the_training_text(folder):
    dataset = corpus.open_corpus(options(folder))
    read = {lang: set(data.tokenise(lang, [row[i] for row in ROWS[:60]])) for i, lang in enumerate(data.LANGUAGES)}
    a = {lang: dataset.vocabulary[lang].decode(ids) for lang, ids in zip(("fr", "en"), dataset.sender, strict=True)}
    b = {lang: dataset.vocabulary[lang].decode(ids) for lang, ids in zip(("fr", "de"), dataset.game, strict=True)}
    assert len(a["fr"]) == len(b["fr"]) == 30 and {*a["fr"], *b["fr"]} == read["fr"]
    lines = {fr: (en, de) for en, fr, de in zip(*data.load(str(folder))["train"].values(), strict=True)}
    assert all(lines[fr][0] == en for fr, en in zip(a["fr"], a["en"], strict=True))
    assert all(lines[fr][1] == de for fr, de in zip(b["fr"], b["de"], strict=True))
    assert dataset.vocabulary["en"].decode(dataset.captions) == a["en"]
    other = corpus.open_corpus(options(folder, seed=1))
    assert set(other.vocabulary["fr"].decode(other.game.source)) != set(b["fr"])
    assert other.fingerprint != dataset.fingerprint == corpus.open_corpus(options(folder, length=39)).fingerprint


def test_a_language_has_its_own_subwords(folder):
    dataset = corpus.open_corpus(options(folder))
    english, german = dataset.vocabulary["en"], dataset.vocabulary["de"]
    assert english.subwords[:4] == german.subwords[:4] == corpus.SPECIAL
    assert any("ß" in s for s in german.subwords) and not any("ß" in s for s in english.subwords)
    assert [len(set(v.subwords)) for v in (english, german)] == [english.size, german.size]
    [ids] = english.encode(["a man ß"])
    assert ids[-1] == END and UNKNOWN in ids and max(ids) < english.size
    assert english.decode(np.array([ids])) == ["a man <unk>"]


def test_rows_are_padded_cut_and_read_up_to_their_end(folder):
    table = corpus.pad([[5, 6, END], [5, 6, 7, 8, END]], 4)
    assert table.tolist() == [[5, 6, END, PAD], [5, 6, 7, END]]
    words = corpus.open_corpus(options(folder)).vocabulary["en"]
    [ids] = words.encode(["a man runs"])
    assert words.decode(np.array([[*ids, ids[0], PAD], [PAD, *ids, PAD]])) == ["a man runs", "a man runs"]


def test_long_sentences_are_left_out_of_training_and_cut_when_held_out(folder):
    full, short = (corpus.open_corpus(options(folder, length=n)) for n in (40, 18))
    lengths = (full.game.source != PAD).sum(1), (full.game.target != PAD).sum(1)
    assert len(short.game.source) == (np.maximum(*lengths) <= 18).sum() < len(full.game.source)
    assert short.held["val"].ids["fr"].shape == (15, 18) and len(short.held["val"].text["fr"]) == 15
    assert ((short.held["val"].ids["fr"] == END).sum(1) == 1).all()
    with pytest.raises(UserError, match="no fr-en pair fits into 3 subwords"):
        corpus.open_corpus(options(folder, length=3))


def test_pairs_from_other_files(folder):
    fr_en = write(folder / "fr_en.tsv", [("Un chat dort.", "A cat sleeps."), ("Oui.", "Yes.")], head="fr\ten")
    en_de = write(folder / "en_de.tsv", [("A zebra.", "Ein Zebra.")], head="en\tde")
    dataset = corpus.open_corpus(options(folder, share=0.0, fr_en=str(fr_en), en_de=str(en_de)))
    assert dataset.vocabulary["en"].decode(dataset.sender.target) == ["a cat sleeps .", "yes ."]
    assert dataset.vocabulary["de"].decode(dataset.receiver.target) == ["ein zebra ."]
    assert len(dataset.game.source) == len(dataset.captions) == 60
    source = corpus.SupervisedSource(dataset)
    batch = source.batch(np.array([0, 3, 59]), np.zeros(3, np.uint64))
    assert len(source) == 60 and batch["receiver"].target.shape == batch["sender"].source.shape == (3, 40)
    np.testing.assert_array_equal(batch["sender"].source[1], dataset.sender.source[1])


@pytest.mark.parametrize(
    ("values", "message"),
    [({"share": 0.0}, "share 0 leaves no sentences"), ({"share": 1.0}, "0 <= share < 1"), ({"fr_en": "x.tsv"}, "go together")],
)
def test_options_that_cannot_be(folder, values, message):
    with pytest.raises(UserError, match=message):
        corpus.open_corpus(options(folder, **values))


def test_game_batches_hold_part_b_and_supervised_pairs(folder, monkeypatch):
    dataset = corpus.open_corpus(options(folder))
    assert set(corpus.GameSource(dataset).batch(np.arange(2), np.zeros(2, np.uint64))) == {"game"}
    source = corpus.GameSource(dataset, ("sender", "receiver"))
    monkeypatch.setattr(corpus, "uniforms", lambda seeds, k: np.array([[0.0, 0.5], [0.999, 0.0]]))
    batch = source.batch(np.array([4, 2]), np.zeros(2, np.uint64))
    np.testing.assert_array_equal(batch["game"].target, dataset.game.target[[4, 2]])
    np.testing.assert_array_equal(batch["sender"].target, dataset.sender.target[[0, 29]])
    np.testing.assert_array_equal(batch["receiver"].source, dataset.receiver.source[[15, 0]])


def test_saved_subwords_are_those_that_were_made(folder):
    made = corpus.open_corpus(options(folder))
    read = corpus.open_corpus(options(folder), made.subwords)
    assert read.fingerprint == made.fingerprint and read.subwords == made.subwords
    for lang in data.LANGUAGES:
        assert read.vocabulary[lang].subwords == made.vocabulary[lang].subwords
    jax.tree.map(np.testing.assert_array_equal, read.game, made.game)
    with pytest.raises(UserError, match=r"config\.data\.bpe is 77, but the run's subwords were made with"):
        corpus.open_corpus(options(folder, bpe=77), made.subwords)


def test_subwords_are_the_same_in_every_process(folder):
    """Each process of a run makes its subwords by itself."""
    script = f"""
from ml_collections import ConfigDict
from rlhf_jax.translation.corpus import open_corpus
print(open_corpus(ConfigDict({options(folder).to_dict()!r})).fingerprint)
"""
    command = [sys.executable, "-c", script]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2)]
    assert {int(run.stdout) for run in runs} == {corpus.open_corpus(options(folder)).fingerprint}
