"""The blocked search against brute force in double precision, and the rules of the distance."""

import numpy as np
import pytest

from kbc_jax.facts.data import Lexicon, Triples
from kbc_jax.facts.novelty import k_nearest, nearest, neighbours, novelty
from training.errors import UserError


def brute(vectors, queries, train):
    """Distances [n, m] of queries to training pairs, in double precision."""
    vectors = np.asarray(vectors, np.float64)
    return sum(np.linalg.norm(vectors[queries[:, None, i]] - vectors[train[None, :, i]], axis=-1) for i in (0, 1))


def random_phrases(rng, phrases=600, width=32, offset=0.0):
    """float32 vectors around `offset`; some phrases have equal vectors, some nearly equal ones."""
    vectors = rng.normal(size=(phrases, width)) + offset
    vectors[100:120] = vectors[80:100]
    vectors[120:140] = vectors[80:100] + 1e-3 * rng.normal(size=(20, width))
    return vectors.astype(np.float32)


@pytest.mark.parametrize("queries, triples, offset", [(200, 1500, 0), (130, 1500, 10), (128, 128, 0), (1, 1, 0), (5, 3, 0)])
def test_nearest_is_exact(queries, triples, offset):
    """The search is exact, also far from the origin, where expanding the square loses nearly all digits of small distances."""
    rng = np.random.default_rng(queries)
    vectors = random_phrases(rng, offset=offset)
    query, train = (rng.integers(600, size=(n, 2)) for n in (queries, triples))
    query[::5] = train[rng.integers(triples, size=len(query[::5]))]
    distance, index = nearest(vectors, query, train, block=64)
    expected = brute(vectors, query, train)
    np.testing.assert_allclose(distance, expected.min(1), rtol=2e-6)
    np.testing.assert_allclose(expected[np.arange(queries), index], expected.min(1), rtol=2e-6)
    assert distance.dtype == np.float32 and (distance[::5] == 0).all()


def test_equal_vectors_are_at_distance_zero_whatever_their_number():
    """Ninety equal phrases at a length where the expanded square is off by more than the distance to the others."""
    rng = np.random.default_rng(0)
    vectors = np.concatenate([np.repeat(1000 * rng.normal(size=(1, 200)), 90, 0), 1000 * rng.normal(size=(10, 200))])
    train = np.stack([np.arange(100), np.arange(100)[::-1]], 1)
    distance, index = nearest(vectors, np.array([[3, 4], [95, 4], [95, 95]]), train)
    assert distance[:2].tolist() == [0, 0] and distance[2] > 100
    assert index[1] == 95


def test_order_within_the_rounding_of_the_expanded_square():
    """Six pairs at distances of 0.001 to 0.006 from the query, where the expanded square tells nothing apart below 0.03."""
    rng = np.random.default_rng(0)
    step = rng.normal(size=32)
    for nearest_row in range(6):
        apart = 1e-3 * (1 + (np.arange(6) - nearest_row) % 6)
        vectors = 10 + np.outer([0, *apart], step / np.linalg.norm(step))
        _, index = nearest(vectors, np.array([[0, 0]]), np.stack([np.arange(1, 7), np.zeros(6, int)], 1))
        assert index == nearest_row


def test_one_training_triple_must_be_near_on_both_sides():
    vectors = np.array([[0.0], [1], [10], [11], [5]])
    train = np.array([[0, 3], [2, 1], [4, 4]])  # the best head and the best tail are in different triples
    distance, index = nearest(vectors, np.array([[0, 1], [2, 2]]), train)
    np.testing.assert_allclose(distance, [9, 9])
    assert index.tolist() == [2, 1]


def test_ties_go_to_the_first_training_row():
    vectors = np.array([[0.0], [2], [4]])
    train = np.array([[2, 1], [0, 1], [2, 1], [0, 1], [1, 2], [1, 2]])
    _, index = nearest(vectors, np.array([[1, 1], [0, 1], [1, 2]]), train)
    assert index.tolist() == [0, 1, 4]


def test_no_queries():
    distance, index = nearest(np.ones((2, 3)), np.zeros((0, 2), int), np.array([[0, 1]]))
    assert distance.shape == index.shape == (0,)


def test_the_k_nearest_are_distinct_pairs_in_order():
    """The neighbours are those by all distances; pairs that training has several times are named once, by their first row."""
    rng = np.random.default_rng(0)
    vectors = random_phrases(rng)
    train = rng.integers(600, size=(900, 2))
    train[450:] = train[:450]
    query = np.concatenate([rng.integers(600, size=(30, 2)), train[:10]])
    distance, index = k_nearest(vectors, query, train, 4)
    expected = np.sort(brute(vectors, query, train[:450]), 1)[:, :4]
    np.testing.assert_allclose(distance, expected, rtol=2e-6)
    assert distance.shape == index.shape == (40, 4) and index.max() < 450
    assert all(len(set(row)) == 4 for row in index.tolist()) and (index[30:, 0] == np.arange(10)).all()
    np.testing.assert_array_equal(nearest(vectors, query, train)[1], index[:, 0])


def test_no_more_neighbours_than_there_are_pairs():
    train = np.array([[0, 1], [1, 0], [0, 1]])
    assert k_nearest(np.eye(2), np.array([[0, 0]]), train, 2)[1].tolist() == [[0, 1]]
    last_is_nearest = np.array([[0, 1], [0, 0]])  # and the copies that fill its group up are no neighbours
    assert k_nearest(np.eye(2), np.array([[0, 0]]), last_is_nearest, 2)[1].tolist() == [[1, 0]]
    for k in (0, 3):
        with pytest.raises(UserError, match=f"nearest {k} of 2 .*1 to 2"):
            k_nearest(np.eye(2), np.array([[0, 0]]), train, k)


TRAIN = Triples.of([("isa", "cat", "small animal"), ("usedfor", "pen", "write"), ("hasa", "cat", "small animal")])
BLUE, LONG = ("isa", "pen", "blue animal"), ("isa", "write", "animal small animal")
QUERIES = Triples.of([("partof", "cat", "small animal"), BLUE, LONG])


def lexicon_and_vectors():
    lexicon = Lexicon.build(TRAIN, QUERIES, width=2)
    vectors = np.zeros((len(lexicon.words), 2))
    known = {"cat": (1, 0), "small": (0, 4), "animal": (2, 0), "pen": (3, 3), "write": (5, 1), "blue": (8, 8)}
    for word, vector in known.items():
        vectors[lexicon.words.index(word)] = vector
    return lexicon, vectors


def test_novelty_by_hand():
    """The relation does not matter; 'blue', which training lacks, is a zero vector in the mean; phrases are cut at width 2."""
    lexicon, vectors = lexicon_and_vectors()
    distance, index = novelty(TRAIN, QUERIES, lexicon, vectors)
    blue_animal = np.hypot(1 - 5, 0 - 1)  # its mean is (0 + 2, 0 + 0) / 2; (pen, write) is nearest
    cut = np.hypot(5 - 1, 1)  # 'animal small' is left of the tail, which equals 'small animal'
    np.testing.assert_allclose(distance, [0, blue_animal, cut], rtol=1e-6)
    assert index.tolist() == [0, 1, 0]


def test_unknown_words_can_keep_their_vectors():
    lexicon, vectors = lexicon_and_vectors()
    distance, _ = novelty(TRAIN, QUERIES, lexicon, vectors, unknown="keep")
    assert distance[1] == pytest.approx(np.hypot(5 - 5, 4 - 1))
    with pytest.raises(UserError, match="keep"):
        novelty(TRAIN, QUERIES, lexicon, vectors, unknown="none")


def test_training_triples_are_not_novel():
    lexicon, vectors = lexicon_and_vectors()
    distance, index = novelty(TRAIN, TRAIN, lexicon, vectors)
    assert distance.tolist() == [0, 0, 0] and index.tolist() == [0, 1, 0]


def test_neighbours_begin_with_the_nearest():
    lexicon, vectors = lexicon_and_vectors()
    distance, row = neighbours(TRAIN, QUERIES, lexicon, vectors, 2)
    np.testing.assert_array_equal(np.stack([distance[:, 0], row[:, 0]]), np.stack(novelty(TRAIN, QUERIES, lexicon, vectors)))
    assert sorted(row[0].tolist()) == [0, 1] and (distance[:, 1] >= distance[:, 0]).all()
