"""The page around the charts: summary, results, pictures, configs, timings and environment, in one self-contained file."""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.report.arms import (
    Arm,
    curve,
    final,
    group_arms,
    is_evaluation,
    metric_names,
    prefix,
    short_name,
    steps_per_second,
)
from launch.report.chart import MANY_ARMS, chart, final_text, legend
from launch.report.data import Material, ShownRun, Table
from launch.report.markup import Html, as_float, config_text, duration, exact, extent, join, listing, short, tag, unit
from launch.report.media import Picture, pictures
from launch.report.tables import fold, table, upright_table

LONG = 12  # longer tables are folded away
TILES = 6  # so many evaluation metrics fit the summary of one run; more go into a table
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
HEADINGS = {"eval": "Evaluation", "train": "Training", "time": "Speed", "other": "Other"}
STATUSES = ("done", "running", "stopped", "preempted", "failed")


def page(material: Material, title: str | None = None) -> str:
    """The whole HTML document. It loads nothing from outside, and its content policy forbids that as well."""
    runs, arms = material.runs, group_arms(material.runs)
    title = title or default_title(material)
    sections = [
        ("Summary", summary(runs, arms)),
        ("Results", results(runs, arms, material.tables)),
        ("Curves", curves(runs, arms)),
        ("Pictures", gallery(pictures(material, arms))),
        ("Config", configs(runs, arms)),
        ("Timings", timings(runs)),
        ("Environment", environment(runs)),
    ]
    shown = [(name, body) for name, body in sections if body]
    links = [tag("a", name, href=f"#{name.lower()}") for name, _ in shown]
    here = Path(__file__)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(here.with_name("report.css").read_text(encoding="utf-8"))),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", subtitle(runs, arms), cls="sub"), tag("nav", *links)),
        tag("main", *(tag("section", tag("h2", name), body, id=name.lower()) for name, body in shown)),
        tag("script", Html(here.with_name("report.js").read_text(encoding="utf-8"))),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def default_title(material: Material) -> str:
    """The name of the only run, or of the folder."""
    if len(material.runs) == 1:
        return str(material.runs[0].info.get("name") or material.runs[0].label)
    return material.folder.name


def subtitle(runs: Sequence[ShownRun], arms: Sequence[Arm]) -> str:
    """The line below the title: methods, numbers of runs and arms, when the first run started."""
    if not runs:
        return "Tables and figures"
    methods = ", ".join(dict.fromkeys(str(run.config["method"]) for run in runs if "method" in run.config))
    started = sorted(str(run.info["started"])[:16].replace("T", " ") for run in runs if run.info.get("started"))
    counts = f"{len(runs)} runs in {len(arms)} arm{'s' * (len(arms) > 1)}" if len(runs) > 1 else ""
    return " · ".join(part for part in (methods, counts, f"started {started[0]}" if started else "") if part)


def summary(runs: Sequence[ShownRun], arms: Sequence[Arm]) -> Html | None:
    """The section of tiles: status, steps, time, size, and the scores if there is one arm; then the notes."""
    if not runs:
        return None
    several = len(runs) > 1
    tiles = [tile("Status", join(status_chips(runs)))]
    if several:
        tiles.append(tile("Runs", str(len(runs)), f"in {len(arms)} arm{'s' * (len(arms) > 1)}"))
    speeds = [speed for run in runs if (speed := steps_per_second(run)) is not None]
    seconds = [value for run in runs if (value := as_float(run.info.get("seconds"))) is not None]
    sizes = [value for run in runs if (value := as_float(run.info.get("parameters"))) is not None]
    tiles.append(tile("Steps", extent([run.last_step for run in runs if run.last_step is not None]), steps_planned(runs)))
    tiles.append(tile("Wall time", duration(sum(seconds)) if seconds else "–", "all runs" if several and seconds else ""))
    tiles.append(
        tile("Steps/s", short(float(np.median(speeds))) if speeds else "–", "median run" if several and speeds else "")
    )
    tiles.append(tile("Parameters", extent(sizes)))
    evals = [name for name in metric_names(runs) if is_evaluation(name)]
    scores = []
    if len(arms) == 1 and len(evals) <= TILES:
        for name in evals:
            head, _, count = final_text(final(arms[0], name)).partition(" (")
            scores.append(tile(short_name(name), head, f"{unit(name)} {count.rstrip(')')}".strip(), "score"))
    rows = [tag("div", *row, cls="tiles") for row in (tiles, scores) if row]
    return join([*rows, *notes(runs, arms)])


def tile(label: str, value: str, aside: str = "", cls: str = "") -> Html:
    """A labelled value, with a smaller word beside it."""
    shown = tag("span", value, tag("small", f" {aside}") if aside else None, cls="value")
    return tag("div", tag("span", label, cls="label"), shown, cls=f"tile {cls}".strip())


def status_chips(runs: Sequence[ShownRun]) -> list[Html]:
    """The status of the run, or how many runs have each status."""
    counts = Counter(status_word(run) for run in runs)
    return [
        tag("span", f"{count} {word}" if len(runs) > 1 else word, cls=f"chip {word}")
        for word in (*STATUSES, "unknown")
        if (count := counts[word])
    ]


def status_word(run: ShownRun) -> str:
    """The first word of a run's status ('failed: OSError' is 'failed'); 'unknown' for one that the loop does not write."""
    word = str(run.info.get("status") or "").split(":")[0].strip()
    return word if word in STATUSES else "unknown"


def steps_planned(runs: Sequence[ShownRun]) -> str:
    """The number of steps in the config as 'of 100k', if it is the same in all runs."""
    planned = {run.config["steps"] for run in runs if as_float(run.config.get("steps")) is not None}
    return f"of {short(planned.pop())}" if len(planned) == 1 else ""


def notes(runs: Sequence[ShownRun], arms: Sequence[Arm]) -> list[Html]:
    """Warnings about the numbers: failed and empty runs, runs at different steps, seeds that occur twice."""
    texts = [f"{run.label}: {run.info['status']}" for run in runs if status_word(run) == "failed"]
    silent = [run.label for run in runs if not run.series]
    if silent:
        who = "This run has" if len(runs) == 1 else f"{len(silent)} of {len(runs)} runs have"
        texts.append(f"{who} no metrics yet{'' if len(runs) == 1 else ': ' + listing(silent)}.")
    if len({run.last_step for run in runs if run.series}) > 1:
        texts.append("The runs stand at different steps; a last value is each run's own.")
    for arm in arms:
        seeds = Counter(config_text(run.config["seed"]) for run in arm.runs if "seed" in run.config)
        twice = [seed for seed, count in seeds.items() if count > 1]
        if twice:
            texts.append(f"{arm.name}: several runs have seed {', '.join(twice)}; they count as separate seeds.")
    return [tag("p", text, cls="notice") for text in texts]


def results(runs: Sequence[ShownRun], arms: Sequence[Arm], tables: Sequence[Table]) -> Html | None:
    """The section of tables: final evaluation of each arm, those that lie beside the runs, and every run."""
    parts = [table(each.columns, each.rows, each.title, each.caption) for each in tables]
    evals = [name for name in metric_names(runs) if is_evaluation(name)]
    if evals and (len(arms) > 1 or len(evals) > TILES):
        cells = [[final_text(value) if (value := final(arm, name)) else None for name in evals] for arm in arms]
        rows = [[arm.name, *row] for arm, row in zip(arms, cells, strict=True)]
        parts.insert(
            0, upright_table(["", *(short_name(name) for name in evals)], rows, "Final evaluation", final_caption(runs, arms))
        )
    if len(runs) > 1:
        parts.append(fold(f"Every run ({len(runs)})", run_table(arms, evals)))
    return join(parts) or None


def final_caption(runs: Sequence[ShownRun], arms: Sequence[Arm]) -> str:
    """What the numbers of the final evaluation are."""
    text = "Last value of each run."
    if len(runs) > len(arms) or any(series.values.shape[1] > 1 for run in runs for series in run.series.values()):
        text += " Over seeds: the mean ± half of its 95 % t-interval from three seeds on, [least, greatest] for two."
    return text


def run_table(arms: Sequence[Arm], evals: Sequence[str]) -> Html:
    """One row for each run: arm, seed, status, step, time, speed, last evaluations."""
    columns = ["run", "arm", "seed", "status", "step", "wall time", "steps/s", *(short_name(name) for name in evals)]
    rows = []
    for arm in arms:
        for run in arm.runs:
            alone = Arm(run.label, (run,), {})
            last = [final(alone, name) for name in evals]
            wall, speed = as_float(run.info.get("seconds")), steps_per_second(run)
            chip = tag("span", status_word(run), cls=f"chip {status_word(run)}")
            row = [run.label, arm.name, run.config.get("seed"), chip, run.last_step, duration(wall), speed and short(speed)]
            rows.append([*row, *(value and final_text(value) for value in last)])
    return table(columns, rows, right=range(4, len(columns)))


def curves(runs: Sequence[ShownRun], arms: Sequence[Arm]) -> Html | None:
    """The section of charts: one for each metric, grouped by prefix."""
    names = metric_names(runs)
    if not names:
        return None
    groups = dict.fromkeys(prefix(name) for name in names)
    parts = [legend(arms), tag("p", curves_caption(arms), cls="note")]
    for group in groups:
        own = [name for name in names if prefix(name) == group]
        charts = [chart(n, arms, [curve(arm, n) for arm in arms], [final(arm, n) for arm in arms]) for n in own]
        heading = tag("summary", tag("h3", HEADINGS.get(group, group)), tag("span", str(len(own)), cls="count"))
        parts.append(tag("details", heading, tag("div", *charts, cls="charts"), open=True))
    return join(parts)


def curves_caption(arms: Sequence[Arm]) -> str:
    """How to read the charts."""
    several = any(
        len(arm.runs) > 1 or any(s.values.shape[1] > 1 for run in arm.runs for s in run.series.values()) for arm in arms
    )
    text = "Point at a chart for its values."
    if several and len(arms) > MANY_ARMS:
        text += " Lines are means over seeds; with so many arms the spread is left to the tooltip."
    elif several:
        text += " Lines are means over seeds and the shading runs from the least to the greatest seed;"
        text += " last values give the mean ± half of its 95 % t-interval (three seeds or more)."
    return text


def gallery(shown: Sequence[Picture]) -> Html | None:
    """The section of pictures, videos and texts."""
    if not shown:
        return None
    figures = [
        tag("figure", each.body, tag("figcaption", tag("b", each.name), tag("span", each.caption)), cls=f"picture {each.kind}")
        for each in shown
    ]
    return tag("div", *figures, cls="pictures")


def configs(runs: Sequence[ShownRun], arms: Sequence[Arm]) -> Html | None:
    """The section of configs: keys in which the arms differ, then the keys that all runs share."""
    parts = []
    keys = list(dict.fromkeys(key for arm in arms for key in arm.differs))
    if keys:
        rows = [[arm.name, *(config_text(arm.differs[key]) if key in arm.differs else None for key in keys)] for arm in arms]
        body = upright_table(["", *keys], rows, cls="differs")
        parts.append(fold("Where the arms differ", body, unfolded=len(rows) <= LONG))
    with_config = [run for run in runs if run.config]
    if with_config:
        shared = {key: value for key, value in with_config[0].config.items() if is_shared(key, value, with_config)}
        heading = f"Config ({len(shared)} keys)" if len(runs) == 1 else f"Shared by all runs ({len(shared)} keys)"
        parts.append(
            fold(heading, table(["key", "value"], [[key, tag("code", config_text(value))] for key, value in shared.items()]))
        )
    missing = [run.label for run in runs if not run.config]
    if missing:
        parts.append(tag("p", f"No config.json: {listing(missing)}.", cls="note"))
    return join(parts) or None


def is_shared(key: str, value: Any, runs: Sequence[ShownRun]) -> bool:
    """True if the configs of all runs have this value."""
    return all(key in run.config and config_text(run.config[key]) == config_text(value) for run in runs)


def timings(runs: Sequence[ShownRun]) -> Html | None:
    """The section of speed: compilation, wall time, steps and FLOPs per second, memory of each run."""
    columns = ["run", "compile", "wall time", "steps/s", "steps / wall time", "FLOP/step", "FLOP/s", "peak memory"]
    rows = []
    for run in runs:
        get = {key: as_float(run.info.get(key)) for key in ("compile_seconds", "seconds", "flops_per_step", "memory_bytes")}
        seconds, flops, memory = get["seconds"], get["flops_per_step"], get["memory_bytes"]
        speed = steps_per_second(run)
        overall = run.last_step / seconds if run.last_step and seconds else None
        cells = [duration(get["compile_seconds"]), duration(seconds), speed and short(speed), overall and short(overall)]
        cells += [flops and short(flops), flops and speed and short(flops * speed), memory and f"{short(memory / 2**20)} MiB"]
        rows.append([run.label, *cells])
    if not any(cell not in (None, "–") for row in rows for cell in row[1:]):
        return None
    caption = (
        "steps/s: median of the later half of time/steps_per_second; steps / wall time counts compiling and evaluating too."
    )
    body = upright_table(columns, rows, caption=caption)
    return body if len(runs) <= LONG else fold(f"Every run ({len(runs)})", body)


def environment(runs: Sequence[ShownRun]) -> Html | None:
    """The section of versions, machines and meshes, once for runs that share them, and of commands, quoted for a shell."""
    groups: dict[str, list[ShownRun]] = {}
    for run in runs:
        kept = {key: run.info[key] for key in ("versions", "machine", "mesh", "git") if run.info.get(key)}
        if kept:
            groups.setdefault(json.dumps(kept, sort_keys=True), []).append(run)
    parts = []
    for text, group in groups.items():
        heading = tag("h3", listing([run.label for run in group])) if len(groups) > 1 else None
        entries = [join([tag("dt", key), tag("dd", one_line(value))]) for key, value in json.loads(text).items()]
        parts.append(tag("div", heading, tag("dl", *entries), cls="environment"))
    commands = [(run, run.info["command"]) for run in runs if isinstance(run.info.get("command"), list)]
    lines = [f"# {run.label}\n{shlex.join(map(str, c))}" if len(runs) > 1 else shlex.join(map(str, c)) for run, c in commands]
    if lines:
        block = tag("pre", "\n".join(lines))
        parts.append(fold(f"Commands ({len(lines)})", block) if len(runs) > 1 else join([tag("h3", "Command"), block]))
    return join(parts) or None


def one_line(value: Any) -> str:
    """A value of run.json, often a small dict or list, as one line of text."""
    if isinstance(value, dict):
        return " · ".join(f"{key} {one_line(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(f"{entry} ×{count}" if count > 1 else entry for entry, count in Counter(map(one_line, value)).items())
    return exact(value) if as_float(value) is not None else config_text(value)
