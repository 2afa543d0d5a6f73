"""Bootstrap against loops over draws, seeds and rows that call the plain measures; clusters, seeds, pairing by construction."""

import math

import numpy as np
import pytest
from scipy import stats

from kbc_jax.scoring import bootstrap, metrics
from training.errors import UserError

PLAIN = {
    **{name: getattr(metrics, name) for name in bootstrap.THRESHOLDED},
    "auc": lambda scores, labels, _: metrics.auc(scores, labels),
    "ap": lambda scores, labels, _: metrics.average_precision(scores, labels),
}


def example(seeds=3, n=60, levels=7):
    """(scores float32 [S, n] with many ties, labels, thresholds, cluster of each triple)."""
    rng = np.random.default_rng(0)
    labels = rng.random(n) < 0.4
    scores = np.round(labels + rng.normal(size=(seeds, n)), 1 if levels > 5 else 0).astype(np.float32)
    return scores, labels, rng.normal(size=seeds).astype(np.float32), rng.integers(n // 3, size=n)


@pytest.mark.parametrize("metric", bootstrap.METRICS)
def test_every_draw_is_the_measure_of_its_triples(metric):
    """The first column is the observed set; each other one repeats triples by their weights."""
    scores, labels, thresholds, cluster = example()
    weights = bootstrap.triple_weights(cluster, draws=20)
    values = bootstrap.measure(metric, weights, scores, labels, thresholds)
    assert values.shape == (3, 21)
    for draw, counts in enumerate(weights.T.astype(int)):
        rows = np.repeat(np.arange(60), counts)
        expected = [PLAIN[metric](s[rows], labels[rows], t) for s, t in zip(scores, thresholds, strict=True)]
        np.testing.assert_allclose(values[:, draw], expected, rtol=1e-6)
    np.testing.assert_array_equal(weights[:, 0], 1)


def test_triples_of_a_cluster_come_and_go_together():
    cluster = np.array([5, 9, 5, 7, 9, 5])
    weights = bootstrap.triple_weights(cluster, draws=4000)
    for number in (5, 7, 9):
        members = weights[cluster == number]
        np.testing.assert_array_equal(members, np.broadcast_to(members[0], members.shape))
    one_each = weights[[0, 1, 3]]
    assert (one_each.sum(0) == 3).all() and one_each[:, 1:].var() == pytest.approx(2 / 3, abs=0.03)  # 3 draws of 3


def test_seeds_of_two_arms_are_drawn_apart_and_those_of_one_arm_alike():
    a, again, b = (bootstrap.seed_weights(arm, 5, draws=300) for arm in ("dnn", "dnn", "fusion"))
    np.testing.assert_array_equal(a, again)
    assert (a.sum(0) == 5).all() and abs(np.corrcoef(a[0, 1:], b[0, 1:])[0, 1]) < 0.2


def slow_interval(metric, arms, labels, cluster, draws=600):
    """Differences of the two arms' resampled seed means, with loops over everything."""
    rng, differences, names = np.random.default_rng(1), [], np.unique(cluster)
    for _ in range(draws):
        rows = np.concatenate([np.flatnonzero(cluster == c) for c in rng.choice(names, len(names))])
        means = []
        for scores, cuts in arms:
            seeds = rng.integers(len(scores), size=len(scores))
            means.append(np.mean([PLAIN[metric](scores[s, rows], labels[rows], cuts[s]) for s in seeds]))
        differences.append(means[0] - means[1])
    return np.array(differences)


@pytest.mark.parametrize("metric", ["f1", "auc"])
def test_interval_of_a_difference_agrees_with_loops(metric):
    rng, n = np.random.default_rng(0), 120
    labels, cluster = np.arange(n) < n // 2, np.arange(n) % (n // 2)
    easy = rng.normal(size=n // 2)  # what a cluster's triples have in common
    arms = [
        (labels + easy[cluster] + rng.normal(size=(seeds, n)) * noise, np.full(seeds, 0.5))
        for seeds, noise in ((3, 0.6), (2, 0.8))
    ]
    slow = slow_interval(metric, arms, labels, cluster)
    value = bootstrap.Draws(dict(zip("ab", arms, strict=True)), labels, cluster, {"all": np.ones(n, bool)}, draws=3000)
    difference = bootstrap.estimate(value("a", metric, "all") - value("b", metric, "all"))
    means = [np.mean([PLAIN[metric](s, labels, t) for s, t in zip(*arm, strict=True)]) for arm in arms]
    assert difference.mean == pytest.approx(means[0] - means[1])
    np.testing.assert_allclose([difference.low, difference.high], np.quantile(slow, [0.025, 0.975]), atol=0.3 * slow.std())
    assert difference.not_positive == pytest.approx(np.mean(slow <= 0), abs=0.06)


def test_two_equal_single_seed_arms_differ_in_no_draw():
    scores, labels, thresholds, cluster = example(seeds=1)
    arms = dict.fromkeys("ab", (scores, thresholds))
    value = bootstrap.Draws(arms, labels, cluster, {"some": np.arange(60) % 2 == 0}, draws=50)
    for metric in bootstrap.METRICS:
        assert bootstrap.estimate(value("a", metric, "some") - value("b", metric, "some")) == (0, 0, 0, 1)


def test_draws_without_a_value_are_left_out():
    assert bootstrap.estimate(np.array([0.5, math.nan, 1, 2, math.nan])) == (0.5, pytest.approx(1.025), pytest.approx(1.975), 0)
    assert math.isnan(bootstrap.estimate(np.array([0.5, math.nan])).low)
    scores, labels = np.zeros((1, 3)), np.zeros(3, bool)
    assert np.isnan(bootstrap.measure("auc", np.ones((3, 2), np.float32), scores, labels, [0])).all()


def test_unknown_measure():
    scores, labels, thresholds, _ = example()
    with pytest.raises(UserError, match="'mrr'; there are accuracy"):
        bootstrap.measure("mrr", np.ones((60, 1), np.float32), scores, labels, thresholds)


def test_rank_correlation_and_top_mean_of_every_draw():
    rng = np.random.default_rng(0)
    values, scores = rng.integers(0, 9, 50) / 2, np.round(rng.normal(size=(2, 50)), 1)
    weights = bootstrap.triple_weights(np.arange(50), draws=15)
    correlation, tops = bootstrap.spearman(weights, scores, values), bootstrap.top_mean(weights, scores, values, 10)
    for draw, counts in enumerate(weights.T.astype(int)):
        rows = np.repeat(np.arange(50), counts)
        for seed in range(2):
            expected = stats.spearmanr(scores[seed, rows], values[rows]).statistic
            assert correlation[seed, draw] == pytest.approx(expected, abs=1e-6)
            best = rows[np.argsort(-scores[seed, rows], kind="stable")[:10]]
            assert tops[seed, draw] == pytest.approx(values[best].mean(), abs=1e-6)
    assert bootstrap.top_mean(weights, scores, values, 100)[0, 0] == pytest.approx(values.mean())
