"""Intervals over seeds."""

from typing import Any

import numpy as np
from scipy.special import stdtrit


def half_interval(values: Any) -> np.ndarray:
    """Half of the 95 % t interval of the mean over the first axis (seeds, two or more): [n, ...] -> [...]."""
    n = len(values)
    return stdtrit(n - 1, 0.975) * np.std(values, 0, ddof=1) / np.sqrt(n)
