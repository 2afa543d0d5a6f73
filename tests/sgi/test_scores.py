"""The score table and its aggregates against published numbers."""

import numpy as np
import pytest
from scipy.stats import trim_mean

from sgi.atari import ATARI_100K, display_name
from sgi.scores import SCORES, aggregate, human_normalised, interval, iqm
from training.errors import UserError

# SPR on Atari 100k, mean of 100 seeds per game (the scores that Agarwal et al. 2021 published)
SPR = {
    "Alien": 842, "Amidar": 180, "Assault": 566, "Asterix": 963, "BankHeist": 345, "BattleZone": 14834, "Boxing": 35.7,
    "Breakout": 19.6, "ChopperCommand": 946, "CrazyClimber": 36701, "DemonAttack": 518, "Freeway": 19.3, "Frostbite": 1171,
    "Gopher": 661, "Hero": 5859, "Jamesbond": 367, "Kangaroo": 3617, "Krull": 3682, "KungFuMaster": 14783, "MsPacman": 1318,
    "Pong": -5.4, "PrivateEye": 86, "Qbert": 866, "RoadRunner": 12213, "Seaquest": 558, "UpNDown": 10859,
}  # fmt: skip


def test_table_has_the_26_games():
    assert list(SCORES) == [display_name(game) for game in ATARI_100K]
    assert all(human > random for random, human in SCORES.values())


def test_normalisation_by_hand():
    assert human_normalised("boxing", 6.1) == pytest.approx(0.5)
    assert human_normalised("Pong", -20.7) == 0
    assert human_normalised("ms_pacman", 6951.6) == 1
    np.testing.assert_allclose(human_normalised("freeway", np.array([0, 14.8, 59.2])), [0, 0.5, 2])
    with pytest.raises(UserError, match="Tetris"):
        human_normalised("tetris", 1.0)


def test_published_aggregates_of_spr():
    """The published mean, median and number of games above human; the interquartile mean over the games' means."""
    result = aggregate({game: [score] for game, score in SPR.items()})
    assert (result["games"], result["above_human"], result["above_random"]) == (26, 6, 26)
    np.testing.assert_allclose([result[key] for key in ("mean", "median", "iqm_games")], [0.616, 0.396, 0.407], atol=6e-4)
    assert result["iqm_runs"] == result["iqm_games"]  # one run each


def test_interquartile_means_over_runs_and_over_games():
    assert iqm([0, 1, 2, 3, 4, 5, 6, 100]) == 3.5
    assert iqm([9, 0, 1, 2, 4]) == pytest.approx((0.75 * 1 + 2 + 0.75 * 4) / 2.5)
    values = np.random.default_rng(0).normal(size=(26, 10))
    assert iqm(values) == pytest.approx(trim_mean(values.ravel(), 0.25))  # rliable's definition
    runs = {"boxing": [0.1, 0.1, 0.1, 48.1], "freeway": [29.6] * 4}  # normalised: 0, 0, 0, 4 and four times 1
    result = aggregate(runs)
    assert result["iqm_runs"] == pytest.approx((0 + 1 + 1 + 1) / 4)
    assert result["iqm_games"] == result["mean"] == pytest.approx(1)
    assert (result["above_human"], result["above_random"]) == (0, 2)


def test_interval_resamples_within_games():
    runs = {"boxing": [0.1, 12.1] * 8, "freeway": [29.6] * 16}
    low, high = interval(runs, "mean", draws=400)
    np.testing.assert_allclose([low, high], 0.75 + 1.96 * 0.5 / np.sqrt(16) / 2 * np.array([-1, 1]), atol=0.03)
    assert (
        interval({"boxing": [3.0], "pong": [2.0]}, "median", draws=5)
        == (aggregate({"boxing": [3.0], "pong": [2.0]})["median"],) * 2
    )


@pytest.mark.parametrize("runs", [{}, {"pong": []}])
def test_no_scores(runs):
    with pytest.raises(UserError, match="no scores"):
        aggregate(runs)
