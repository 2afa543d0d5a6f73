"""Rating sheets there and back, agreement and tables: against hand-computed numbers and the published ratings."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from kbc_jax import mine
from kbc_jax.facts.data import RELATIONS, Triples
from kbc_jax.mining import candidates, ratings
from training.errors import UserError

NAN = float("nan")
RANKED = {
    "dnn": Triples.of([("isa", "dog", "pet"), ("capableof", "dog", "bark"), ("usedfor", "pen", "write")]),
    "factorized": Triples.of([("capableof", "dog", "bark"), ("atlocation", "ship", "sea"), ("isa", "dog", "pet")]),
}


def export(folder: Path, **options) -> list[str]:
    best = {name: ranked.take([0, 1]) for name, ranked in RANKED.items()}
    ratings.export_sheet(best, folder / "sheet.tsv", folder / "key.json", **options)
    return (folder / "sheet.tsv").read_text().splitlines()


def fill(lines: list[str], marks: dict[str, str]) -> str:
    """The sheet with the mark of each statement in the last column."""
    filled = [line + marks.get(line.split("\t")[1], "") if "\t" in line else line for line in lines]
    return "\n".join(filled) + "\n"


def test_every_relation_can_be_read():
    assert ratings.statement(("capableof", "dog", "bark")) == "dog is capable of: bark"
    sentences = {ratings.statement((relation, "x", "y")) for relation in RELATIONS}
    assert len(sentences) == len(RELATIONS) == 34


def test_sheet_hides_the_models_and_its_key_tells_them(tmp_path):
    lines = export(tmp_path)
    text = "\n".join(lines)
    assert "dnn" not in text and "factorized" not in text and "4 = true" in text
    rows = [line.split("\t") for line in lines if "\t" in line]
    assert rows[0] == ["id", "statement", "rating"]
    assert {row[1] for row in rows[1:]} == {"dog is a kind of: pet", "dog is capable of: bark", "ship is found at: sea"}
    assert len(rows) == 4 and all(row[2] == "" for row in rows[1:])
    key = json.loads((tmp_path / "key.json").read_text())["rows"]
    places = {row["triple"][2]: row["models"] for row in key.values()}
    assert places == {"pet": {"dnn": 1}, "bark": {"dnn": 2, "factorized": 1}, "sea": {"factorized": 2}}
    assert export(tmp_path) == lines, "the same seed shuffles the same way"
    orders = {tuple(export(tmp_path, seed=seed)) for seed in range(10)}
    assert len(orders) > 3 and {tuple(sorted(order)) for order in orders} == {tuple(sorted(lines))}


def test_filled_sheets_come_back(tmp_path):
    lines = export(tmp_path)
    (tmp_path / "anna.tsv").write_text(fill(lines, {"dog is a kind of: pet": "4", "ship is found at: sea": " 3.0 "}))
    rows = [line for line in fill(lines, {"dog is a kind of: pet": "1"}).splitlines() if "ship" not in line]
    spreadsheet = ['"' + line + '"' if line.startswith("#") else line.rstrip("\t") for line in rows]
    (tmp_path / "ben.tsv").write_bytes("\ufeff".encode() + "\r\n".join([*spreadsheet, "\t\t"]).encode())
    filled = ratings.import_sheets([tmp_path / "anna.tsv", tmp_path / "ben.tsv"], tmp_path / "key.json")
    assert filled.raters == ("anna", "ben") and filled.triples.tail == ("pet", "bark", "sea")
    np.testing.assert_array_equal(filled.values, [[4, NAN, 3], [1, NAN, NAN]])
    assert filled.models["dnn"].tolist() == [True, True, False] and filled.models["factorized"].tolist() == [False, True, True]
    means = ratings.model_means(filled)
    assert means["dnn"]["mean"] == 2.5 and means["factorized"]["mean"] == 3 and means["dnn"]["n"] == 1


def test_mistakes_in_a_sheet_name_file_and_line(tmp_path):
    lines = export(tmp_path)
    first = next(i for i, line in enumerate(lines) if line.startswith("t"))
    path, key = tmp_path / "anna.tsv", tmp_path / "key.json"
    for number, line, message in [
        (first, lines[first] + "5", "'5' is none of 0, 1, 2, 3, 4"), (first, lines[first] + "2.5", "'2.5'"),
        (first, lines[first] + "good", "'good'"), (first, lines[first] + "nan", "'nan'"),
        (first, "t123\tx\t1", "no row 't123'"),
        (first + 1, lines[first], f"already on line {first + 1}"), (first - 1, "id\tx\ty", "header"),
    ]:  # fmt: skip
        path.write_text("\n".join([*lines[:number], line, *lines[number + 1 :]]))
        with pytest.raises(UserError, match=rf"anna\.tsv line {number + 1}: .*{message}"):
            ratings.import_sheets([path], key)
    path.write_text("\n".join(lines))
    for sheets, wrong, message in [
        ([path, path], key, "differ"), ([tmp_path / "no.tsv"], key, "no.tsv"),
        ([path], tmp_path / "no.json", "cannot read .*no.json"), ([path], path, "is not valid JSON.*together with the sheet"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            ratings.import_sheets(sheets, wrong)
    with pytest.raises(UserError, match="dnn is rated"):
        ratings.model_means(ratings.import_sheets([path], key))


def test_agreement_by_hand():
    a, b = np.array([0, 0, 1, 1, 4, NAN, 2]), np.array([0, 1, 1, 1, 3, 3, NAN])
    measures = ratings.agreement(a, b)
    x, y = a[:5], b[:5]
    assert measures["n"] == 5 and measures["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    # 3 of 5 agree; by chance (0: 2*1 + 1: 2*3) / 25 = 0.32
    assert measures["kappa"] == pytest.approx((0.6 - 0.32) / (1 - 0.32))
    chance = np.mean([(i - j) ** 2 for i in x for j in y])
    assert measures["quadratic_kappa"] == pytest.approx(1 - np.mean((x - y) ** 2) / chance)
    assert measures["spearman"] == pytest.approx(np.corrcoef([1.5, 1.5, 3.5, 3.5, 5], [1, 3, 3, 3, 5])[0, 1])
    assert ratings.agreement(x, x)["kappa"] == 1
    assert all(np.isnan(v) for k, v in ratings.agreement(np.ones(3), np.ones(3)).items() if k != "n")
    with pytest.raises(UserError, match="there are 1"):
        ratings.agreement(np.array([1, NAN]), np.array([1.0, 2]))


def test_bootstrap_of_a_model_mean():
    rng = np.random.default_rng(0)
    values = rng.integers(5, size=(2, 400)).astype(float)
    triples = Triples.of([("isa", str(i), "x") for i in range(400)])
    member = np.arange(400) < 300
    row = ratings.model_means(ratings.Ratings(("a", "b"), triples, values, {"m": member}))["m"]
    each = values[:, :300].mean(0)
    error = each.std() / np.sqrt(300)
    assert row["n"] == 300 and row["mean"] == pytest.approx(each.mean())
    assert row["error"] == pytest.approx(error, rel=0.06)
    assert [row["low"], row["high"]] == pytest.approx([each.mean() - 1.96 * error, each.mean() + 1.96 * error], abs=0.02)


def test_novelty_sheet_there_and_back(tmp_path):
    triples, near = RANKED["dnn"], RANKED["factorized"]
    nearest = [near.take([0, 1]), near.take([2]), near.take([1])]
    paths = tmp_path / "sheet.tsv", tmp_path / "key.json"
    assert ratings.export_novelty_sheet(triples, nearest, np.array([0.5, 2.5, 1.0]), *paths) == 3
    lines = paths[0].read_text().splitlines()
    row = next(line.split("\t") for line in lines if "\tdog is a kind of: pet\t" in line)
    assert row[2:] == ["dog is capable of: bark | ship is found at: sea", ""] and "0.5" not in paths[0].read_text()
    paths[0].write_text(fill(lines, {"dog is a kind of: pet": "7", "pen is used for: write": "0"}))
    filled = ratings.import_novelty_sheet(*paths)
    assert filled.triples.keys() == triples.keys() and filled.novelty.tolist() == [0.5, 2.5, 1.0]
    assert filled.codes.tolist() == [7, -1, 0]
    with pytest.raises(UserError, match="novelty sheet, not of a quality"):
        ratings.import_sheets([paths[0]], paths[1])
    paths[0].write_text(fill(lines, {"dog is a kind of: pet": "8"}))
    with pytest.raises(UserError, match="'8' is none of 0, 1, 2, 3, 4, 5, 6, 7"):
        ratings.import_novelty_sheet(*paths)


def test_novelty_table_orders_the_codes_from_old_to_new():
    codes = np.array([1, 4, 5, 1, 2, 3, 7, 6, 0, -1])
    novelty = np.array([0.1, 9, 3, 0.2, 4, 1, 2, 8, 8, 8.0])
    table = ratings.novelty_summary(codes, novelty)
    scale = [0, 5, 4, 0, 1, 2, 3]  # by novelty: 0, 0, 2 | 3, 4, 1, 5
    assert (table["sampled"], table["kept"]) == (10, 7)
    assert table["shares"] == pytest.approx(dict(zip("ABCDEF", [2 / 7] + [1 / 7] * 5, strict=True)))
    assert [table["mean"], table["mean_near"], table["mean_far"]] == pytest.approx([15 / 7, 2 / 3, 13 / 4])
    assert table["pearson"] == pytest.approx(np.corrcoef(scale, novelty[:7])[0, 1])
    with pytest.raises(UserError, match="there are 1"):
        ratings.novelty_summary(np.array([1, 6, -1]), np.ones(3))


def test_published_ratings_of_mined_triples():
    if not (root := os.environ.get("QUINTET_DATA")):
        pytest.skip("QUINTET_DATA is not set: no rated triples")
    triples, columns = candidates.read_mined(Path(root) / "conceptnet100k" / "wiki_mined" / "human_scored_466.tsv")
    first, second = columns["rater1"], columns["rater2"]
    np.testing.assert_allclose((first + second) / 2, columns["mean"])
    assert [first.mean(), second.mean()] == pytest.approx([2.51, 2.40], abs=0.005)
    measures = ratings.agreement(first, second)
    assert measures["n"] == triples.size == 466 and measures["pearson"] == pytest.approx(0.505, abs=5e-4)
    assert 0.2 < measures["kappa"] < measures["quadratic_kappa"] < measures["pearson"] + 1e-9


def test_command_line_from_scores_to_agreement(tmp_path, capsys):
    for name, ranked in RANKED.items():
        candidates.write_mined(tmp_path / f"{name}.tsv", ranked.take([2, 0, 1]), score=[0.1, 0.9, 0.5])
    scored = [f"{name}={tmp_path}/{name}.tsv" for name in RANKED]
    files = ["--out", f"{tmp_path}/sheet.tsv", "--key", f"{tmp_path}/key.json"]
    mine.main(["sheet", "--scored", *scored, *files, "--top", "2"])
    assert (tmp_path / "sheet.tsv").read_text().splitlines() == export(tmp_path)
    lines = export(tmp_path)
    marks = ["dog is a kind of: pet", "dog is capable of: bark", "ship is found at: sea"]
    for rater, values in (("anna", "410"), ("ben", "43")):
        (tmp_path / f"{rater}.tsv").write_text(fill(lines, dict(zip(marks, values, strict=False))))
    capsys.readouterr()
    mine.main(["agreement", "--key", f"{tmp_path}/key.json", f"{tmp_path}/anna.tsv", f"{tmp_path}/ben.tsv"])
    printed = capsys.readouterr().out
    assert "anna: 3 of 3" in printed and "ben: 2 of 3" in printed and "anna - ben: n 2, pearson 1," in printed
    assert "dnn: mean 3.00" in printed and "factorized: mean 1.00" in printed
    with pytest.raises(UserError, match="NAME=FILE"):
        mine.main(["sheet", "--scored", *scored, scored[0], *files])
    with pytest.raises(UserError, match="4 of the best 4 of 3 triples"):
        mine.main(["sheet", "--scored", *scored, *files, "--top", "4"])
    candidates.write_mined(tmp_path / "dnn.tsv", RANKED["dnn"], count=[1, 2, 3])
    with pytest.raises(UserError, match=r"dnn\.tsv has no column score.*count"):
        mine.main(["sheet", "--scored", *scored, *files])


def key_models(folder: Path) -> dict[str, dict[str, int]]:
    """{tail: {model: place}} of a key."""
    rows = json.loads((folder / "key.json").read_text())["rows"].values()
    return {row["triple"][2]: row["models"] for row in rows}


def test_the_buckets_of_a_walk_are_models_of_their_own(tmp_path):
    """A bucket with fewer triples than asked for gives what it has; the best of each come first."""
    triples = Triples.of([("isa", "x", f"t{i}") for i in range(6)])
    columns = {"score": [6, 5, 4, 3, 2, 1], "bucket": [0, 1, 0, 2, 0, 2]}
    candidates.write_mined(tmp_path / "walk.tsv", triples, **columns)
    candidates.write_mined(tmp_path / "plain.tsv", triples, score=[1, 2, 3, 4, 5, 6])
    scored = [f"dnn={tmp_path}/walk.tsv", f"li={tmp_path}/plain.tsv"]
    files = ["--out", f"{tmp_path}/sheet.tsv", "--key", f"{tmp_path}/key.json"]
    mine.main(["sheet", "--scored", *scored, *files, "--top", "2"])
    assert key_models(tmp_path) == {
        "t0": {"dnn/0": 1}, "t2": {"dnn/0": 2}, "t1": {"dnn/1": 1}, "t3": {"dnn/2": 1}, "t5": {"dnn/2": 2, "li": 1},
        "t4": {"li": 2},
    }  # fmt: skip
    with pytest.raises(UserError, match="NAME=FILE"):
        mine.main(["sheet", "--scored", *scored, f"dnn={tmp_path}/plain.tsv", *files, "--top", "2"])


def test_a_sheet_may_draw_from_the_best(tmp_path):
    triples = Triples.of([("isa", "x", f"t{i}") for i in range(60)])
    candidates.write_mined(tmp_path / "a.tsv", triples, score=range(60, 0, -1))
    files = ["--out", f"{tmp_path}/sheet.tsv", "--key", f"{tmp_path}/key.json"]
    mine.main(["sheet", "--scored", f"a={tmp_path}/a.tsv", *files, "--top", "10", "--from", "40"])
    drawn = {int(tail[1:]) for tail in key_models(tmp_path)}
    assert len(drawn) == 10 and max(drawn) < 40 and max(drawn) > 15, "ten of the best forty"
    theirs = 39 - np.random.RandomState(777).choice(40, 10, replace=False)
    assert drawn == set(theirs.tolist())


def test_keys_that_are_none(tmp_path):
    export(tmp_path)
    key = json.loads((tmp_path / "key.json").read_text())
    first = next(iter(key["rows"]))
    for content in ("[]", "{", json.dumps({"kind": "quality"}), json.dumps({"kind": "x", "rows": {}}),
                    json.dumps({**key, "rows": {**key["rows"], first: {"triple": []}}})):  # fmt: skip
        (tmp_path / "key.json").write_text(content)
        with pytest.raises(UserError, match=r"key\.json.*written together with the sheet"):
            ratings.import_sheets([tmp_path / "sheet.tsv"], tmp_path / "key.json")
    for place, message in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file")):
        with pytest.raises(UserError, match=message):
            ratings.import_sheets([tmp_path / "sheet.tsv"], place)
