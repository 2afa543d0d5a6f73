"""Rankings against human ratings: perfect, random and published ones."""

import os
from pathlib import Path

import numpy as np
import pytest

from kbc_jax.mining import candidates
from kbc_jax.tables import human
from training.errors import UserError


def columns(n=120):
    """Raters who agree but for a little; Li et al.'s score is noise."""
    rng = np.random.default_rng(0)
    first = np.arange(n) * 5 // n
    second = np.clip(first + rng.integers(-1, 2, n), 0, 4)
    return {"rater1": first, "rater2": second, "mean": (first + second) / 2, "li_score": rng.random(n)}


def comparison(draws=300):
    ratings = columns()
    good = np.stack([ratings["mean"], ratings["mean"] + np.random.default_rng(1).normal(size=120)])
    thirds, unseen = np.arange(120) % 3, np.arange(120) < 20
    return human.compare({"good": good, "flat": np.zeros((1, 120))}, ratings, thirds, unseen, draws), ratings


def test_a_good_ranking_beats_noise_on_the_same_draws():
    results, data = comparison()
    good, li, gap = (results["rankings"][name] for name in ("good", human.LI, f"good - {human.LI}"))
    assert 0.7 < good["spearman"]["mean"] < 0.99, "one of its two seeds is perfect, the other is not"
    assert li["spearman"]["low"] < 0 < li["spearman"]["high"] and gap["spearman"]["low"] > 0
    assert gap["spearman"]["mean"] == pytest.approx(good["spearman"]["mean"] - li["spearman"]["mean"])
    assert good["top_30_third_1"]["mean"] > data["mean"].mean() + 0.5
    assert f"{human.LI} - {human.LI}" not in results["rankings"]


def test_ceilings_and_numbers():
    results, data = comparison()
    assert (results["n"], results["unseen"], results["mean"]) == (120, 20, pytest.approx(data["mean"].mean()))
    assert results["ceiling"]["spearman"] == pytest.approx(1) and 0.8 < results["raters"]["mean"] < 1
    assert results["ceiling"]["top_100"] == pytest.approx(np.sort(data["mean"])[-100:].mean())
    first = data["mean"][:20]
    assert results["ceiling"]["unseen_top_30"] == pytest.approx(first.mean()), "the best 30 of 20 are all"
    assert np.isnan(results["rankings"]["flat"]["spearman"]["mean"]), "equal scores rank nothing"


def test_no_unseen_triples_and_missing_columns():
    data = columns()
    results = human.compare({}, data, np.arange(120) % 3, np.zeros(120, bool), 5)
    assert "unseen_spearman" not in results["rankings"][human.LI] and results["unseen"] == 0
    del data["rater2"]
    with pytest.raises(UserError, match="lack the column rater2"):
        human.compare({}, data, np.arange(120) % 3, np.zeros(120, bool), 5)


def test_published_score_of_the_466():
    if not (root := os.environ.get("QUINTET_DATA")):
        pytest.skip("QUINTET_DATA is not set: no rated triples")
    triples, data = candidates.read_mined(Path(root) / "conceptnet100k" / "wiki_mined" / "human_scored_466.tsv")
    results = human.compare({}, data, np.arange(triples.size) % 3, np.arange(triples.size) < 100, 400)
    li = results["rankings"][human.LI]["spearman"]
    assert li["mean"] == pytest.approx(0.173, abs=5e-4) and 0.06 < li["low"] < 0.12 and 0.22 < li["high"] < 0.29
    assert 0.4 < results["raters"]["low"] < results["raters"]["mean"] < results["raters"]["high"] < 0.6
