"""launch.report: what the page says, that it stands alone, and what it does with damaged input."""

import base64
import json
import math
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from launch.report.__main__ import main
from launch.report.data import gather

VOID = {"meta", "link", "img", "br"}
LOADING = {"src", "href", "srcset", "data", "poster", "action", "xlink:href"}


class Page(HTMLParser):
    """Parses a page strictly: elements must nest. Keeps the elements and the text inside each kind of element."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.elements, self.texts, self.open = [], {}, []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.texts.setdefault(name, []).append("")
            self.open.append((name, len(self.texts[name]) - 1))

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop()[0] == name

    def handle_data(self, text):
        for name, index in self.open:
            self.texts[name][index] += text

    def of(self, name, cls=None):
        return [a for n, a in self.elements if n == name and (cls is None or cls in (a.get("class") or "").split())]

    @property
    def charts(self):
        return [json.loads(t) for t in self.texts.get("script", [])[:-1]]


def make_run(path, rows=(), config=None, tail="", **info):
    path.mkdir(parents=True)
    (path / "config.json").write_text(
        json.dumps({"method": "m", "seed": 0, "steps": 100, "optim": {"lr": 0.1}} | (config or {}))
    )
    (path / "run.json").write_text(json.dumps({"name": path.name, "status": "done", "seconds": 50.0} | info))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def rows(name="eval/score", values=(1.0, 2.0), every=50):
    return [{"step": every * (i + 1), "seconds": 1.0 * i, name: value} for i, value in enumerate(values)]


def report(folder, *more):
    main([str(folder), *more])
    return Page(folder / "report.html")


def test_one_run_is_summed_up_and_its_path_printed(tmp_path, capsys):
    run = make_run(tmp_path / "pong", rows(values=(1.0, 7.25)), parameters=4_123_456, flops_per_step=2e9, compile_seconds=3.5)
    page = report(run)
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert page.texts["h1"] == ["pong"]
    values = [text for text in page.texts["div"] if text.startswith(("Status", "Steps", "Parameters", "score", "Wall"))]
    assert {"Statusdone", "Steps100 of 100", "Wall time50 s", "Steps/s2", "Parameters4.123M", "score7.25"} <= set(values)
    assert "4G" in page.texts["td"], "2e9 FLOP/step at 2 steps/s"
    assert not page.of("button"), "no legend for one arm"


def test_page_loads_nothing_from_outside(tmp_path):
    run = make_run(tmp_path / "run", [*rows(), {"step": 100, "eval/view": {"image": "media/a.png"}}])
    (run / "media").mkdir()
    Image.new("RGB", (8, 8), "red").save(run / "media/a.png")
    page = report(run)
    for _, attributes in page.elements:
        for key in LOADING & attributes.keys():
            assert attributes[key].startswith(("data:", "#")), attributes
    assert not re.search(r"https?://|url\(|@import|\bimport\b|fetch\(|XMLHttpRequest", page.source)
    assert any("default-src 'none'" in a.get("content", "") for a in page.of("meta"))
    assert page.of("img")[0]["src"] == "data:image/png;base64," + base64.b64encode((run / "media/a.png").read_bytes()).decode()


def test_layout_is_fit_for_phones_and_dark_rooms(tmp_path):
    page = report(make_run(tmp_path / "run", rows()))
    (style,) = page.texts["style"]
    assert any(a.get("name") == "viewport" and "width=device-width" in a["content"] for a in page.of("meta"))
    narrow = style[style.index("@media (max-width: 640px)") :]
    assert ".charts { grid-template-columns: minmax(0, 1fr); }" in narrow
    assert "prefers-color-scheme: dark" in style
    assert ".scroll { overflow-x: auto" in style
    tables = sum(name == "table" for name, _ in page.elements)
    assert tables and len(page.of("div", "scroll")) == tables, "each table scrolls in a box of its own"
    assert all("viewbox" in a and "width" not in a for a in page.of("svg"))


def test_names_are_data_and_not_markup(tmp_path):
    evil = "<script>alert(1)</script>&\"'"
    row = {"step": 1, f"eval/{evil}": 1.0, f"train/{evil}": 2.0, "eval/x": {"image": f"media/{evil}.png"}}
    run = make_run(
        tmp_path / "group" / "<b>run", [row], {"note": evil}, name=evil, status=f"failed: {evil}", command=["a b", evil]
    )
    make_run(tmp_path / "group" / "other", [row], {"note": "</script>"})
    (run.parent / "t.table.json").write_text(json.dumps({"title": evil, "columns": [evil], "rows": [[evil]]}))
    page = report(run.parent, "--title", evil)
    assert page.texts["h1"] == [evil]
    assert "alert(1)</script>" not in page.source and "<b>run" not in page.source
    assert len(page.of("script")) == len(page.charts) + 1 == 3
    assert page.charts[0]["series"][0]["name"] == f"note={evil}"
    assert "# <b>run\npython" not in page.source and "'a b' '<script>alert(1)</script>&\"'\"'\"''" in page.texts["pre"][0]


def test_seeds_form_one_arm_with_mean_and_spread(tmp_path):
    for lr in (0.1, 0.2):
        for seed, last in enumerate((1.0, 2.0, 6.0)):
            config = {"seed": seed, "optim": {"lr": lr}, "init_from": f"runs/pre/seed{seed}", "data_dir": f"/data/{seed}"}
            make_run(tmp_path / f"lr{lr}" / f"seed{seed}", rows(values=(0.0, last * lr)), config)
    page = report(tmp_path)
    assert [s["name"] for s in page.charts[0]["series"]] == ["lr=0.1", "lr=0.2"]
    first = page.charts[0]["series"][0]
    assert (first["x"], first["y"], first["low"], first["high"], first["n"]) == (
        [50, 100],
        [0, 0.3],
        [0, 0.1],
        [0, 0.6],
        [3, 3],
    )
    # t(0.975, 2) = 4.30265; the standard deviation of 0.1, 0.2, 0.6 is 0.264575
    half = 4.30265 * 0.264575 / math.sqrt(3)
    assert f"0.30 ± {half:.2f} (n=3)" in page.texts["td"]
    assert len(page.of("path", "band")) == 2 and len(page.of("button")) == 2
    assert "from the least to the greatest seed" in page.source
    assert [t for t in page.texts["table"] if t.startswith("optim.lr")] or "optim.lr" in page.texts["th"]


def test_runs_of_earlier_versions_join_the_arm_of_todays(tmp_path):
    for name, config in (("old", {"init_from": "pre/s0"}), ("new", {"sources": {"init": "pre/s1"}, "seed": 1})):
        make_run(tmp_path / name, rows(), config)
    make_run(tmp_path / "scratch", rows(), {"sources": {"init": ""}})
    assert [s["name"] for s in report(tmp_path).charts[0]["series"]] == ["init=pre/s*", "init="]


def test_run_without_a_config_is_named_by_its_directory(tmp_path):
    for name in ("a", "b"):
        (make_run(tmp_path / name, rows()) / "config.json").unlink()
    assert [s["name"] for s in report(tmp_path).charts[0]["series"]] == ["a", "b"]


def test_population_counts_as_seeds(tmp_path):
    page = report(make_run(tmp_path / "pop", rows("eval/score", ([1.0, 3.0], [2.0, None]))))
    series = page.charts[0]["series"][0]
    assert (series["y"], series["low"], series["high"], series["n"]) == ([2, 2], [1, 2], [3, 2], [2, 1])
    assert any("n=1 of 2" in text for text in page.texts["b"])


def test_not_a_number_is_a_gap_and_is_counted(tmp_path):
    values = (1.0, float("nan"), 3.0, float("inf"), 5.0, 6.0)
    run = make_run(tmp_path / "run", [*rows("train/loss", values), *rows("train/dead", (float("nan"),))])
    page = report(run)
    loss = page.charts[0]["series"][0]
    assert loss["y"] == [1, None, 3, None, 5, 6]
    assert "2 values not finite" in page.texts["figcaption"][0]
    lines = [a["d"] for a in page.of("path", "line")]
    assert len(lines) == 1 and lines[0].count("M") == 1, "one stroke from 5 to 6; 1 and 3 are lone points"
    assert not re.search(r"\bnan\b|\binf\b", " ".join(str(a) for n, a in page.elements if n in ("path", "circle", "line")))
    assert "No finite value." in page.texts["figure"][1]


def test_long_curves_are_thinned_but_keep_their_spikes(tmp_path):
    many = [{"step": i, "eval/x": 100.0 if i == 7777 else i % 3} for i in range(20_000)]
    series = report(make_run(tmp_path / "run", many)).charts[0]["series"][0]
    assert len(series["x"]) < 600 and series["x"][0] == 0 and series["x"][-1] == 19_999
    assert 100 in series["y"]


def test_log_scale_is_for_losses_over_two_decades(tmp_path):
    many = [{"step": s, "train/loss": 10.0**-s, "train/small_loss": 1 + s, "eval/score": 10.0**s} for s in range(4)]
    page = report(make_run(tmp_path / "run", many))
    logs = {name: chart["y"][4] for name, chart in zip(page.texts["h4"], page.charts, strict=True)}
    assert logs == {"score": 0, "loss": 1, "small_loss": 0}
    assert {"1", "0.1", "0.01", "0.001"} <= set(page.texts["text"])


def test_charts_are_grouped_eval_then_train_then_time(tmp_path):
    row = {"step": 1, "time/steps_per_second": 2.0, "policy/x": 1.0, "train/loss": 1.0, "eval/score": 1.0}
    page = report(make_run(tmp_path / "run", [row]))
    assert page.texts["h4"] == ["score", "loss", "x", "steps_per_second steps/s"]
    assert [t for t in page.texts["h3"] if t in ("Evaluation", "Training", "policy", "Speed")] == [
        "Evaluation",
        "Training",
        "policy",
        "Speed",
    ]


@pytest.mark.parametrize("tail", ['{"step": 150, "eval/sc', "[]\n", '{"step": 150, "eval/score": 3.0'])
def test_torn_last_line_is_left_out(tmp_path, tail):
    page = report(make_run(tmp_path / "run", rows(), tail=tail))
    assert page.charts[0]["series"][0]["x"] == [50, 100]


def test_line_torn_inside_a_character(tmp_path):
    run = make_run(tmp_path / "run", rows())
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 150, "eval/é'.encode()[:-1])
    assert report(run).charts[0]["series"][0]["x"] == [50, 100]


def test_repeated_step_takes_the_later_row(tmp_path):
    page = report(make_run(tmp_path / "run", [*rows(values=(1.0, 2.0)), *rows(values=(9.0,))]))
    assert page.charts[0]["series"][0]["y"] == [9, 2]


def test_what_is_neither_train_nor_time_is_an_evaluation(tmp_path):
    for lr in (1, 2):
        row = {"step": 1, "eval/score": 3.0 * lr, "probe/f1": 0.5 * lr, "train/loss": 4.0, "time/steps_per_second": 5.0}
        make_run(tmp_path / str(lr), [row], {"optim": {"lr": lr}}, status="stopped")
    page = report(tmp_path)
    assert page.texts["table"][0] == "scoreprobe/f1lr=130.5lr=261"
    assert page.of("span", "stopped")


def test_run_without_metrics_renders_with_a_note(tmp_path):
    run = make_run(tmp_path / "run", status="running")
    (run / "metrics.jsonl").unlink()
    page = report(run)
    assert any("no metrics yet" in text for text in page.texts["p"])
    assert not page.charts


def test_which_folders_are_runs(tmp_path):
    (tmp_path / "sweep" / "waiting").mkdir(parents=True)
    for folder in ("sweep", "sweep/waiting"):
        (tmp_path / folder / "config.json").write_text("{}")
    make_run(tmp_path / "sweep" / "deep" / "er" / "run", rows())
    make_run(tmp_path / "sweep" / "deep" / "er" / "run" / "inside", rows())
    assert sorted(run.label for run in gather([tmp_path / "sweep"]).runs) == ["deep/er/run", "waiting"]


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("run.json", "", "run.json is not valid JSON"),
        ("config.json", "[1]", "must hold a JSON object"),
        ("metrics.jsonl", '{"step": 1}\ntorn\n{"step": 2}\n', "line 2 is not a metrics row"),
        ("metrics.jsonl", '{"loss": 1}\n{"step": 2}\n', "line 1 is not a metrics row"),
        ("x.table.json", '{"columns": ["a"], "rows": [[1, 2]]}', "row 0 must be a list of 1 values"),
        ("x.table.json", '{"title": "t"}', "needs the lists"),
    ],
)
def test_damaged_files_end_in_one_line_and_exit_code_2(tmp_path, refusal, file, text, words):
    run = make_run(tmp_path / "run", rows())
    (run / file).write_text(text)
    assert words in refusal(main, run)
    assert not (run / "report.html").exists()


def test_wrong_folders_end_in_one_line_and_exit_code_2(tmp_path, refusal):
    assert "is not a folder" in refusal(main, tmp_path / "absent")
    assert "holds no run (no run.json, metrics.jsonl or config.json at any depth)" in refusal(main, tmp_path)
    run = make_run(tmp_path / "run", rows())
    assert "--out" in refusal(main, run, "--out", tmp_path / "no" / "such.html")
    (tmp_path / "folder").mkdir()
    assert "--out" in refusal(main, run, "--out", tmp_path / "folder")
    assert not list(tmp_path.glob(".*")), "no draft left behind"


def test_several_folders_out_and_title(tmp_path):
    a, b = (make_run(tmp_path / n / "run", rows(), {"optim": {"lr": lr}}) for n, lr in (("a", 1), ("b", 2)))
    out = tmp_path / "all.html"
    main([str(a), str(b), str(a), "--out", str(out), "--title", "Both"])
    page = Page(out)
    assert page.texts["title"] == ["Both"] and len(page.charts[0]["series"]) == 2
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["all.html"], "no draft left behind"


def test_last_pictures_are_embedded_and_odd_ones_are_noted(tmp_path, monkeypatch):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    media = {
        "eval/gif": {"video": "media/b.gif"},
        "eval/gone": {"image": "media/gone.png"},
        "eval/bad": {"image": "media/bad.png"},
    }
    media |= {
        "eval/out": {"image": "../secret.png"},
        "eval/big": {"image": "media/big.png"},
        "eval/clip": {"video": "media/c.mp4"},
    }
    run = make_run(tmp_path / "run", [{"step": 1, "eval/gif": {"video": "media/a.gif"}}, {"step": 20, **media}])
    (run / "media").mkdir()
    Image.new("RGB", (84, 84)).save(run / "media/b.gif", save_all=True, append_images=[Image.new("RGB", (84, 84), "red")])
    (run / "media/a.gif").write_bytes(b"GIF89a an older one")
    (run / "media/bad.png").write_text("not a picture")
    (run / "media/c.mp4").write_bytes(b"\0\0\0\x18ftypisom")
    (run / "media/big.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(5000))
    monkeypatch.setattr("launch.report.media.FILE_BYTES", 4000)
    page = report(run)
    (image,) = page.of("img")
    assert base64.b64decode(image["src"].removeprefix("data:image/gif;base64,")) == (run / "media/b.gif").read_bytes()
    assert image["width"] == "252" and image["class"] == "pixels", "84 pixels, enlarged three times"
    assert page.of("video")[0]["src"].startswith("data:video/mp4;base64,")
    notes = " ".join(text for text in page.texts["p"])
    for words in ("gone.png is missing", "bad.png is damaged", "leads out of the workdir", "left out: big.png has 0.0 MB"):
        assert words in notes
    assert "step 20" in " ".join(page.texts["figcaption"])


def test_tables_and_figures_of_a_group(tmp_path):
    make_run(tmp_path / "run", rows())
    table = {
        "title": "T",
        "caption": "C",
        "columns": ["game", "score"],
        "rows": [["pong", 1234567], ["qbert", None], ["x", 0.5]],
    }
    (tmp_path / "t.table.json").write_text(json.dumps(table))
    Image.new("RGB", (600, 4)).save(tmp_path / "overview.png")
    page = report(tmp_path)
    assert page.texts["table"][0] == "gamescorepong1,234,567qbert–x0.5"
    cells = [a.get("class") for n, a in page.elements if n in ("th", "td")][:8]
    assert cells == [None, "right"] * 4
    assert "T" in page.texts["h3"] and "overview" in page.texts["figcaption"]
    main([str(tmp_path)])  # tables and figures alone make a page too


def test_folder_of_tables_alone(tmp_path):
    (tmp_path / "t.table.json").write_text(json.dumps({"columns": ["devices"], "rows": [[8]]}))
    page = report(tmp_path)
    assert page.texts["td"] == ["8"] and page.texts["nav"] == ["Results"]


def test_notes_that_a_reader_needs(tmp_path):
    make_run(tmp_path / "a", rows(), {"seed": 3})
    make_run(tmp_path / "b", rows(values=(1.0,)), {"seed": 3}, status="failed: out of memory")
    notes = [t for t in report(tmp_path).texts["p"]]
    for words in ("b: failed: out of memory", "stand at different steps", "several runs have seed 3"):
        assert any(words in text for text in notes)


def test_environment_is_told_once_and_commands_are_quoted(tmp_path):
    for seed in (0, 1):
        command = ["python", "-m", "launch.train", f"--config.seed={seed}", "it's"]
        make_run(
            tmp_path / str(seed),
            rows(),
            {"seed": seed},
            command=command,
            versions={"jax": "9.9"},
            machine={"devices": ["cpu"] * 8},
        )
    page = report(tmp_path)
    assert page.texts["dt"] == ["machine", "versions"] and page.texts["dd"] == ["devices cpu ×8", "jax 9.9"]
    assert "python -m launch.train --config.seed=1 'it'\"'\"'s'" in page.texts["pre"][0]


def test_the_last_text_is_shown_as_it_is(tmp_path):
    rows = [{"step": 1, "eval/samples": {"text": "old"}}, {"step": 9, "eval/samples": {"text": "a <b>\n  & 'c'"}}]
    make_run(tmp_path / "run", rows)
    page = report(tmp_path / "run")
    assert "a <b>\n  & 'c'" in page.texts["pre"]  # escaped, with its lines
    assert not any("old" in text for text in page.texts["pre"])
    assert page.of("figure", "text")
