"""Reviews: halves, sentences, labels, no sentence in two splits, files and tensorflow-datasets."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rlhf_jax import tasks
from rlhf_jax.tasks import imdb
from training.errors import UserError


def folder(path, train, test):
    path.mkdir(exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows))
    return str(path)


ODD = "Not  bad,<br /><br />at all. I  would!"  # double blanks


@pytest.fixture
def five(tmp_path):
    return folder(tmp_path, [(ODD, 1), *((f"Film {i} was bad.", 0) for i in range(4))], [("One two three.", 1)])


def test_the_first_half_of_the_words_between_blanks(five):
    """Of 'Not', '', 'bad,<br', '/><br', '/>at', 'all.', 'I', '', 'would!': four are the prompt."""
    task = imdb.load(five)
    rows = {text: row for part in task.splits.values() for text, row in zip(part.texts(), zip(*part, strict=True), strict=True)}
    assert rows[ODD] == ("Not  bad,<br /><br", " />at all. I  would!", "")
    assert rows["One two three."][:2] == ("One", " two three.")
    assert [len(part.prompts) for part in task.splits.values()] == [4, 1, 1]


def test_cleaned(five):
    task = imdb.load(five, clean=True)
    texts = [text for part in task.texts.values() for text in part]
    assert "Not bad, at all. I would!" in texts and imdb.clean_text("a<br>b<br/> c\n") == "a b c"


def test_labels_follow_their_texts(five):
    task = imdb.load(five, validation=0.4)
    labels = {t: y for texts, ys in task.labelled.values() for t, y in zip(texts, ys.tolist(), strict=True)}
    assert labels == {ODD: 1, **{f"Film {i} was bad.": 0 for i in range(4)}, "One two three.": 1}
    assert [len(ys) for _, ys in task.labelled.values()] == [3, 2, 1] and task.labelled["train"][1].dtype == np.int32


def test_sentences_end_after_their_closing_marks():
    text = 'It is "good." He said: (yes!) Really?! No... 3.5 of 5'
    assert imdb.sentences(text) == ['It is "good."', "He said: (yes!)", "Really?!", "No...", "3.5 of 5"]
    assert imdb.sentences("One") == ["One"] and imdb.sentences("") == []


def test_sentence_variant_caps_prompt_and_continuation(tmp_path):
    long = "a b c d e f g h i j."
    where = folder(tmp_path, [(f"{long} k l m n. o p.", 1), ("q r s t u.", 0)], [(f"{long} v w x y z.", 1)])
    task = imdb.load(where, level="sentence", prompt_words=3, words=2, validation=0.5)
    found = {row[:2] for part in task.splits.values() for row in zip(*part, strict=True)}
    assert found == {("a b c", " d e"), ("k l m", " n."), ("q r s", " t u."), ("v w x", " y z.")}  # 'o p.' has no continuation
    assert task.splits["test"].prompts == ["v w x"]  # the long one is in train or validation
    whole = imdb.load(where, level="sentence", shortest=4, longest=5, validation=0.5)
    assert sorted(text for part in whole.texts.values() for text in part) == ["k l m n.", "q r s t u.", "v w x y z."]
    labels = {t: y for texts, ys in whole.labelled.values() for t, y in zip(texts, ys.tolist(), strict=True)}
    assert labels == {"k l m n.": 1, "q r s t u.": 0, "v w x y z.": 1}


def test_validation_comes_from_other_reviews_and_the_seed_deals(tmp_path):
    reviews = [(f"Film {i} begins. Film {i} goes on. Film {i} ends.", i % 2) for i in range(20)]
    where = folder(tmp_path, reviews, [("The test film ends.", 0)])
    tasks_of = [imdb.load(where, level="sentence", seed=seed).texts for seed in (0, 1)]
    a, b = ({split: {text.split()[1] for text in texts} for split, texts in part.items()} for part in tasks_of)
    assert len(a["train"]) == 16 and len(a["validation"]) == 4 and not a["train"] & a["validation"] and a != b


@pytest.mark.parametrize(
    "options, message",
    [
        ({"level": "word"}, "'word' is not review or sentence"),
        ({"words": -1}, "0 or more"),
        ({"shortest": 90}, "no review of the train split has 90 to any number of words"),
        ({"shortest": 9, "longest": 8}, "has 9 to 8 words"),
        ({"validation": 1.0}, "shares"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(UserError, match=message):
        imdb.load("toy", **options)


def test_a_label_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"train.jsonl line 2: label 2 is not 0 or 1"):
        imdb.load(folder(tmp_path, [("a b", 0), ("a b", 2)], [("a b", 1)]))


class Maker(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes a small set under the name and version of the real one."""

    __module__ = "maker"  # tfds would look for the files of a package
    name = "imdb_reviews"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="plain_text"),)

    def _info(self):
        features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["neg", "pos"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, n):
        for i in range(n):
            yield i, {"text": f"Café {n} {i} opens.", "label": i % 2}


def test_read_from_tensorflow_datasets(tmp_path):
    Maker(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    task = tasks.open_task({"task": "imdb", "dir": f"tfds:{tmp_path}"})
    assert sorted(task.texts["train"] + task.texts["validation"]) == [f"Café 5 {i} opens." for i in range(5)]
    for texts, labels in task.labelled.values():
        assert [int(text.split()[2]) % 2 for text in texts] == labels.tolist()


def test_what_tensorflow_datasets_cannot_do_is_said(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(UserError, match=r"cannot prepare imdb_reviews \(ConnectionError: no network\); .*tfds:FOLDER$"):
        imdb.load("tfds")
