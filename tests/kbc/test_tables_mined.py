"""Tables of mined triples and people, from results in the form that the study makes."""

import numpy as np
import pytest

from kbc_jax import study
from kbc_jax.scoring import bootstrap
from kbc_jax.tables import human, mined
from kbc_jax.tables.compare import compare, row_sets

N = 120


@pytest.fixture(scope="module")
def results():
    """Factorized with both kinds of L2, in two seeds: lazy ranks triples with unseen words well, dense at random."""
    rng = np.random.default_rng(0)
    ratings, unseen = rng.integers(0, 5, (2, N)).astype(float), np.arange(N) < 40
    columns = {"rater1": ratings[0], "rater2": ratings[1], "mean": ratings.mean(0), "li_score": rng.random(N)}
    noise = rng.normal(size=(2, N))
    scores = {"factorized": columns["mean"] + 0.1 * noise, "factorized_dense": np.where(unseen, noise, columns["mean"])}
    labels, thirds = np.arange(N) % 2 == 0, np.arange(N) % 3
    arms = {name: (values + labels, np.full(2, 2.5)) for name, values in scores.items()}
    comparison = compare(arms, labels, np.arange(N), row_sets(unseen, {"third": thirds}), draws=200)
    one = {"arms": {name: {"seeds": 2} for name in arms}, "compare": comparison, "unseen": {"test": 40, "human": 40}}
    tops = {name: study.novelty_of_top(values, rng.random(N)) for name, values in scores.items()}
    tops[human.LI] = study.novelty_of_top(columns["li_score"][None], rng.random(N))
    ranked = human.compare(scores, columns, thirds, unseen, 200)
    return {"official": {**one, "human": ranked, "novelty_of_top": tops}, "redrawn": one}


def test_l2_table_shows_what_unseen_words_lose(results):
    table = mined.l2_modes(results)
    rows = {(row[0], row[2]): row[3:] for row in table["rows"]}
    assert set(rows) == {(split, mode) for split in ("official", "redrawn") for mode in ("lazy", "dense", "dense − lazy")}
    lazy, dense, gap = (rows["official", mode] for mode in ("lazy", "dense", "dense − lazy"))
    column = table["columns"].index("mined, unseen word: Spearman") - 3
    assert float(lazy[column].split()[0]) > 0.9 > 0.4 > float(dense[column].split()[0])
    assert gap[column].startswith("-") and float(gap[column].split()[2].strip("]")) < 0
    assert all(cell is None for cell in rows["redrawn", "dense"][4:]) and rows["redrawn", "dense"][:4] == dense[:4]
    assert "official: 40 of the test triples, 40 of the 120 mined; redrawn: 40 of the test triples." in table["caption"]
    assert len(table["columns"]) == len(table["rows"][0])


def test_ranking_table_has_intervals_differences_and_ceilings(results):
    table = mined.rankings(results, "official")
    rows = {row[0]: row[1:] for row in table["rows"]}
    assert list(rows) == [
        "factorized", "factorized_dense", human.LI, "one rater against the other", "the mean rating itself",
    ]  # fmt: skip
    value = results["official"]["human"]["rankings"]["factorized"]["spearman"]
    assert rows["factorized"][0] == f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    assert rows["factorized"][1].startswith("+") and rows[human.LI][1] is None
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert mined.rankings(results, "redrawn") is None and mined.novelty_of_top(results, "redrawn") is None


def test_novelty_of_the_top_beside_the_papers(results):
    table = mined.novelty_of_top(results, "official")
    assert table["columns"][2:-1] == [f"best {k}" for k in ("100", "1,000", "10,000", "100,000", "1,000,000")]
    rows = {(row[0], row[1]): row[2:] for row in table["rows"]}
    assert rows["prototypical", "paper"] == ["7.96", "6.91", "6.01", "5.34", "5.86", f"{7.96 / 5.86:.2f}"]
    assert rows["factorized", "ours"][1:] == [None] * 4 + ["1.00"], "120 triples have no best 1,000"


def test_tables_of_the_papers_own_studies():
    people, quality = mined.novelty_by_people(), mined.quality()
    assert people["rows"][0][1:5] == ["95 / 100", "65%", "22%", "4%"] and people["rows"][2][-1] == "0.47"
    assert quality["rows"][0][1:] == ["1.78", None, "1.96", "2.00"] and quality["rows"][-1][1:] == [
        None,
        "1.41",
        "2.24",
        "1.63",
    ]
    for table in (people, quality):
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_a_comparison_without_a_value_is_an_empty_cell():
    nothing = bootstrap.estimate(np.full(3, np.nan))._asdict()
    assert mined.interval(nothing) is None and mined.interval(None) is None
