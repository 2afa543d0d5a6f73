"""Measures against their definitions, coded again the slow way; threshold rule and buckets against hand-made cases."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kbc_jax.scoring import metrics
from training.errors import UserError


def brute_threshold(scores, labels):
    """Every score from the lowest up; only a better accuracy replaces the one held."""
    best, threshold = -1, None
    for candidate in sorted(scores):
        hits = sum((s >= candidate) == y for s, y in zip(scores, labels, strict=True))
        if hits > best:
            best, threshold = hits, candidate
    return threshold, best / len(scores)


def cases():
    """Scores and labels with no ties, few levels (heavy ties), both zeros, one class, constant scores."""
    rng = np.random.default_rng(0)
    for levels in (1, 2, 3, 7, 1000):
        for share in (0.2, 0.5, 1.0, 0.0):
            scores = rng.integers(-levels, levels, 60).astype(np.float32) / levels
            scores[::7] *= -1.0  # makes -0.0 too
            yield scores, rng.random(60) < share
    yield np.float32([3.0]), np.array([True])
    yield np.float32([3.0]), np.array([False])


@pytest.mark.parametrize("scores, labels", list(cases()))
def test_threshold_is_the_lowest_best(scores, labels):
    assert metrics.best_threshold(scores, labels) == pytest.approx(brute_threshold(scores, labels), abs=0)


def test_threshold_takes_the_lowest_of_equally_good_ones():
    assert metrics.best_threshold([1, 3, 2, 4], [True, True, False, True]) == (1, 0.75)  # 3 is as good, and so is 1
    assert metrics.best_threshold([3, 1, 2, 4], [True, True, False, True]) == (1, 0.75)


def test_threshold_on_the_device_is_that_of_the_host():
    """The device's threshold is the host's under jit, and under vmap over eight sets of scores."""
    batches = [pair for pair in cases() if len(pair[0]) == 60]
    scores, labels = (jnp.stack(column) for column in zip(*batches, strict=True))
    thresholds, best = jax.jit(jax.vmap(metrics.best_threshold_device))(scores, labels)
    expected = [metrics.best_threshold(*pair) for pair in batches]
    np.testing.assert_array_equal(thresholds, [t for t, _ in expected])
    np.testing.assert_allclose(best, [a for _, a in expected], rtol=1e-6)


def test_threshold_of_a_diverged_model_is_a_user_error():
    with pytest.raises(UserError, match="diverged"):
        metrics.best_threshold([0.1, float("nan")], [True, False])
    with pytest.raises(UserError, match="empty"):
        metrics.best_threshold([], [])


SCORES = np.array([0.9, 0.8, 0.8, 0.6, 0.5, 0.5, 0.1, 0.0])
LABELS = np.array([1, 1, 0, 0, 1, 0, 1, 0], bool)


def test_thresholded_measures_by_hand():
    """At 0.6: 2 true positives, 2 false positives, 2 false negatives, 2 true negatives; at 0.8: 2, 1, 2, 3."""
    assert metrics.confusion(SCORES, LABELS, 0.8) == (2, 1, 2, 3)
    assert metrics.accuracy(SCORES, LABELS, 0.8) == 5 / 8
    assert metrics.f1(SCORES, LABELS, 0.8) == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert metrics.balanced_accuracy(SCORES, LABELS, 0.8) == (2 / 4 + 3 / 4) / 2
    assert metrics.accuracy(SCORES, LABELS, 0.6) == metrics.f1(SCORES, LABELS, 0.6) == 0.5
    assert metrics.f1(SCORES, ~LABELS & False, 2.0) == 0  # neither true nor predicted positives


def test_balanced_f1_is_f1_of_the_balanced_set():
    """Repeating the rarer class until both are equal gives the same number; F1 itself moves with the class balance."""
    scores, labels = np.r_[SCORES, SCORES[~LABELS], SCORES[~LABELS]], np.r_[LABELS, [False] * 8]
    even = np.r_[SCORES, SCORES], np.r_[LABELS, LABELS]
    assert metrics.balanced_f1(scores, labels, 0.55) == pytest.approx(metrics.f1(*even, 0.55))
    assert metrics.f1(scores, labels, 0.55) < metrics.f1(*even, 0.55) - 0.1
    assert metrics.balanced_f1(scores, labels, -1) == pytest.approx(2 / 3)


def test_calling_everything_true():
    """The values for shares of positives of 70, 59 and 22 %, and agreement with F1 at a threshold below every score."""
    np.testing.assert_allclose([metrics.all_positive_f1(rate) for rate in (0.70, 0.59, 0.22)], [0.82, 0.74, 0.36], atol=5e-3)
    assert metrics.all_positive_f1(LABELS[:3].mean()) == pytest.approx(metrics.f1(SCORES[:3], LABELS[:3], -1))


@pytest.mark.parametrize("scores, labels", list(cases()))
def test_auc_and_average_precision_by_definition(scores, labels):
    positives, negatives = scores[labels], scores[~labels]
    if len(positives) and len(negatives):
        wins = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
        assert metrics.auc(scores, labels) == pytest.approx(np.mean(wins))
    else:
        assert math.isnan(metrics.auc(scores, labels))
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = scores >= threshold
        gained = (called & labels).sum() / max(labels.sum(), 1)
        area, recall = area + (gained - recall) * labels[called].mean(), gained
    precision = metrics.average_precision(scores, labels)
    assert precision == pytest.approx(area) if len(positives) else math.isnan(precision)


def test_thirds_by_rank_keep_file_order_and_drop_the_rest():
    np.testing.assert_array_equal(metrics.thirds([5, 1, 1, 0, 9, 1, 7, 8]), [2, 0, 1, 0, -1, 1, 2, -1])
    assert np.bincount(metrics.thirds(np.arange(2400)[::-1])).tolist() == [800] * 3


def test_negatives_share_the_third_of_their_positive():
    """Six positives, two of which have no negative and two have two; how novel the negatives are does not matter."""
    labels = np.array([1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0], bool)
    novelty = np.array([0, 5, 1, 9, 0, 4, 2, 3, 9, 0, 9])
    source = np.array([0, 1, 2, 0, 1, 5, 6, 7, 1, 6, 2])
    np.testing.assert_array_equal(metrics.paired_thirds(novelty, labels, source), [0, 2, 0, 0, 2, 2, 1, 1, 2, 1, 0])


def test_paired_thirds_leave_out_the_negatives_of_a_positive_that_is_left_over():
    labels, source = np.arange(8) < 4, np.tile(np.arange(4), 2)
    np.testing.assert_array_equal(metrics.paired_thirds(np.arange(8), labels, source), [0, 1, 2, -1] * 2)


def test_bucket_table():
    """A bucket of one class has no AUC; bucket 1 is empty and bucket -1 is left out."""
    rows = metrics.by_bucket(SCORES, LABELS, 0.55, [0, 0, 2, 2, 2, -1, 0, -1])
    assert [(row["bucket"], row["n"]) for row in rows] == [(0, 3), (2, 3)]
    assert rows[0]["positives"] == 1 and rows[0]["f1"] == 0.8 and math.isnan(rows[0]["auc"])
    assert rows[1] == {"bucket": 2, **metrics.summary(SCORES[[2, 3, 4]], LABELS[[2, 3, 4]], 0.55)}


def test_summary_repeats_the_single_measures():
    summary = metrics.summary(SCORES, LABELS, 0.8)
    for name in ("accuracy", "f1", "balanced_accuracy", "balanced_f1"):
        assert summary[name] == getattr(metrics, name)(SCORES, LABELS, 0.8)
    assert summary["auc"] == metrics.auc(SCORES, LABELS) and summary["ap"] == metrics.average_precision(SCORES, LABELS)
    assert (summary["n"], summary["positives"], summary["all_positive_f1"]) == (8, 0.5, pytest.approx(2 / 3))


def test_relation_table_has_the_frequent_ones_first():
    rows = metrics.by_relation(SCORES, LABELS, 0.55, ["isa", "hasa", "isa", "isa", "hasa", "hasa", "isa", "desires"])
    assert [(row["relation"], row["n"]) for row in rows] == [("isa", 4), ("hasa", 3), ("desires", 1)]
    assert rows[0]["accuracy"] == 1 / 4 and rows[0]["auc"] == 0.5
    assert rows[1]["accuracy"] == 2 / 3 and rows[1]["auc"] == 0.75


def test_mean_and_sample_deviation():
    assert metrics.mean_sd([1, 2, 4]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    mean, sd = metrics.mean_sd([0.5])
    assert mean == 0.5 and math.isnan(sd)
