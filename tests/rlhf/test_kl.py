"""Controllers of the KL weight, and the two perplexities."""

import jax
import numpy as np
import pytest

from rlhf_jax.algorithms import kl
from training.errors import UserError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, 0.1),  # on target
        (0.55, 0.1 * 1.01),  # 10 % above: 1 %
        (0.05, 0.1 * 0.98),  # far below: held at -0.2
        (50.0, 0.1 * 1.02),
    ],
)
def test_rl4lms_controller(value, expected):
    ours = jax.jit(lambda c, x: kl.control("rl4lms", c, x, target=0.5))(0.1, value)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_rl4lms_controller_on_imdb_only_decays():
    """Per-token KL stays far below the target, so that 50 iterations multiply the weight by .98^50 = .364."""
    coefficient = 0.1
    for _ in range(50):
        coefficient = kl.control("rl4lms", coefficient, 0.05, target=0.5)
    np.testing.assert_allclose(coefficient, 0.1 * 0.98**50, rtol=1e-5)
    np.testing.assert_allclose(coefficient / 0.1, 0.364, atol=5e-4)


@pytest.mark.parametrize(("value", "factor"), [(6.0, 0.0), (6.6, 0.1), (60.0, 0.2), (0.0, -0.2)])
def test_trl_controller(value, factor):
    ours = jax.jit(lambda c, x: kl.control("trl", c, x, target=6.0, batch=64, horizon=10000))(0.02, value)
    np.testing.assert_allclose(ours, 0.02 * (1 + factor * 64 / 10000), rtol=1e-6)


def test_fixed_controller():
    assert kl.control("fixed", 0.05, 100.0) == 0.05
    assert kl.control("rl4lms", 0.05, 100.0) == 0.05  # no target


def test_controller_mistakes():
    with pytest.raises(UserError, match="unknown KL controller 'adaptive'"):
        kl.control("adaptive", 0.1, 1.0)
    with pytest.raises(UserError, match="needs a target above 0, got 0"):
        kl.control("rl4lms", 0.1, 1.0, target=0)
    with pytest.raises(UserError, match="needs a target above 0, got None"):
        kl.control("trl", 0.1, 1.0, batch=64, horizon=10000)
    with pytest.raises(UserError, match="batch size and a horizon"):
        kl.control("trl", 0.1, 1.0, target=6.0, batch=64)
