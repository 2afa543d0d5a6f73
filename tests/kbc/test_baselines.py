"""Baselines by hand and, on the official files, the accuracies that their formulas must give."""

import functools
import os
from math import log, sqrt

import numpy as np
import pytest

from kbc_jax.facts import baselines
from kbc_jax.facts.data import Lexicon, Split, Triples, load_split
from kbc_jax.facts.novelty import novelty
from training.errors import UserError

TRAIN = Triples.of(
    [
        ("isa", "big cat", "wild animal"),
        ("isa", "cat", "animal"),
        ("hasa", "cat", "tail"),
        ("hasa", "dog", "tail tail"),
    ]
)
DEV = Triples.of([("isa", "cat", "animal"), ("hasa", "cat", "animal"), ("isa", "dog", "wild cat")], [True, False, False])


def test_seen_counts_both_sides():
    assert baselines.Seen(TRAIN).score(DEV).tolist() == [2, 1, 0]


def test_phrase_pmi_by_hand():
    """'cat' heads 2 of 4 triples, 1 of the 2 of isa; 'animal' ends 1, of isa; 'wild cat' ends none."""
    scores = baselines.PhrasePMI(TRAIN, joint=0.1, prior=2).score(DEV)
    cat = log(1.1 / (2 * 4 / 4 + 0.1))
    np.testing.assert_allclose(scores[0], cat + log(1.1 / (2 * 3 / 4 + 0.1)))
    np.testing.assert_allclose(scores[1], cat + log(0.1 / (2 * 3 / 4 + 0.1)))
    np.testing.assert_allclose(scores[2], log(0.1 / (2 * 3 / 4 + 0.1)) + log(0.1 / (2 * 2 / 4 + 0.1)))


def test_word_pmi_by_hand():
    """Tokens count, so 'tail tail' makes three of 'tail'; a head word and a tail word of the same spelling are apart."""
    model = baselines.WordPMI(TRAIN)
    query = Triples.of([("hasa", "dog cat", "tail cat bird")])
    head = (log(1.5 / (2 * (1 + 5) / 4 + 0.5)) + log(1.5 / (2 * (3 + 5) / 4 + 0.5))) / 2
    tail = (log(3.5 / (2 * (3 + 5) / 4 + 0.5)) + 2 * log(0.5 / (2 * (0 + 5) / 4 + 0.5))) / 3
    dog_tail, cat_tail = log(2.2 / (2 * 4 / 4 + 0.2)), log(1.2 / (4 * 4 / 4 + 0.2))
    dog_cat, cat_cat = log(0.2 / (2 * 1 / 4 + 0.2)), log(0.2 / (4 * 1 / 4 + 0.2))
    both = (max(dog_tail, cat_tail) + 2 * max(dog_cat, cat_cat)) / 3
    for pairs, expected in ((("rh",), head), (("rt",), tail), (("ht",), both), (baselines.PAIRS, head + tail + both)):
        np.testing.assert_allclose(model.score(query, pairs), expected)
    for wrong in ((), ("hr",)):
        with pytest.raises(UserError, match="rh, rt, ht"):
            model.score(query, wrong)


def words_and_vectors(seed=0):
    lexicon = Lexicon.build(TRAIN, DEV)
    return lexicon, np.random.default_rng(seed).normal(size=(len(lexicon.words), 6)) * (lexicon.words != np.array(""))[:, None]


def unit_mean(lexicon, vectors, phrase):
    rows = [vectors[lexicon.words.index(word)] for word in phrase.split()]
    return np.mean([row / (1e-4 + sqrt(row @ row)) for row in rows], 0)


def test_argsim_by_hand():
    lexicon, vectors = words_and_vectors()
    model = baselines.ArgSim(lexicon, vectors)
    dog, cat, wild = (vectors[lexicon.words.index(word)] for word in ("dog", "cat", "wild"))
    expected = unit_mean(lexicon, vectors, "dog") @ unit_mean(lexicon, vectors, "wild cat")
    assert model.score(DEV)[2] == pytest.approx(expected, rel=1e-5)
    mean = (wild + cat) / 2
    assert model.cosine(DEV)[2] == pytest.approx(dog @ mean / sqrt(dog @ dog * (mean @ mean)), rel=1e-5)
    assert baselines.ArgSim(lexicon, 0 * vectors).cosine(DEV).tolist() == [0, 0, 0]


def test_maxsim_by_hand():
    """Relations add 1 where they are the training triple's, and the same amount below 1 wherever two given ones differ."""
    lexicon, vectors = words_and_vectors()
    mean = functools.partial(unit_mean, lexicon, vectors)
    rows, known = (list(zip(*triples[1:3], strict=True)) for triples in (DEV, TRAIN))
    words = np.array([[mean(h) @ mean(a) + mean(t) @ mean(b) for a, b in known] for h, t in rows])
    same = np.array([[r == s for s in TRAIN.relation] for r in DEV.relation])
    scores = baselines.MaxSim(TRAIN, lexicon, vectors, seed=3, block=2).score(DEV)
    directions = np.random.default_rng(3).uniform(-0.1, 0.1, (len(lexicon.relations), 6))
    isa, hasa = (directions[lexicon.relations.index(r)] for r in ("isa", "hasa"))
    other = isa @ hasa / sqrt(isa @ isa * (hasa @ hasa))
    np.testing.assert_allclose(scores, np.max(words + np.where(same, 1, other), 1), rtol=1e-5)
    assert scores[0] > 2.99  # it is a training triple


def test_maxargsim_adds_scores_that_are_standardised_on_dev1():
    dev1 = np.array([True, True, False, False])
    scores = baselines.max_arg_sim(np.array([1.0, 3, 5, 2]), np.array([10.0, 50, 20, 30]), dev1)
    np.testing.assert_allclose(scores, [-1 - 1, 1 + 1, 3 - 0.5, 0 + 0])


def test_evaluate_takes_the_threshold_from_dev1():
    """dev1 is cut at 2 without a mistake; the same cut gets 2 of 4 test triples right, one of them a positive."""
    dev = Triples.of([("isa", str(i), "x") for i in range(4)], [False, False, True, True])
    test = Triples.of([("isa", str(i), "x") for i in range(4)], [True, False, True, False])
    measures = baselines.evaluate(lambda triples: np.array([float(h) for h in triples.head]), Split(TRAIN, dev, test, test))
    assert measures == {"threshold": 2, "dev1": 1, "dev2": 0.5, "test": 0.5, "test_f1": 0.5}


@pytest.fixture(scope="module")
def official():
    if not os.environ.get("QUINTET_DATA"):
        pytest.skip("QUINTET_DATA is not set: no ConceptNet-100k files to count")
    return load_split("official", os.path.join(os.environ["QUINTET_DATA"], "conceptnet100k"))


def test_counts_on_the_official_test_set(official):
    words = baselines.WordPMI(official.train)
    two = functools.partial(words.score, pairs=("rh", "rt"))
    tests = [baselines.evaluate(score, official)["test"] for score in (two, words.score, baselines.Seen(official.train).score)]
    np.testing.assert_allclose(tests, [0.754, 0.847, 0.743], atol=1e-3)


def test_share_of_the_official_test_set_that_is_not_novel(official):
    """Rows whose head and tail occur together in training; every pair of phrases is apart under random word vectors."""
    lexicon = Lexicon.build(official.train, official.test)
    queries = official.test.take(range(0, 2400, 12))
    vectors = np.random.default_rng(0).normal(size=(len(lexicon.words), 16))
    distance, index = novelty(official.train, queries, lexicon, vectors)
    pairs = set(zip(official.train.head, official.train.tail, strict=True))
    repeated = np.array([pair in pairs for pair in zip(queries.head, queries.tail, strict=True)])
    assert (distance[repeated] == 0).all() and 20 < repeated.sum() < 40
    nearest = official.train.take(index[repeated])
    same = queries.take(np.flatnonzero(repeated))
    assert (nearest.head, nearest.tail) == (same.head, same.tail)
