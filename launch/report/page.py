"""The page around the charts: summary, results, pictures, configs, timings and environment, in one self-contained file."""

import json
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.report import chart as svg
from launch.report.arms import (
    Arm,
    curve,
    final,
    group_arms,
    is_evaluation,
    metric_names,
    plain,
    prefix,
    short_name,
    steps_per_second,
)
from launch.report.data import Material, Run, Table
from launch.report.markup import Html, duration, exact, extent, join, listing, real, short, tag, unit
from launch.report.media import Picture, pictures
from launch.report.tables import fold, table, upright

LONG = 12  # longer tables are folded away
TILES = 6  # so many evaluation metrics fit the summary of one run; more go into a table
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
HEADINGS = {"eval": "Evaluation", "train": "Training", "time": "Speed", "other": "Other"}
STATUSES = ("done", "running", "stopped", "preempted", "failed")


def page(material: Material, title: str | None = None) -> str:
    """The whole HTML document. It names no outside resource; its content policy forbids them as well."""
    runs, arms = material.runs, group_arms(material.runs)
    title = title or default_title(material)
    sections = [
        ("Summary", summary(runs, arms)),
        ("Results", results(runs, arms, material.tables)),
        ("Curves", curves(runs, arms)),
        ("Pictures", media(pictures(material, arms))),
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
    if len(material.runs) == 1:
        return str(material.runs[0].info.get("name") or material.runs[0].label)
    return material.folder.name


def subtitle(runs: Sequence[Run], arms: Sequence[Arm]) -> str:
    if not runs:
        return "Tables and figures"
    methods = ", ".join(dict.fromkeys(str(run.config["method"]) for run in runs if "method" in run.config))
    started = sorted(str(run.info["started"])[:16].replace("T", " ") for run in runs if run.info.get("started"))
    counts = f"{len(runs)} runs in {len(arms)} arm{'s' * (len(arms) > 1)}" if len(runs) > 1 else ""
    return " · ".join(part for part in (methods, counts, f"started {started[0]}" if started else "") if part)


def summary(runs: Sequence[Run], arms: Sequence[Arm]) -> Html | None:
    if not runs:
        return None
    several = len(runs) > 1
    tiles = [tile("Status", join(statuses(runs)))]
    if several:
        tiles.append(tile("Runs", str(len(runs)), f"in {len(arms)} arm{'s' * (len(arms) > 1)}"))
    speeds = [speed for run in runs if (speed := steps_per_second(run)) is not None]
    seconds = [value for run in runs if (value := real(run.info.get("seconds"))) is not None]
    sizes = [value for run in runs if (value := real(run.info.get("parameters"))) is not None]
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
            head, _, count = svg.final_text(final(arms[0], name)).partition(" (")
            scores.append(tile(short_name(name), head, f"{unit(name)} {count.rstrip(')')}".strip(), "score"))
    rows = [tag("div", *row, cls="tiles") for row in (tiles, scores) if row]
    return join([*rows, *notes(runs, arms)])


def tile(label: str, value: str, aside: str = "", cls: str = "") -> Html:
    shown = tag("span", value, tag("small", f" {aside}") if aside else None, cls="value")
    return tag("div", tag("span", label, cls="label"), shown, cls=f"tile {cls}".strip())


def statuses(runs: Sequence[Run]) -> list[Html]:
    counts = Counter(status(run) for run in runs)
    return [
        tag("span", f"{count} {word}" if len(runs) > 1 else word, cls=f"chip {word}")
        for word in (*STATUSES, "unknown")
        if (count := counts[word])
    ]


def status(run: Run) -> str:
    word = str(run.info.get("status") or "").split(":")[0].strip()
    return word if word in STATUSES else "unknown"


def steps_planned(runs: Sequence[Run]) -> str:
    planned = {run.config["steps"] for run in runs if real(run.config.get("steps")) is not None}
    return f"of {short(planned.pop())}" if len(planned) == 1 else ""


def notes(runs: Sequence[Run], arms: Sequence[Arm]) -> list[Html]:
    """What a reader must know before trusting the numbers."""
    found = [f"{run.label}: {run.info['status']}" for run in runs if status(run) == "failed"]
    silent = [run.label for run in runs if not run.series]
    if silent:
        who = "This run has" if len(runs) == 1 else f"{len(silent)} of {len(runs)} runs have"
        found.append(f"{who} no metrics yet{'' if len(runs) == 1 else ': ' + listing(silent)}.")
    if len({run.last_step for run in runs if run.series}) > 1:
        found.append("The runs stand at different steps; a last value is each run's own.")
    for arm in arms:
        seeds = Counter(plain(run.config["seed"]) for run in arm.runs if "seed" in run.config)
        twice = [seed for seed, count in seeds.items() if count > 1]
        if twice:
            found.append(f"{arm.name}: several runs have seed {', '.join(twice)}; they count as separate seeds.")
    return [tag("p", text, cls="notice") for text in found]


def results(runs: Sequence[Run], arms: Sequence[Arm], tables: Sequence[Table]) -> Html | None:
    """Final evaluation per arm, every run, and the tables that lie beside the runs."""
    parts = [table(each.columns, each.rows, each.title, each.caption) for each in tables]
    evals = [name for name in metric_names(runs) if is_evaluation(name)]
    if evals and (len(arms) > 1 or len(evals) > TILES):
        cells = [[svg.final_text(value) if (value := final(arm, name)) else None for name in evals] for arm in arms]
        rows = [[arm.name, *row] for arm, row in zip(arms, cells, strict=True)]
        parts.insert(
            0, upright(["", *(short_name(name) for name in evals)], rows, "Final evaluation", final_caption(runs, arms))
        )
    if len(runs) > 1:
        parts.append(fold(f"Every run ({len(runs)})", run_table(arms, evals)))
    return join(parts) or None


def final_caption(runs: Sequence[Run], arms: Sequence[Arm]) -> str:
    text = "Last value of each run."
    if len(runs) > len(arms) or any(series.values.shape[1] > 1 for run in runs for series in run.series.values()):
        text += " Over seeds: the mean ± half of its 95 % t-interval from three seeds on, [least, greatest] for two."
    return text


def run_table(arms: Sequence[Arm], evals: Sequence[str]) -> Html:
    columns = ["run", "arm", "seed", "status", "step", "wall time", "steps/s", *(short_name(name) for name in evals)]
    rows = []
    for arm in arms:
        for run in arm.runs:
            alone = Arm(run.label, (run,), {})
            last = [final(alone, name) for name in evals]
            wall, speed = real(run.info.get("seconds")), steps_per_second(run)
            chip = tag("span", status(run), cls=f"chip {status(run)}")
            row = [run.label, arm.name, run.config.get("seed"), chip, run.last_step, duration(wall), speed and short(speed)]
            rows.append([*row, *(value and svg.final_text(value) for value in last)])
    return table(columns, rows, right=range(4, len(columns)))


def curves(runs: Sequence[Run], arms: Sequence[Arm]) -> Html | None:
    """One chart per metric, grouped by prefix."""
    names = metric_names(runs)
    if not names:
        return None
    groups = dict.fromkeys(prefix(name) for name in names)
    parts = [svg.legend(arms), tag("p", curves_caption(arms, names), cls="note")]
    for group in groups:
        own = [name for name in names if prefix(name) == group]
        charts = [svg.chart(n, arms, [curve(arm, n) for arm in arms], [final(arm, n) for arm in arms]) for n in own]
        heading = tag("summary", tag("h3", HEADINGS.get(group, group)), tag("span", str(len(own)), cls="count"))
        parts.append(tag("details", heading, tag("div", *charts, cls="charts"), open=True))
    return join(parts)


def curves_caption(arms: Sequence[Arm], names: Sequence[str]) -> str:
    several = any(
        len(arm.runs) > 1 or any(s.values.shape[1] > 1 for run in arm.runs for s in run.series.values()) for arm in arms
    )
    text = "Point at a chart for its values."
    if several and len(arms) > svg.MANY_ARMS:
        text += " Lines are means over seeds; with so many arms the spread is left to the tooltip."
    elif several:
        text += " Lines are means over seeds and the shading runs from the least to the greatest seed;"
        text += " last values give the mean ± half of its 95 % t-interval (three seeds or more)."
    return text


def media(shown: Sequence[Picture]) -> Html | None:
    if not shown:
        return None
    figures = [
        tag("figure", each.body, tag("figcaption", tag("b", each.name), tag("span", each.caption)), cls=f"picture {each.kind}")
        for each in shown
    ]
    return tag("div", *figures, cls="pictures")


def configs(runs: Sequence[Run], arms: Sequence[Arm]) -> Html | None:
    """Keys in which arms differ, highlighted; then what they share."""
    parts = []
    keys = list(dict.fromkeys(key for arm in arms for key in arm.differs))
    if keys:
        rows = [[arm.name, *(plain(arm.differs[key]) if key in arm.differs else None for key in keys)] for arm in arms]
        body = upright(["", *keys], rows, cls="differs")
        parts.append(fold("Where the arms differ", body, unfolded=len(rows) <= LONG))
    with_config = [run for run in runs if run.config]
    if with_config:
        shared = {key: value for key, value in with_config[0].config.items() if shared_by_all(key, value, with_config)}
        heading = f"Config ({len(shared)} keys)" if len(runs) == 1 else f"Shared by all runs ({len(shared)} keys)"
        parts.append(
            fold(heading, table(["key", "value"], [[key, tag("code", plain(value))] for key, value in shared.items()]))
        )
    missing = [run.label for run in runs if not run.config]
    if missing:
        parts.append(tag("p", f"No config.json: {listing(missing)}.", cls="note"))
    return join(parts) or None


def shared_by_all(key: str, value: Any, runs: Sequence[Run]) -> bool:
    return all(key in run.config and plain(run.config[key]) == plain(value) for run in runs)


def timings(runs: Sequence[Run]) -> Html | None:
    columns = ["run", "compile", "wall time", "steps/s", "steps / wall time", "FLOP/step", "FLOP/s", "peak memory"]
    rows = []
    for run in runs:
        get = {key: real(run.info.get(key)) for key in ("compile_seconds", "seconds", "flops_per_step", "memory_bytes")}
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
    body = upright(columns, rows, caption=caption)
    return body if len(runs) <= LONG else fold(f"Every run ({len(runs)})", body)


def environment(runs: Sequence[Run]) -> Html | None:
    """Versions, machine and mesh (once for runs that share them), and the commands, quoted for a shell."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        kept = {key: run.info[key] for key in ("versions", "machine", "mesh", "git") if run.info.get(key)}
        if kept:
            groups.setdefault(json.dumps(kept, sort_keys=True), []).append(run)
    parts = []
    for text, group in groups.items():
        heading = tag("h3", listing([run.label for run in group])) if len(groups) > 1 else None
        entries = [join([tag("dt", key), tag("dd", inline(value))]) for key, value in json.loads(text).items()]
        parts.append(tag("div", heading, tag("dl", *entries), cls="environment"))
    commands = [(run, run.info["command"]) for run in runs if isinstance(run.info.get("command"), list)]
    lines = [f"# {run.label}\n{shlex.join(map(str, c))}" if len(runs) > 1 else shlex.join(map(str, c)) for run, c in commands]
    if lines:
        block = tag("pre", "\n".join(lines))
        parts.append(fold(f"Commands ({len(lines)})", block) if len(runs) > 1 else join([tag("h3", "Command"), block]))
    return join(parts) or None


def inline(value: Any) -> str:
    """A small dict or list of run.json as one line of text."""
    if isinstance(value, dict):
        return " · ".join(f"{key} {inline(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(f"{entry} ×{count}" if count > 1 else entry for entry, count in Counter(map(inline, value)).items())
    return exact(value) if real(value) is not None and not isinstance(value, bool) else plain(value)
