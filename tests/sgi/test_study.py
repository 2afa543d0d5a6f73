"""sgi.study on made runs, and the published numbers it shows."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from sgi import study
from sgi.atari.scores import SCORES, normalise_score
from training.errors import UserError


def make_run(folder, game, seed, score, status="done"):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": status}))
    (folder / "config.json").write_text(ConfigDict({"env": {"game": game}, "seed": seed}).to_json())
    first = [-99.0] * len(score) if isinstance(score, list) else -99.0
    rows = [{"step": 1, "eval/score": first}, {"step": 2, "eval/score": score}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def runs(tmp_path):
    """Boxing: 12 points are a human's lead over random play; Freeway: 29.6."""
    for seed in range(4):
        make_run(tmp_path / "sgi" / f"boxing-{seed}", "boxing", seed, 0.1 + 12 * (seed + 1) / 4)
        make_run(tmp_path / "sgi" / f"freeway-{seed}", "freeway", seed, 29.6)
        make_run(tmp_path / "scratch" / "boxing" / str(seed), "boxing", seed, 0.1)
        make_run(tmp_path / "scratch" / "freeway" / str(seed), "freeway", seed, 29.6 * (seed % 2))
    make_run(tmp_path / "scratch" / "boxing" / "9", "boxing", 9, 5.0, status="running")
    return tmp_path


def test_statistics_of_made_runs(runs, capsys):
    arms = study.last(study.gather(runs, "eval/score"))
    assert "boxing/9 is not finished" in capsys.readouterr().out
    values = {arm: study.matrix(arm, games) for arm, games in arms.items()}
    np.testing.assert_allclose(values["sgi"], [[0.25, 1], [0.5, 1], [0.75, 1], [1, 1]])
    computed = study.aggregates(values, draws=200)
    expected = {
        "median": 0.8125,
        "mean": 0.8125,
        "iqm_runs": (0.75 + 1 + 1 + 1) / 4,
        "iqm_games": 0.8125,
        "optimality_gap": 0.1875,
    }
    assert {name: value[0] for name, value in computed["sgi"].items()} == pytest.approx(expected)
    low, high = computed["sgi"]["mean"][1:]
    assert 0.65 < low < 0.8125 < high < 0.97  # the sd of the mean is .28 / 2 / 2
    assert study.aggregates(values, draws=50) == study.aggregates(values, draws=50), "the same draws each time"
    computed = study.improvement(values, draws=50)
    assert computed["scratch", "sgi"][0] == pytest.approx((0 + 0.25) / 2)  # freeway: half the runs tie, which counts half


def test_tables_and_profile_are_written(runs, tmp_path):
    study.main([str(runs), "--out", str(tmp_path / "out")])
    tables = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.table.json")}
    rows = {row[0]: row for row in tables["1-aggregates.table.json"]["rows"]}
    assert rows["sgi"][1] == "4 x 2" and rows["sgi"][2].startswith("0.812 [")
    assert rows["sgi"][-3:] == [0, 2, "ours"] and rows["SPR"][2] == 0.396
    assert tables["2-games.table.json"]["rows"][0] == ["Boxing", "0.1 ± 0.0", "7.6 ± 3.9", "35.7 ± 14.2"]
    assert all((tmp_path / "out" / f"{name}.png").stat().st_size > 5000 for name in ("profile", "curves"))
    assert json.loads((tmp_path / "out" / "histories.json").read_text())["sgi"]["Freeway"]["3"] == {"1": -99.0, "2": 29.6}


def test_a_population_counts_as_its_members(tmp_path):
    make_run(tmp_path / "arm" / "both", "boxing", 3, [1.0, 2.0])
    make_run(tmp_path / "arm" / "one", "boxing", 5, 4.0)
    histories = study.gather(tmp_path, "eval/score")
    assert histories["arm"]["Boxing"] == {3: {1: -99, 2: 1}, 4: {1: -99, 2: 2}, 5: {1: -99, 2: 4}}
    assert study.last(histories) == {"arm": {"Boxing": [1, 2, 4]}}
    make_run(tmp_path / "arm" / "again", "boxing", 4, 0.0)
    with pytest.raises(UserError, match="seed 4 of this game and arm is there twice"):
        study.gather(tmp_path, "eval/score")


def test_a_published_row_recomputed_from_its_scores():
    """SPR's row in published.json is what its scores by game give; every game is there."""
    scores = {game: mean for game, (mean, _) in study.load_published()["games"]["SPR"]["scores"].items()}
    assert list(scores) == list(SCORES)
    row = next(row for row in study.load_published()["aggregates"] if row["method"] == "SPR")
    means = np.array([[normalise_score(game, score) for game, score in scores.items()]])
    for name in ("median", "mean", "iqm_games"):
        assert study.STATISTICS[name](means) == pytest.approx(row[name], abs=6e-4)
    assert (means > 1).sum() == row["above_human"] and (means > 0).sum() == row["above_random"]


def test_the_two_interquartile_means_differ():
    runs = {"boxing": [0.1, 0.1, 0.1, 48.1], "freeway": [29.6] * 4}  # normalised: 0, 0, 0, 4 and four times 1
    x = study.matrix("arm", runs)
    assert study.STATISTICS["iqm_runs"](x) == pytest.approx((0 + 1 + 1 + 1) / 4)
    assert study.STATISTICS["iqm_games"](x) == pytest.approx(1)


def test_bad_runs_get_one_line(runs, tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        study.gather(tmp_path / "nothing", "eval/score")
    with pytest.raises(UserError, match="has no eval/other"):
        study.gather(runs, "eval/other")
    make_run(runs / "sgi" / "again", "boxing", 0, 1.0)
    with pytest.raises(UserError, match="seed 0 of this game and arm is there twice"):
        study.gather(runs, "eval/score")
    with pytest.raises(UserError, match="3 runs of pong and 4 of boxing"):
        study.matrix("x", {"boxing": [1.0] * 4, "pong": [1.0] * 3})
