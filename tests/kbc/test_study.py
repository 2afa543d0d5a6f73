"""From tiny runs on toy facts to tables: scorer, study, link prediction, mining with a trained run."""

import json
from pathlib import Path

import numpy as np
import pytest

from kbc_jax import link, mine, mining, scorer, study, tables
from kbc_jax.data import Triples, load_split
from launch.report import write_report
from training import config as configs
from training.errors import UserError
from training.testing import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two arms: two runs of a Factorized, and a DNN of a population of two."""
    folder = tmp_path_factory.mktemp("kbc")
    for variant, arm, more in (("tiny", "factorized/0", {}), ("tiny", "factorized/1", {"seed": "1"}),
                               ("tiny_dnn", "dnn", {"population": "2"})):  # fmt: skip
        spec = str(ROOT / f"configs/kbc/complete.py:{variant}")
        train(configs.load(spec, {"mesh.data": "1", "optim.lr": "0.05", **more}), folder / arm)
    return folder


def test_a_loaded_run_scores_as_it_did_in_training(runs):
    """Accuracy on dev2 at the stored threshold is what selection saw; unknown words and phrases score too."""
    split = load_split("official", "toy")
    for arm, seeds in (("factorized/0", 1), ("dnn", 2)):
        trained = scorer.load(runs / arm)
        scores = trained.score(split.dev2)
        assert scores.shape == (seeds, split.dev2.size)
        right = (scores >= trained.threshold[:, None]) == split.dev2.label
        np.testing.assert_allclose(right.mean(1), trained.dev2, atol=1e-6)
    new = Triples.of([("isa", "dog unheard of", "animal"), ("isa", "dog neverseen word", "animal")])
    assert np.isfinite(trained.score(new)).all()
    assert trained.score(new)[0, 0] == trained.score(new)[0, 1]  # both are dog and two unknown words


def test_a_run_must_fit_its_data_and_split(runs, tmp_path):
    with pytest.raises(UserError, match="selected on official, redrawn"):
        scorer.load(runs / "dnn", "random")
    with pytest.raises(UserError, match="no run in"):
        scorer.load(tmp_path)


@pytest.fixture(scope="module")
def results(runs):
    return study.study(runs, "toy")


def test_study_puts_the_arms_of_each_split_together(results):
    assert set(results) == {"official", "redrawn"}
    official = results["official"]
    assert {"factorized", "dnn", "word PMI", "MaxSim"} <= set(official["arms"])
    for name in ("factorized", "dnn"):
        arm = official["arms"][name]
        assert arm["seeds"] == 2 and len(arm["test"]["accuracy"]["values"]) == 2
        assert sum(part["n"]["mean"] for part in arm["buckets"]["thirds by skipgram"]) == 198  # 200 // 3 * 3
    gap = official["differences"]["factorized - dnn"]["accuracy"]
    means = [official["arms"][name]["test"]["accuracy"]["mean"] for name in ("factorized", "dnn")]
    assert gap["mean"] == pytest.approx(means[0] - means[1]) and gap["low"] <= gap["mean"] <= gap["high"]
    zero = official["arms"]["word PMI"]["test"]["accuracy"]
    assert zero["mean"] > 0.6  # toy facts are easy to count


def test_tables_and_plot_make_a_report(results, tmp_path):
    tables.write(results, tmp_path)
    names = {path.name.removesuffix(".table.json") for path in tmp_path.glob("*.table.json")}
    assert {"1-completion", "2-thirds-official", "4-claims", "5-embeddings"} <= names
    json.dumps(study.without_nan(results), allow_nan=False)
    page = write_report([tmp_path]).read_text()
    assert "The claims" in page and "Factorized beats DNN" not in page  # there is no random split to claim it on
    assert "data:image/png" in page


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.01, 0.03, "yes"), (-0.03, -0.01, "no"), (-0.01, 0.01, "not told apart")]
)
def test_verdicts_follow_the_interval(low, high, verdict):
    difference = {"mean": (low + high) / 2, "low": low, "high": high}
    found = {"factorized - dnn": dict.fromkeys(("accuracy", "f1 third 1", "f1 third 2", "f1 third 3"), difference)}
    rows = tables.claims({"random": {"arms": {}, "differences": found}})["rows"]
    by_claim = {row[0]: row[3] for row in rows}
    assert by_claim["2. Factorized beats DNN"] == verdict
    opposite = {"yes": "no", "no": "yes"}.get(verdict, verdict)
    assert by_claim["3. DNN leads in the least novel third"] == opposite


def test_link_prediction_of_an_arm(runs, tmp_path):
    link.main([str(runs), "--out", str(tmp_path), "--arms", "factorized", "--limit", "20", "--data", "toy"])
    found = json.loads((tmp_path / "links.json").read_text())["factorized"]
    assert found["test"] == 20 and len(found["measures"]["mean mrr"]["values"]) == 2
    assert 0 < found["measures"]["mean mrr"]["mean"] < 1
    assert (tmp_path / "9-links.table.json").exists()


def test_mined_triples_are_scored_and_walked_through(runs, tmp_path):
    split = load_split("official", "toy")
    candidates, scored, walked = (tmp_path / f"{name}.tsv" for name in ("candidates", "scored", "walked"))
    mining.write_mined(candidates, split.test, count=np.arange(split.test.size))
    mine.main(["score", "--run", str(runs / "dnn"), "--candidates", str(candidates), "--out", str(scored)])
    triples, columns = mining.read_mined(scored)
    assert (np.diff(columns["score"]) <= 0).all()
    own = dict(zip(split.test.keys(), scorer.load(runs / "dnn").score(split.test).mean(0), strict=True))
    np.testing.assert_allclose(columns["score"], [own[key] for key in triples.keys()], rtol=1e-4)  # noqa: SIM118
    mine.main(["walk", "--scored", str(scored), "--out", str(walked), "--data", "toy", "--cuts", "0.5", "1", "--top", "7"])
    _, columns = mining.read_mined(walked)
    for bucket, (low, high) in enumerate(((0, 0.5), (0.5, 1), (1, np.inf))):
        mine_ = columns["bucket"] == bucket
        assert mine_.sum() <= 7
        assert ((columns["novelty"][mine_] >= low) & (columns["novelty"][mine_] < high)).all()


def test_the_novelty_study_goes_from_sheet_to_table(tmp_path, capsys):
    """Rows of train are never their own nearest triple; a sheet filled with codes makes the table."""
    sheet, key = tmp_path / "sheet.tsv", tmp_path / "key.json"
    mine.main(["novelty_sheet", "--of", "train", "--rows", "12", "--out", str(sheet), "--key", str(key), "--data", "toy"])
    lines = sheet.read_text().splitlines()
    rows = [i for i, line in enumerate(lines) if not line.startswith("#")][1:]
    assert len(rows) == 12
    for number, i in enumerate(rows):
        _, statement, nearest, code = lines[i].split("\t")
        assert statement != nearest and not code
        lines[i] += "14"[number % 2]
    sheet.write_text("\n".join(lines) + "\n")
    mine.main(["novelty_table", str(sheet), "--key", str(key)])
    shown = capsys.readouterr().out
    assert "kept: 12" in shown and "A 50%" in shown and "F 50%" in shown and "mean: 2.5" in shown
