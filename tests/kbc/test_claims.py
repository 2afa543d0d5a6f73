"""Comparisons by level against the estimates they are made of; verdicts from intervals; one row for each claim."""

import numpy as np
import pytest

from kbc_jax.scoring.bootstrap import Draws, estimate
from kbc_jax.tables import claims, compare


def arms(seeds=2, n=90):
    rng = np.random.default_rng(0)
    labels = np.arange(n) < n // 2
    return {
        name: (labels * skill + rng.normal(size=(seeds, n)), np.full(seeds, 0.5))
        for name, skill in (("factorized", 1.5), ("dnn", 1.2), ("prototypical", 0.8))
    }, labels


def sets(n=90):
    third = np.arange(n) % 3
    return compare.row_sets(np.arange(n) < 9, {"third": third, "paired third": np.arange(n) % (n // 2) * 6 // n})


def test_levels_and_pairs_add_up_on_the_same_draws():
    models, labels = arms()
    cluster = np.arange(90) % 45
    estimates = compare.compare(models, labels, cluster, sets(), metrics=("f1", "auc"), draws=200)
    assert set(estimates) == {*models, "factorized - dnn", "factorized - prototypical", "dnn - prototypical"}
    value = Draws(models, labels, cluster, sets(), draws=200)
    first, last = (value("factorized", "f1", f"third {k}") - value("dnn", "f1", f"third {k}") for k in (1, 3))
    assert estimates["factorized - dnn"]["f1"]["third 1 - 3"] == pytest.approx(estimate(first - last)._asdict())
    whole = value("factorized", "auc", "all") - value("factorized", "auc", "paired third 1")
    assert estimates["factorized"]["auc"]["all - paired third 1"] == pytest.approx(estimate(whole)._asdict())
    apart = estimates["factorized"]["f1"]["third 1"]["low"] - estimates["factorized"]["f1"]["third 3"]["high"]
    assert estimates["factorized"]["f1"]["third 1 - 3"]["low"] > apart, "the draws of a difference belong together"


def test_sets_without_triples_have_no_level():
    models, labels = arms()
    empty = compare.row_sets(np.zeros(90, bool), {"third": np.arange(90) % 3})
    assert set(empty) == {"all", "third 1", "third 2", "third 3"}
    estimates = compare.compare(models, labels, np.arange(90), empty, metrics=("accuracy",), draws=5)
    assert set(estimates["dnn"]["accuracy"]) == {*empty, "third 1 - 3", "all - third 1"}


@pytest.mark.parametrize(
    "low, high, bounds, expected",
    [
        (0.01, 0.03, (0, np.inf), "yes"), (-0.03, 0, (0, np.inf), "no"), (-0.01, 0.01, (0, np.inf), "not told apart"),
        (-0.03, 0, (-np.inf, 0), "yes"), (-0.03, 0.01, (-np.inf, 0), "not told apart"), (0.01, 0.02, (-np.inf, 0), "no"),
        (0.06, 0.09, (0.05, 0.1), "yes"), (0.04, 0.09, (0.05, 0.1), "not told apart"), (0.11, 0.2, (0.05, 0.1), "no"),
        (0.01, 0.04, (0.05, 0.1), "no"), (float("nan"), float("nan"), (0, np.inf), "not told apart"),
    ],
)  # fmt: skip
def test_verdicts_follow_the_interval(low, high, bounds, expected):
    assert claims.verdict({"low": low, "high": high}, 2, *bounds) == expected
    assert claims.verdict({"low": low, "high": high}, 1, *bounds) == "one seed"


def test_a_claim_holds_where_all_of_its_comparisons_do():
    assert claims.combine(["yes", "yes"]) == "yes" and claims.combine([]) == "not measured"
    assert claims.combine(["yes", "no", "not told apart"]) == "no"
    assert claims.combine(["yes", "not told apart"]) == "not told apart"
    assert claims.combine(["yes", "one seed"]) == "one seed"


def results(seeds=5, **figures):
    """Every comparison of every split has the interval 0.2 to 0.3, except those of `figures`: {'split|what|metric|level'}."""
    splits = {}
    for part in claims.parts():
        split = splits.setdefault(part.split, {"arms": {}, "compare": {}})
        for arm in part.what.split(" - "):
            split["arms"][arm] = {"seeds": seeds}
        low, high = figures.get("|".join((part.split, part.what, part.metric, part.level)), (0.2, 0.3))
        value = {"mean": (low + high) / 2, "low": low, "high": high}
        split["compare"].setdefault(part.what, {}).setdefault(part.metric, {})[part.level] = value
    return splits


def verdicts(study):
    return [row[3] for row in claims.summary(study)["rows"]]


def test_five_rows_each_with_a_verdict():
    assert verdicts(results()) == ["no", "yes", "yes", "yes", "no"]
    assert verdicts(results(seeds=1)) == ["one seed"] * 5
    assert verdicts({}) == ["not measured"] * 5
    pair, trails = "factorized - dnn|accuracy|all", "factorized - prototypical|accuracy|all"
    splits = ("official", "redrawn", "random")
    paper = {f"{split}|{trails}": (0.06, 0.09) for split in splits} | {f"{s}|{pair}": (-0.02, 0) for s in splits[:2]}
    assert verdicts(results(**paper)) == ["yes"] * 5
    open_ = results(**paper, **{"random|dnn|f1|third 1 - 3": (0.09, 0.2), f"random|{pair}": (-0.01, 0.01)})
    assert verdicts(open_) == ["yes", "not told apart", "yes", "not told apart", "yes"]


def test_details_hold_every_comparison_and_mark_those_that_count():
    rows = claims.details(results())["rows"]
    assert len(rows) == len(claims.parts())
    counted = [row for row in rows if row[5] == "yes"]
    assert [sum(row[0] == number for row in counted) for number in range(1, 6)] == [2, 1, 1, 9, 6]
    assert rows[0][2:5] == ["official: factorized - dnn, accuracy, all", "+0.250 [+0.200, +0.300]", "no"]
    assert all(row[0] is None and row[5] is None for row in rows if row[1].startswith("Fusion"))
