"""From tiny runs on toy facts to tables: scorer, study, link prediction, mining with a trained run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kbc_jax import complete, link, mine, study
from kbc_jax.facts import baselines, data, embeddings
from kbc_jax.facts.data import Lexicon, Triples, load_split
from kbc_jax.mining import candidates as mining
from kbc_jax.scoring import metrics, scorer
from kbc_jax.tables import cells, claims, human, pages
from launch.report import write_report
from training import config as configs
from training.errors import UserError
from training.runs import Run, save_files
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


def test_a_run_scores_with_the_lexicon_that_it_saved(runs, tmp_path, monkeypatch, caplog):
    """The lexicon does not depend on today's data, except in a run of an earlier version, which saved none."""
    split = load_split("official", "toy")
    expected = scorer.load(runs / "factorized/0").score(split.dev2)
    monkeypatch.setattr(scorer, "open_knowledge", lambda data: 1 / 0)
    np.testing.assert_array_equal(scorer.load(runs / "factorized/0").score(split.dev2), expected)
    assert "lexicon" not in caplog.text
    monkeypatch.undo()
    shutil.copytree(runs / "factorized/0", tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "files")
    np.testing.assert_array_equal(scorer.load(tmp_path / "old").score(split.dev2), expected)
    assert "has saved no lexicon" in caplog.text


def test_another_sentence_encoder_is_refused(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "factorized/0", tmp_path / "run")
    contents = {name: Run(tmp_path / "run").file(name) for name in (complete.LEXICON,)} | {complete.ENCODER: b"abc"}
    shutil.rmtree(tmp_path / "run" / "files")
    save_files(tmp_path / "run", contents)
    monkeypatch.setattr(scorer.minilm, "fingerprint", lambda: "abc")
    scorer.load(tmp_path / "run")
    monkeypatch.setattr(scorer.minilm, "fingerprint", lambda: "abd")
    with pytest.raises(UserError, match="was trained with another MiniLM than the one that is installed"):
        scorer.load(tmp_path / "run")


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
    assert {"factorized", "dnn", *cells.REFERENCES} == set(official["arms"])
    for name in ("factorized", "dnn"):
        arm = official["arms"][name]
        assert arm["seeds"] == 2 and len(arm["test"]["accuracy"]["values"]) == 2
        assert sum(part["n"]["mean"] for part in arm["buckets"]["thirds by skipgram"]) == 198  # 200 // 3 * 3
    gap = official["compare"]["factorized - dnn"]["accuracy"]["all"]
    means = [official["arms"][name]["test"]["accuracy"]["mean"] for name in ("factorized", "dnn")]
    assert gap["mean"] == pytest.approx(means[0] - means[1]) and gap["low"] <= gap["mean"] <= gap["high"]
    assert official["arms"]["word PMI"]["test"]["accuracy"]["mean"] > 0.6  # toy facts are easy to count
    assert "human" not in official and "novelty_of_top" not in official  # the toy facts have no mined triples


def test_thirds_in_the_comparison_are_those_of_the_tables(results):
    """Paired thirds agree too, for both kinds of negatives; on official files they hold as many false as true triples."""
    for split in results.values():
        for kind, name in (("third", "thirds by skipgram"), ("paired third", "paired thirds by skipgram")):
            for k, part in enumerate(split["arms"]["dnn"]["buckets"][name], 1):
                for metric in ("f1", "balanced_accuracy", "auc", "ap"):
                    assert split["compare"]["dnn"][metric][f"{kind} {k}"]["mean"] == pytest.approx(part[metric]["mean"])
    shares = [
        [p["positives"]["mean"] for p in s["arms"]["dnn"]["buckets"]["paired thirds by skipgram"]] for s in results.values()
    ]
    assert shares[0] == [0.5] * 3 and shares[1] != shares[0] and all(0.3 < share < 0.7 for share in shares[1])


def test_max_arg_sim_and_both_arg_sims_are_their_own_arms(results):
    auc = {name: arm["test"]["auc"]["mean"] for name, arm in results["official"]["arms"].items()}
    assert auc["ArgSim (cosine)"] != auc["ArgSim (dot)"] and auc["seen"] > 0.6 and auc["phrase PMI"] > 0.6
    split = load_split("official", "toy")
    lexicon = Lexicon.build(*split)
    vectors = embeddings.word_vectors("skipgram", lexicon, split.train)
    parts = {"dev1": split.dev1, "test": split.test}
    scores = baselines.MaxSim(split.train, lexicon, vectors).score, baselines.ArgSim(lexicon, vectors).score
    whole = [np.concatenate([score(rows) for rows in parts.values()]) for score in scores]
    both = baselines.max_arg_sim(*whole, np.arange(len(whole[0])) < split.dev1.size)[split.dev1.size :]
    assert auc["MaxArgSim"] == pytest.approx(metrics.auc(both, split.test.label))


@pytest.fixture(scope="module")
def mined_data(tmp_path_factory):
    """The toy facts as files, with rated triples; no novel3000.tsv. 'zebra' is a word that train lacks."""
    folder, split = tmp_path_factory.mktemp("data"), load_split("official", "toy")
    for part, name in data.FILES.items():
        rows = getattr(split, part)
        lines = ("\t".join([*key, str(int(label))]) for key, label in zip(rows.keys(), rows.label, strict=True))
        (folder / name).write_text("\n".join(lines) + "\n")
    (folder / "wiki_mined").mkdir()
    rated = Triples.of(
        [*split.test.keys()[:90], *(("isa", f"zebra {i % 2}", tail) for i, tail in enumerate(split.test.tail[:20]))]
    )
    columns = {name: np.random.default_rng(i).integers(0, 5, rated.size) for i, name in enumerate(("rater1", "rater2"))}
    means = sum(columns.values()) / 2
    path = folder / "wiki_mined" / "human_scored_466.tsv"
    mining.write_mined(path, rated, **columns, mean=means, li_score=np.linspace(1, 0, rated.size))
    return folder


def test_mined_triples_that_are_there_are_studied(runs, mined_data, tmp_path, results):
    """Either file may be missing; completion stays what it is without them."""
    (tmp_path / "factorized").mkdir()
    shutil.copytree(runs / "factorized" / "0", tmp_path / "factorized" / "0")
    (official, redrawn) = study.study(tmp_path, str(mined_data)).values()
    assert official["human"]["n"] == 110 and official["human"]["unseen"] == official["unseen"]["human"] == 20
    rankings = official["human"]["rankings"]
    assert {"factorized", "seen", human.LI, f"factorized - {human.LI}"} <= set(rankings)
    assert "novelty_of_top" not in official and redrawn["human"]["raters"] == official["human"]["raters"]
    before = results["official"]["arms"]["factorized"]["test"]["accuracy"]["values"][0]
    assert official["arms"]["factorized"]["test"]["accuracy"]["values"] == [before]
    (tmp_path / "out").mkdir()
    pages.write({"official": official}, tmp_path / "out")
    assert (tmp_path / "out" / "7-mined-official.table.json").exists()


def test_tables_and_plot_make_a_report(results, tmp_path):
    pages.write(results, tmp_path)
    names = {path.name.removesuffix(".table.json") for path in tmp_path.glob("*.table.json")}
    assert {"1-completion", "2-thirds-official", "3-paired-thirds-redrawn", "3b-differences-redrawn", "4-claims",
            "4b-claims-in-detail", "5-embeddings", "5b-novelty-by-people", "7c-mined-published"} <= names  # fmt: skip
    json.dumps(study.for_json(results), allow_nan=False)
    page = write_report([tmp_path]).read_text()
    assert "The claims" in page and "data:image/png" in page
    rows = json.loads((tmp_path / "4-claims.table.json").read_text())["rows"]
    assert len(rows) == 5 and rows[1][3] == "not measured"  # there is no random split to claim it on
    assert rows[0][1] == "official, redrawn" and rows[0][3] in ("yes", "no", "not told apart")


def test_the_plot_shows_every_point_in_the_colour_of_its_model(tmp_path, monkeypatch):
    """Low points are inside the axes, and a model keeps its colour where others are missing."""
    from matplotlib import pyplot

    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    points = {"true": [[0.0, 0.9], [1, 0.1]], "false": [[0, 0.3], [1, 1.0]]}
    curves = {"official": {"curve": {"fusion": points, "dnn": points}}, "random": {"curve": {"dnn": points, "mine": points}}}
    pages.plot(curves, tmp_path / "a.png")
    first, second = pyplot.gcf().axes
    low, high = first.get_ylim()
    assert low < 0.1 and high > 1
    assert [line.get_color() for line in first.lines] == ["C0", "C0", "C2", "C2"]
    assert [line.get_color() for line in second.lines] == ["C2", "C2"]


def test_arms_with_other_numbers_of_seeds_are_said(results):
    fewer = {**results["official"], "arms": {**results["official"]["arms"]}}
    fewer["arms"]["dnn"] = {**fewer["arms"]["dnn"], "seeds": 1}
    assert "Arms differ in seeds (official: factorized 2, dnn 1)" in pages.completion({"official": fewer})["caption"]
    assert "Arms differ" not in pages.completion(results)["caption"]
    verdicts = [row[3] for row in claims.summary({"official": fewer})["rows"]]
    assert verdicts == ["one seed", "not measured", "not measured", "one seed", "not measured"]


def copy_run(runs, folder, arm="factorized/0", **changes):
    """A run of another arm, with some values of its config changed."""
    shutil.copytree(runs / arm, folder / arm)
    path = folder / arm / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config["data"][key] = value
    path.write_text(json.dumps(config))
    return folder / arm


def test_unfinished_runs_are_named_and_left_out(runs, tmp_path, capsys):
    for arm in ("factorized/0", "factorized/1", "dnn"):
        copy_run(runs, tmp_path, arm)
    (tmp_path / "dnn" / "run.json").write_text('{"status": "running"}')
    (tmp_path / "factorized" / "1" / "run.json").write_text('{"sta')
    (tmp_path / "notes").mkdir()
    assert study.find_arms(tmp_path) == {"factorized": [tmp_path / "factorized" / "0"]}
    output = capsys.readouterr().out
    assert f"not finished: {tmp_path / 'dnn'}" in output and f"not finished: {tmp_path / 'factorized' / '1'}" in output
    (tmp_path / "factorized" / "0" / "run.json").unlink()
    for folder, message in ((tmp_path, "no finished"), (tmp_path / "none", "no folder")):
        with pytest.raises(UserError, match=message):
            study.find_arms(folder)


def test_a_run_counts_on_the_splits_that_it_was_selected_on(runs, tmp_path):
    """A run of 'official' alone is no arm of 'redrawn'; negatives have the seed of the runs, which must be one."""
    copy_run(runs, tmp_path, "factorized/0", splits=["official"], seed=3)
    copy_run(runs, tmp_path, "dnn", seed=3)
    arms = study.find_arms(tmp_path)
    assert study.runs_of_split("redrawn", arms) == ({"dnn": [tmp_path / "dnn"]}, 3)
    assert set(study.runs_of_split("official", arms)[0]) == {"factorized", "dnn"}
    assert study.runs_of_split("random", arms) == ({}, 0)
    copy_run(runs, tmp_path, "factorized/1", seed=4)
    with pytest.raises(UserError, match=r"several config.data.seed: .*factorized/1"):
        study.runs_of_split("redrawn", study.find_arms(tmp_path))
    path = tmp_path / "dnn" / "config.json"
    path.write_text(path.read_text().replace("kbc_jax.complete", "sgi.pretrain"))
    with pytest.raises(UserError, match=r"dnn is a run of sgi.pretrain"):
        study.runs_of_split("official", study.find_arms(tmp_path))


def test_results_go_to_a_folder_that_can_be_made(runs, tmp_path):
    (tmp_path / "file").write_text("")
    for main in (study.main, link.main):
        with pytest.raises(UserError, match="cannot make the folder"):
            main([str(runs), "--out", str(tmp_path / "file" / "out"), "--data", "toy"])


def test_link_prediction_of_all_arms(runs, tmp_path):
    command = [str(runs), "--out", str(tmp_path), "--limit", "10", "--data", "toy"]
    link.main([*command, "--seeds", "1"])
    links = json.loads((tmp_path / "links.json").read_text())
    assert set(links) == {"factorized", "dnn"} and links["dnn"]["test"] == 10
    link.main([*command, "--arms", "factorized", "--seeds", "2"])
    links = json.loads((tmp_path / "links.json").read_text())
    assert [len(links[arm]["measures"]["mean mrr"]["values"]) for arm in ("factorized", "dnn")] == [2, 1]
    assert 0 < links["factorized"]["measures"]["mean mrr"]["mean"] < 1
    rows = json.loads((tmp_path / "9-links.table.json").read_text())["rows"]
    assert [row[:3] for row in rows[:2]] == [["factorized (CN-100K), ours", 2, 10], ["dnn (CN-100K), ours", 1, 10]]
    for text in ("{", "[]", '{"dnn": 1}', '{"dnn": {"test": 1}}'):
        (tmp_path / "links.json").write_text(text)
        with pytest.raises(UserError, match=r"links\.json.*remove it"):
            link.main(command)
    with pytest.raises(UserError, match=r"no finished run of fusion .*factorized"):
        link.main([*command[:2], str(tmp_path / "new"), "--arms", "fusion"])


def test_arms_that_saw_the_test_triples_are_not_ranked(runs, tmp_path):
    copy_run(runs, tmp_path, "dnn")
    shutil.copytree(tmp_path / "dnn", tmp_path / "dnn_random")
    with pytest.raises(UserError, match="dnn_random learnt from test triples"):
        link.main([str(tmp_path), "--out", str(tmp_path / "out"), "--arms", "dnn_random", "--data", "toy"])
    link.main([str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "1", "--limit", "2", "--data", "toy"])
    assert set(json.loads((tmp_path / "out" / "links.json").read_text())) == {"dnn"}


def test_mined_triples_are_scored_and_walked_through(runs, tmp_path):
    split = load_split("official", "toy")
    candidates, scored, walked = (tmp_path / f"{name}.tsv" for name in ("candidates", "scored", "walked"))
    mining.write_mined(candidates, split.test, count=np.arange(split.test.size))
    mine.main(["score", "--run", str(runs / "dnn"), "--candidates", str(candidates), "--out", str(scored)])
    triples, columns = mining.read_mined(scored)
    assert (np.diff(columns["score"]) <= 0).all()
    expected = dict(zip(split.test.keys(), scorer.load(runs / "dnn").score(split.test).mean(0), strict=True))
    np.testing.assert_allclose(columns["score"], [expected[key] for key in triples.keys()], rtol=1e-4)  # noqa: SIM118
    mine.main(["walk", "--scored", str(scored), "--out", str(walked), "--data", "toy", "--cuts", "0.5", "1", "--top", "7"])
    _, columns = mining.read_mined(walked)
    for bucket, (low, high) in enumerate(((0, 0.5), (0.5, 1), (1, np.inf))):
        mine_ = columns["bucket"] == bucket
        assert mine_.sum() <= 7
        assert ((columns["novelty"][mine_] >= low) & (columns["novelty"][mine_] < high)).all()
    with pytest.raises(UserError, match=r"must increase, not 1, 0\.5"):
        mine.main(["walk", "--scored", str(scored), "--out", str(walked), "--data", "toy", "--cuts", "1", "0.5"])
    with pytest.raises(UserError, match="takes 'thirds', 'omcs' or rising numbers, not 'halves'"):
        mine.main(["walk", "--scored", str(scored), "--out", str(walked), "--data", "toy", "--cuts", "halves"])


def test_a_walk_cuts_its_candidates_into_thirds(tmp_path, capsys):
    split = load_split("official", "toy")
    scored, walked = tmp_path / "scored.tsv", tmp_path / "walked.tsv"
    mining.write_mined(scored, split.test, score=np.arange(split.test.size))
    command = ["walk", "--scored", str(scored), "--out", str(walked), "--data", "toy", "--top", "1000"]
    mine.main(command)
    _, columns = mining.read_mined(walked)
    assert np.bincount(columns["bucket"].astype(int)).tolist() == pytest.approx([67, 67, 66], abs=12)  # equal novelties
    capsys.readouterr()
    mine.main([*command, "--cuts", "omcs"])
    assert "novelty cuts: 3.220, 4.310" in capsys.readouterr().out


def test_the_novelty_study_goes_from_sheet_to_table(tmp_path, capsys):
    """Rows of train are never their own nearest triple; a sheet filled with codes makes the table."""
    sheet, key = tmp_path / "sheet.tsv", tmp_path / "key.json"
    mine.main(
        [
            "novelty_sheet",
            "--of",
            "train",
            "--rows",
            "12",
            "--nearest",
            "2",
            "--out",
            str(sheet),
            "--key",
            str(key),
            "--data",
            "toy",
        ]
    )
    lines = sheet.read_text().splitlines()
    rows = [i for i, line in enumerate(lines) if not line.startswith("#")][1:]
    assert len(rows) == 12
    for number, i in enumerate(rows):
        _, statement, nearest, code = lines[i].split("\t")
        assert statement not in (shown := nearest.split(" | ")) and not code
        assert len(shown) >= 2, "the two nearest pairs of head and tail, each with all its relations"
        lines[i] += "14"[number % 2]
    sheet.write_text("\n".join(lines) + "\n")
    mine.main(["novelty_table", str(sheet), "--key", str(key)])
    shown = capsys.readouterr().out
    assert "kept: 12" in shown and "A 50%" in shown and "F 50%" in shown and "mean: 2.5" in shown
