"""Ranking, draws and the walk through novelty buckets: against what the authors' code draws and plain selections."""

import numpy as np
import pytest

from kbc_jax.facts.data import Triples
from kbc_jax.mining import selection
from training.errors import UserError

RANKED = Triples.of([("isa", f"h{i}", f"t{i}") for i in range(1000)])


def test_rank_falls_and_keeps_the_order_of_equals():
    triples, scores = selection.rank(RANKED.take(range(4)), np.array([1, 3, 1, 2.0]))
    assert triples.head == ("h1", "h3", "h0", "h2") and scores.tolist() == [3, 2, 1, 1]
    for wrong in (np.zeros(3), np.array([0, np.nan, 0, 0])):
        with pytest.raises(UserError, match="4 triples"):
            selection.rank(RANKED.take(range(4)), wrong)


def test_get_top_draws_what_the_authors_code_draws():
    scores = np.random.default_rng(0).permutation(1000)
    top = np.argsort(scores)[-200:]
    theirs = top[np.random.RandomState(777).choice(200, 10, replace=False)]
    assert selection.get_top(selection.rank(RANKED, scores)[0], 10, 200).head == tuple(f"h{i}" for i in theirs)
    with pytest.raises(UserError, match="10 of the best 2000 of 1000 triples"):
        selection.get_top(RANKED, 10, 2000)


def test_bucket_walk_takes_the_best_of_each_bucket_and_no_more_blocks_than_needed():
    values, asked = np.random.default_rng(0).uniform(2, 6, 1000), []

    def novelty(triples):
        asked.append(triples.head)
        return np.array([values[int(head[1:])] for head in triples.head])

    buckets = selection.bucket_walk(RANKED, novelty, selection.OMCS_CUTS, per_bucket=30, block=25)
    members = [np.flatnonzero(m)[:30] for m in (values < 3.22, (values >= 3.22) & (values < 4.31), values >= 4.31)]
    for bucket, rows in zip(buckets, members, strict=True):
        assert bucket.rows.tolist() == rows.tolist() and bucket.novelty.tolist() == values[rows].tolist()
    last = max(rows[-1] for rows in members)
    assert len(asked) == last // 25 + 1 and {len(block) for block in asked} == {25}
    short = selection.bucket_walk(RANKED.take(range(40)), novelty, cuts=(4,), per_bucket=30, block=25)
    assert sum(len(bucket.rows) for bucket in short) == 40 and len(asked[-1]) == 15, "the ranking ends first"


def test_mean_novelty_of_the_top():
    means = selection.mean_novelty_of_top(RANKED, lambda t: np.arange(t.size), (1, 100, 2000))
    assert means == {1: 0.0, 100: 49.5}


def test_cuts_must_increase():
    for cuts in ((), (2, 2), (3, 1), (1, float("nan"))):
        with pytest.raises(UserError, match="must increase"):
            selection.bucket_walk(RANKED, lambda t: np.zeros(t.size), cuts)


def test_thirds_of_the_candidates():
    """Cuts of a sample are near those of all candidates, and do not depend on the ranking."""
    asked = []

    def novelty(triples):
        asked.append(triples.size)
        return np.array([float(head[1:]) for head in triples.head])

    assert selection.third_cuts(RANKED, novelty) == pytest.approx((333, 666))
    np.testing.assert_allclose(selection.third_cuts(RANKED, novelty, most=300), (333, 666), atol=80)
    assert asked == [1000, 300], "no more novelties than needed"
    backwards = RANKED.take(range(999, -1, -1))
    assert selection.third_cuts(backwards, novelty, most=300) == selection.third_cuts(RANKED, novelty, most=300)
