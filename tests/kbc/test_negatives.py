"""Corruptions made inside a minibatch: where they stand, whom they take, and the hardest of them by trying all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from kbc_jax.facts import negatives
from kbc_jax.scoring import nets
from training.errors import UserError

B = 6
KEY = jax.random.key(0)
TRIPLES = jnp.array([[0, 2, 7], [1, 0, 8], [2, 1, 9], [3, 2, 6], [4, 3, 5], [5, 0, 4]])  # rows (head phrase, relation, tail)


def options(**values):
    return ConfigDict({"kind": "rand", "each": 1, "allow_self": True, "threshold": 0.0, "tries": 8, **values})


def draw(triples=TRIPLES, sums=None, current=None, key=KEY, **values):
    return np.asarray(negatives.draw(key, options(**values), triples, sums, current))


def test_index_by_hand():
    """Positives; then for each round of swaps the new relations, the new heads, the new tails."""
    relation = jnp.array([5, 6, 7])
    swaps = jnp.array([[[1, 2, 0], [2, 0, 0], [0, 1, 1]], [[2, 1, 2], [0, 2, 2], [1, 0, 0]]])
    i, r, j = negatives.index(relation, swaps)
    rows = [0, 1, 2]
    assert i.tolist() == rows + rows + [2, 0, 1] + rows + rows + [1, 2, 0] + rows
    assert r.tolist() == [5, 6, 7] + [6, 7, 5] + 2 * [5, 6, 7] + [7, 5, 6] + 2 * [5, 6, 7]
    assert j.tolist() == rows + rows + rows + [0, 0, 1] + rows + rows + [2, 2, 0]


def test_uniform_rows_with_and_without_themselves():
    rows = np.arange(B)[:, None]
    for allow_self, choices in ((True, B), (False, B - 1)):
        swaps = draw(each=2000, allow_self=allow_self)
        assert swaps.shape == (2000, B, 3) and swaps.dtype == np.int32
        counts = np.array([[np.bincount(swaps[:, b, slot], minlength=B) for slot in range(3)] for b in range(B)])
        assert (swaps == rows).any() == allow_self
        expected = np.where(~np.eye(B, dtype=bool) | allow_self, 2000 / choices, 0)[:, None]
        assert (np.abs(counts - expected) < 5 * np.sqrt(2000 / choices)).all()
    assert np.mean(swaps[:, :, 1] == swaps[:, :, 2]) < 0.3  # slots are drawn apart
    assert (draw(each=3) != draw(each=3, key=jax.random.key(1))).any()


MODELS = {
    "factorized": dict(terms=("ht", "hr", "rt"), hidden=5),
    "dnn": dict(hidden=5),
    "bilinear": dict(hidden=5),
}


def bound_network(kind):
    """A random network bound to random vectors of 6 heads and 6 tails, and its score of (head row, relation, tail row)."""
    rng = np.random.default_rng(0)
    h, t = rng.normal(size=(2, B, 4)).astype(np.float32)
    scorer, i = nets.build(kind, relations=4, width=4, bn=False, **MODELS[kind]), jnp.zeros(1, int)
    shapes = jax.eval_shape(lambda: scorer.init(KEY, h, t, i, i, i, train=False))
    net = scorer.bind(jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes))
    slots = net.slots(h, t)
    grid = np.asarray(net.model.rows(slots, *np.ix_(range(B), range(4), range(B))))
    return lambda: (net.model, slots), grid


@pytest.fixture(scope="module", params=MODELS)
def network(request):
    return bound_network(request.param)


def best_other(b, scores):
    return max((j for j in range(B) if j != b), key=lambda j: scores[j])


def test_max_takes_the_best_scored_other_row(network):
    current, grid = network
    swaps = draw(current=current, kind="max", each=2)
    assert swaps.shape == (2, B, 3)
    relation = np.asarray(TRIPLES[:, 1])
    for b, swap in enumerate(swaps[0]):
        r = relation[b]
        assert grid[b, relation[swap[0]], b] == max(grid[b, relation[j], b] for j in range(B) if j != b) and swap[0] != b
        assert swap[1] == best_other(b, grid[:, r, b])
        assert swap[2] == best_other(b, grid[b, r])
    np.testing.assert_array_equal(swaps[0], swaps[1])


def test_mix_takes_one_or_the_other():
    current, _ = bound_network("bilinear")
    hardest, rand, mixed = (draw(current=current, kind=kind, each=40) for kind in ("max", "rand", "mix"))
    hard, uniform = (mixed == hardest).all(-1), (mixed == rand).all(-1)
    assert (hard | uniform).all()
    assert 0.35 < np.mean(hard & ~uniform) + np.mean(hard & uniform) / 2 < 0.65


def test_argsim_keeps_sensible_corruptions():
    """Where some row makes <head sum, tail sum> exceed the threshold, that is what is drawn, and any such row may come."""
    sums = jnp.asarray(np.random.default_rng(3).normal(size=(10, 3)))
    h, t = np.asarray(sums)[np.asarray(TRIPLES)[:, 0]], np.asarray(sums)[np.asarray(TRIPLES)[:, 2]]
    good = h @ t.T > 1.2
    swaps = draw(sums=sums, kind="argsim", threshold=1.2, tries=60, each=50)
    assert swaps.shape == (50, B, 3) and swaps.min() == 0 and swaps.max() == B - 1
    heads, tails = good[swaps[:, :, 1], np.arange(B)], good[np.arange(B), swaps[:, :, 2]]
    possible = good.any(0), good.any(1)
    assert all(0 < np.sum(p) < B for p in possible)  # the case has rows of either kind
    np.testing.assert_array_equal(heads.all(0), possible[0])
    np.testing.assert_array_equal(tails.all(0), possible[1])
    for b in np.flatnonzero(possible[0]):
        assert set(swaps[:, b, 1]) == set(np.flatnonzero(good[:, b]))
    free = draw(sums=sums, kind="argsim", threshold=-1e9, tries=60, each=50)  # no filter: the first draw
    first = np.asarray(jax.random.randint(KEY, (60, 50, B, 3), 0, B))[0]
    np.testing.assert_array_equal(free, first)
    np.testing.assert_array_equal(swaps[:, good.diagonal(), 0], first[:, good.diagonal(), 0])  # relations change no phrase


def test_argsim_without_itself():
    sums = jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)))
    swaps = draw(sums=sums, kind="argsim", threshold=0.5, allow_self=False, tries=60, each=50)
    assert (swaps != np.arange(B)[:, None]).all()


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"negatives.kind 'hard' is unknown: use one of rand, max, mix, argsim"):
        draw(kind="hard")
