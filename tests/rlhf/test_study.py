"""rlhf_jax.study on made runs with known numbers."""

import json

import pytest

from rlhf_jax import study
from training.errors import UserError


def make_run(folder, points, status="done"):
    """points: (step, KL, score); every run starts at KL 0 and score 0.5."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "run.json").write_text(json.dumps({"status": status}))
    start = {"eval/kl_at_start": 0.0, "eval/score_at_start": 0.5}
    rows = [{"step": s, "eval/kl": kl, "eval/score": score, **start} for s, kl, score in points]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def runs(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "ppo" / str(seed), [(10, 2.0, 0.7), (20, 4.0, 0.9)])
        make_run(tmp_path / "elastic" / str(seed), [(10, 1.0, 0.7 + 0.1 * seed), (20, 2.0, 0.9)])
    make_run(tmp_path / "ppo" / "2", [(10, 9.0, 0.0)], status="running")
    return tmp_path


def test_scale_area_and_budgets(tmp_path):
    found = study.compare(study.finished(runs(tmp_path)), "ppo", "eval/score", "eval/kl")
    assert found["top"] == pytest.approx(0.9)
    assert found["d_max"] == pytest.approx(4.0)
    ppo, elastic = found["arms"]["ppo"], found["arms"]["elastic"]
    assert ppo["area"].mean == pytest.approx(0.5 * 0.5)  # 0 up to 2, (.7 - .5) / .4 up to 4
    assert ppo["area"].seeds == 2  # the running one is left out
    assert elastic["area"].mean == pytest.approx(0.5 + (0.25 * 0.5 + 0.25 * 0.75) / 2)
    assert elastic["reward_at_1"].mean == pytest.approx(0.625)
    assert ppo["reward_at_3"].mean == pytest.approx(0.5)


def test_tables_and_plot_are_written(tmp_path):
    out = tmp_path / "out"
    study.main([str(runs(tmp_path / "runs")), "--out", str(out), "--drifts", "eval/kl"])
    table = json.loads((out / "tradeoff-eval-kl.table.json").read_text())
    assert [row[0] for row in table["rows"]] == ["elastic", "ppo"]  # best area first
    assert (out / "tradeoff.png").stat().st_size > 5000


def test_largest_drift_of_the_command_line(tmp_path):
    out = tmp_path / "out"
    study.main([str(runs(tmp_path / "runs")), "--out", str(out), "--drifts", "eval/kl=2"])
    rows = json.loads((out / "tradeoff-eval-kl.table.json").read_text())["rows"]
    assert {row[0]: row[2] for row in rows} == {
        "elastic": "0.312 ± 0.062",
        "ppo": "0.000 ± 0.000",
    }  # 0 below 1, .5 and .75 above


def test_pooled_arms_have_the_best_of_both(tmp_path):
    folder = runs(tmp_path)
    for seed in (0, 1):
        make_run(folder / "kl_1" / str(seed), [(10, 1.0, 0.7)])
        make_run(folder / "kl_2" / str(seed), [(10, 2.0, 0.9)])
    found = study.compare(study.finished(folder), "ppo", "eval/score", "eval/kl", pool="kl_")["arms"]
    assert found["kl_*"]["area"].mean == pytest.approx(0.25 * 0.5 + 0.5)  # .5 from 1 on, 1 from 2 on
    assert found["kl_1"]["area"].mean == pytest.approx(0.75 * 0.5)


def test_table_of_last_values(tmp_path):
    out = tmp_path / "out"
    study.main([str(runs(tmp_path / "runs")), "--out", str(out), "--finals", "eval/score", "eval/kl"])
    found = json.loads((out / "finals.table.json").read_text())
    assert found["columns"] == ["arm", "seeds", "eval/score", "eval/kl"]
    assert found["rows"][0] == ["start", "", "0.500", "0.000"]
    assert found["rows"][1:] == [["elastic", 2, "0.900 ± 0.000", "2.000 ± 0.000"], ["ppo", 2, "0.900 ± 0.000", "4.000 ± 0.000"]]
    with pytest.raises(UserError, match="has no eval/exact"):
        study.last(study.finished(tmp_path / "runs"), ["eval/exact"])


def test_bad_runs_get_one_line(tmp_path):
    with pytest.raises(UserError, match="no finished run in <arm>/<seed>"):
        study.finished(tmp_path)
    arms = study.finished(runs(tmp_path))
    with pytest.raises(UserError, match="'free', which sets the scale"):
        study.compare(arms, "free", "eval/score", "eval/kl")
    with pytest.raises(UserError, match="no eval/win_rate_at_start"):
        study.compare(arms, "ppo", "eval/win_rate", "eval/kl")
