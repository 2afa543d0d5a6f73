"""The reward-drift envelope, its area and the tables made of it, against a brute-force grid and by hand."""

import math

import numpy as np
import pytest

from rlhf_jax.rollouts import tradeoff
from training.errors import UserError


def run(drift, reward):
    return tradeoff.Points(np.arange(len(drift)), np.asarray(drift, float), np.asarray(reward, float))


HAND = run([1.0, 3.0, 2.0, 4.0], [0.2, 0.8, 0.5, 0.6])


def test_points():
    rows = [
        {"step": 0, "seconds": 1.0, "eval/reward": 0.5, "eval/kl": 0.0},
        {"step": 1, "seconds": 2.0, "train/loss": 3.0},
        {"step": 2, "seconds": 3.0, "eval/reward": 1, "eval/kl": 2.5, "eval/text": {"image": "x.png"}},
    ]
    found = tradeoff.points(rows, "eval/reward", "eval/kl")
    np.testing.assert_array_equal(found.steps, [0, 2])
    np.testing.assert_array_equal(found.drift, [0, 2.5])
    np.testing.assert_array_equal(found.reward, [0.5, 1])


def test_points_that_are_missing_or_broken():
    with pytest.raises(UserError, match="no row holds both 'eval/r' and 'eval/kl'; the metrics are eval/kl, train/loss"):
        tradeoff.points([{"step": 1, "seconds": 1.0, "eval/kl": 1.0}, {"step": 2, "train/loss": 1.0}], "eval/r", "eval/kl")
    with pytest.raises(UserError, match="the metrics are none"):
        tradeoff.points([], "r", "d")
    for bad in (math.nan, math.inf, None, [1.0, 2.0], "1"):
        with pytest.raises(UserError, match=r"d at step 3 is .* not a finite number"):
            tradeoff.points([{"step": 3, "r": 1.0, "d": bad}], "r", "d")


def test_normalise():
    found = tradeoff.normalise(run([2.0, 5.0], [0.5, 0.9]), start=(2.0, 0.5), top=0.7)
    np.testing.assert_allclose(found.drift, [0, 3])
    np.testing.assert_allclose(found.reward, [0, 2])
    with pytest.raises(UserError, match=r"top reward 0\.5 must be above the start's 0.5"):
        tradeoff.normalise(run([1.0], [1.0]), start=(0.0, 0.5), top=0.5)


def test_envelope_by_hand():
    found = tradeoff.envelope(HAND, [0, 0.99, 1, 2, 2.5, 3, 4, 100])
    np.testing.assert_allclose(found, [0, 0, 0.2, 0.5, 0.5, 0.8, 0.8, 0.8])  # 0.6 at drift 4 is worse than 0.8 at 3
    np.testing.assert_allclose(tradeoff.envelope(run([0.5, 1.0], [-1.0, -2.0]), [0.5, 2.0]), 0)  # the start is better
    np.testing.assert_allclose(tradeoff.envelope(run([-1.0], [0.3]), [0.0]), 0.3)  # less drift than the start


def test_area_by_hand():
    """0 up to 1, .2 up to 2, .5 up to 3, .8 after: over [0, 4] (0 + .2 + .5 + .8) / 4."""
    assert tradeoff.area(HAND, 4.0) == pytest.approx(1.5 / 4)
    assert tradeoff.area(HAND, 2.5) == pytest.approx((0.2 + 0.25) / 2.5)
    assert tradeoff.area(HAND, 0.5) == 0
    with pytest.raises(UserError, match="a largest drift above 0, got 0"):
        tradeoff.area(HAND, 0.0)


def test_area_against_a_grid():
    rng = np.random.default_rng(0)
    for _ in range(5):
        drift, reward = rng.normal(1, 1, 20), rng.normal(0.3, 0.5, 20)
        grid = (np.arange(20000) + 0.5) / 20000 * 2.0
        slow = np.mean([max([0.0, *(r for d, r in zip(drift, reward, strict=True) if d <= at)]) for at in grid])
        assert tradeoff.area(run(drift, reward), 2.0) == pytest.approx(slow, abs=2e-4)
        assert slow > 0


def test_more_checkpoints_never_hurt():
    assert tradeoff.area(run([1.0, 3.0], [0.2, 0.8]), 4.0) < tradeoff.area(HAND, 4.0)


def test_summary():
    found = tradeoff.summary(HAND, 4.0, (1.5, 3.0))
    assert found == {
        "area": pytest.approx(0.375),
        "reward_at_1.5": 0.2,
        "reward_at_3": 0.8,
        "final_reward": 0.6,
        "final_drift": 4.0,
        "best_reward": 0.8,
        "best_drift": 3.0,
    }


def test_over_seeds():
    found = tradeoff.over_seeds([1.0, 2.0, 6.0])
    assert found.mean == 3 and found.seeds == 3
    assert found.sem == pytest.approx(math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 2) / math.sqrt(3))
    alone = tradeoff.over_seeds([2.0])
    assert alone.mean == 2 and math.isnan(alone.sem)
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(UserError, match="every seed must have given a finite number"):
            tradeoff.over_seeds(bad)


def test_compare_and_curves():
    arms = {"er": [HAND, run([1.0], [0.6])], "ppo": [run([2.0], [1.0])]}
    table = tradeoff.compare(arms, 4.0, (2.0,))
    assert table["er"]["area"].mean == pytest.approx((0.375 + 0.45) / 2)
    assert table["er"]["area"].sem == pytest.approx((0.45 - 0.375) / 2)
    assert table["er"]["reward_at_2"].mean == pytest.approx(0.55) and table["er"]["reward_at_2"].seeds == 2
    assert table["ppo"]["area"].mean == 0.5 and math.isnan(table["ppo"]["area"].sem)
    drawn = tradeoff.curves(arms, 4.0, grid=5)
    np.testing.assert_allclose(drawn["er"].drift, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(drawn["er"].mean, [0, 0.4, 0.55, 0.7, 0.7])
    np.testing.assert_allclose(drawn["er"].sem, [0, 0.2, 0.05, 0.1, 0.1])
    np.testing.assert_allclose(drawn["ppo"].mean, [0, 0, 1, 1, 1])
    assert np.isnan(drawn["ppo"].sem).all() and drawn["er"].runs[0] is HAND


@pytest.mark.parametrize("function", [tradeoff.compare, tradeoff.curves])
def test_empty_arms(function):
    with pytest.raises(UserError, match="no runs to compare in ppo"):
        function({"er": [HAND], "ppo": []}, 4.0)
    with pytest.raises(UserError, match="no runs to compare: every arm"):
        function({}, 4.0)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (run([], []), "a run without evaluations"),
        (run([1.0, 2.0], [1.0]), "as many drifts as rewards"),
        (run([1.0], [math.nan]), "not finite"),
        (run([math.inf], [1.0]), "not finite"),
    ],
)
def test_broken_runs(points, message):
    for function in (
        lambda: tradeoff.envelope(points, [1.0]),
        lambda: tradeoff.area(points, 1.0),
        lambda: tradeoff.summary(points, 1.0),
        lambda: tradeoff.normalise(points, start=(0.0, 0.0), top=1.0),
    ):
        with pytest.raises(UserError, match=message):
            function()
