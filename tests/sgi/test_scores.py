"""The score table and its aggregates against published numbers."""

import numpy as np
import pytest
from scipy.stats import trim_mean

from sgi.atari.emulator import ATARI_100K, display_name
from sgi.atari.scores import SCORES, comparison, iqm, normalise_score
from training.errors import UserError


def test_table_has_the_26_games():
    assert list(SCORES) == [display_name(game) for game in ATARI_100K]
    assert all(human > random for random, human in SCORES.values())


def test_normalisation_by_hand():
    assert normalise_score("boxing", 6.1) == pytest.approx(0.5)
    assert normalise_score("Pong", -20.7) == 0
    assert normalise_score("ms_pacman", 6951.6) == 1
    np.testing.assert_allclose(normalise_score("freeway", np.array([0, 14.8, 59.2])), [0, 0.5, 2])
    with pytest.raises(UserError, match="Tetris"):
        normalise_score("tetris", 1.0)


def test_interquartile_mean():
    assert iqm([0, 1, 2, 3, 4, 5, 6, 100]) == 3.5
    assert iqm([9, 0, 1, 2, 4]) == pytest.approx((0.75 * 1 + 2 + 0.75 * 4) / 2.5)
    values = np.random.default_rng(0).normal(size=(26, 10))
    assert iqm(values) == pytest.approx(trim_mean(values.ravel(), 0.25))  # rliable's definition


def test_what_others_scored_stands_beside_ours():
    random, spr = comparison("boxing").splitlines()
    assert random.startswith("random 0.1, human 12.1") and spr.startswith("SPR 35.7 ± 14.2")
    assert comparison("tetris") == ""
