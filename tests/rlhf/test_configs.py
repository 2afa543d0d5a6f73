"""Every variant of configs/rlhf: schedules end with the run, and no run ends on a reset."""

from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.algorithms import elastic
from training import config as configs

CONFIGS = Path(__file__).parents[2] / "configs" / "rlhf"
VARIANTS = [f"{p.stem}:{v}" for p in sorted(CONFIGS.glob("[a-z]*.py")) for v in configs.load_module(p).VARIANTS]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_fits_together(name):
    config = configs.load(f"{CONFIGS}/{name.replace(':', '.py:')}")
    updates = config.steps * (config.rl.epochs * config.rl.minibatches if "rl" in config else 1)
    if config.optim.get("schedule", "constant") != "constant" and "pretrain" not in name:  # that one ends above 0
        assert config.optim.steps == updates
    if "sample" in config and config.model.get("context"):
        assert config.sample.prompt + config.sample.response <= config.model.context
    if name.startswith("rl:") and config.elastic.mode != "none":
        resets = np.flatnonzero(elastic.due(np.arange(config.steps), config.elastic.every, config.elastic.at_zero)) + 1
        assert len(resets) and resets[-1] < config.steps
    if name.startswith("translation:") and config.get("elastic", {}).get("mode", "none") != "none":
        assert config.steps % config.elastic.every
