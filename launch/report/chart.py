"""One chart: a metric's curves as inline SVG, with its numbers beside it for the tooltip (report.js)."""

import json
import math
import re
from collections.abc import Sequence

import numpy as np

from launch.report.arms import Arm, Curve, Final, prefix
from launch.report.markup import Html, join, linear_ticks, log_ticks, short, spread, tag, tick_labels, unit

WIDTH, HEIGHT = 400, 220  # viewBox units, about one CSS pixel each
TOP, RIGHT, BOTTOM = 10, 14, 24
COLOURS = 6  # defined in report.css; further arms repeat them with another dash
DASHES = (None, "6 3", "2 3", "8 3 2 3", "12 4")
MANY_ARMS = 6  # above this, no shading and no list of values under a chart
LOG_NAMES = re.compile(r"loss|nll|cross_entropy|kl|error|mse|perplexity|ppl")


class Scale:
    """A linear or logarithmic map from data in [low, high] to pixels in [start, stop]."""

    def __init__(self, low: float, high: float, start: float, stop: float, log: bool = False):
        self.low, self.high, self.start, self.stop, self.log = low, high, start, stop, log

    def __call__(self, value: np.ndarray) -> np.ndarray:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        value = np.log10(value) if self.log else np.asarray(value, float)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def chart(name: str, arms: Sequence[Arm], curves: Sequence[Curve | None], finals: Sequence[Final | None]) -> Html:
    """The figure of one metric: title, SVG, last values. `curves` and `finals` are those of `arms`, None for one without it."""
    drawn = [(index, thin(curve, len(arms))) for index, curve in enumerate(curves) if curve is not None]
    finite = [(index, curve) for index, curve in drawn if np.isfinite(curve.mean).any()]
    title = tag("h4", name.split("/", 1)[-1], tag("small", f" {unit(name)}") if unit(name) else None)
    if not finite:
        return tag("figure", title, tag("p", "No finite value.", cls="note"), cls="chart")
    y = y_scale(name, [curve for _, curve in finite])
    ticks = log_ticks(y.low, y.high) if y.log else linear_ticks(y.low, y.high)
    texts = tick_labels(ticks) if not y.log else [tick_labels([tick])[0] for tick in ticks]
    left = max(36, 14 + 6.3 * max(len(text) for text in texts))
    x = x_scale([curve for _, curve in finite], left)
    shaded = len(arms) <= MANY_ARMS
    marks = [bands(index, curve, x, y) for index, curve in finite if shaded and curve.seeds > 1]
    marks += [line(index, curve.steps, curve.raw, x, y, "raw") for index, curve in finite if curve.raw is not None and shaded]
    marks += [line(index, curve.steps, curve.mean, x, y, "line", dots=len(curve.steps) <= 25) for index, curve in finite]
    marks += [tag("circle", r=3.5, cls=f"dot arm-{index} c{index % COLOURS}") for index, _ in finite]
    label = f"{name} against step; last: " + "; ".join(
        f"{arm.name} {final_text(value)}" for arm, value in zip(arms, finals, strict=True) if value is not None
    )
    svg = tag(
        "svg",
        *axes(x, y, ticks, texts),
        tag("line", cls="cross", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM),
        *marks,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label[:600],
    )
    return tag(
        "figure",
        title,
        tag("div", svg, tag("div", cls="tip", hidden=True), cls="plot"),
        caption(name, arms, curves, finals, y.log),
        numbers(arms, finite, x, y),
        cls="chart",
    )


def caption(name: str, arms: Sequence[Arm], curves: Sequence[Curve | None], finals: Sequence[Final | None], log: bool) -> Html:
    """The caption of a chart: last value of each arm if these are few, then scale, smoothing and values that are not finite."""
    entries = []
    if len(arms) <= MANY_ARMS:
        for index, (arm, value) in enumerate(zip(arms, finals, strict=True)):
            if value is not None:
                who = [swatch(index), tag("span", arm.name, cls="who")] if len(arms) > 1 else ["last "]
                entries.append(tag("li", *who, " ", tag("b", final_text(value)), cls=f"arm-{index}"))
    notes = ["log scale"] if log else []
    if any(curve is not None and curve.raw is not None for curve in curves):
        notes.append("moving mean, raw values faint" if len(arms) <= MANY_ARMS else "moving mean")
    lost = sum(curve.not_finite for curve in curves if curve is not None)
    if lost:
        notes.append(f"{lost} value{'s' * (lost > 1)} not finite")
    return tag("figcaption", tag("ul", *entries) if entries else None, tag("span", " · ".join(notes)) if notes else None)


def final_text(value: Final) -> str:
    """Last values as '12.3', '12.3 [11, 14] (n=2)' or '12.3 ± 1.1 (n=5)'; n counts the seeds whose last value is finite."""
    if value.seeds == 1:
        return short(value.mean)
    count = f"n={value.finite}" if value.finite == value.seeds else f"n={value.finite} of {value.seeds}"
    if value.half is not None:
        return f"{spread(value.mean, value.half)} ({count})"
    if value.finite == 2:
        return f"{short(value.mean)} [{short(value.low)}, {short(value.high)}] ({count})"
    return f"{short(value.mean)} ({count})"


def swatch(index: int) -> Html:
    """A short sample of an arm's line for legends."""
    sample = tag("path", d="M0 5H22", cls=f"line c{index % COLOURS}", stroke_dasharray=dash(index))
    return tag("svg", sample, cls="swatch", viewBox="0 0 22 10", aria_hidden="true")


def dash(index: int) -> str | None:
    """The stroke-dasharray of an arm's line; None for a full line."""
    return DASHES[index // COLOURS % len(DASHES)]


def thin(curve: Curve, arms: int) -> Curve:
    """The curve with some hundred of its points: the ends, and in each bucket the extremes of mean, raw mean and band."""
    n, buckets = len(curve.steps), max(30, 120 // max(1, arms))
    if n <= 4 * buckets:
        return curve
    kept = {0, n - 1}
    rows = [(curve.mean, 1), (curve.mean, -1)]
    rows += [(curve.low, 1), (curve.high, -1)] if curve.seeds > 1 and arms <= MANY_ARMS else []
    rows += [(curve.raw, 1), (curve.raw, -1)] if curve.raw is not None and arms <= MANY_ARMS else []
    for part in np.array_split(np.arange(n), buckets):
        kept |= {int(part[np.argmin(np.nan_to_num(sign * row[part], nan=np.inf))]) for row, sign in rows}
        gaps = part[~np.isfinite(curve.mean[part])]
        kept |= {int(gaps[0])} if gaps.size else set()
    keep = np.array(sorted(kept))
    pick = {field: getattr(curve, field)[keep] for field in ("steps", "mean", "low", "high", "count")}
    raw = None if curve.raw is None else curve.raw[keep]
    return Curve(**pick, seeds=curve.seeds, raw=raw, not_finite=curve.not_finite)


def y_scale(name: str, curves: Sequence[Curve]) -> Scale:
    """The y axis of the curves: logarithmic for a positive loss over more than two decades, from zero for timings."""
    rows = [row for c in curves for row in (c.mean, c.low, c.high, c.raw) if row is not None]
    everything = np.concatenate(rows)
    everything = everything[np.isfinite(everything)]
    low, high = float(everything.min()), float(everything.max())
    stop = HEIGHT - BOTTOM
    if low > 0 and high > 100 * low and LOG_NAMES.search(name.rsplit("/", 1)[-1]):
        room = (high / low) ** 0.04
        return Scale(low / room, high * room, stop, TOP, log=True)
    if prefix(name) == "time" and low >= 0:
        low = 0.0
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return Scale(low - room if low else 0.0, high + room, stop, TOP)


def x_scale(curves: Sequence[Curve], left: float) -> Scale:
    """The x axis of the curves, from pixel `left` on; from step 0 if the first step is near it."""
    low, high = float(min(c.steps[0] for c in curves)), float(max(c.steps[-1] for c in curves))
    if low <= 0.1 * high:
        low = min(low, 0.0)
    return Scale(low, high, left, WIDTH - RIGHT) if high > low else Scale(low - 1, high + 1, left, WIDTH - RIGHT)


def axes(x: Scale, y: Scale, ticks: Sequence[float], texts: Sequence[str]) -> list[Html]:
    """The grid lines with their labels, the x axis with its ticks, and the word 'step'."""
    parts = []
    for tick, text in zip(ticks, texts, strict=True):
        at = f"{float(y(tick)):.1f}"
        parts.append(tag("line", cls="grid", x1=f"{x.start:.1f}", x2=x.stop, y1=at, y2=at))
        parts.append(tag("text", text, x=f"{x.start - 6:.1f}", y=at, dy="0.35em", text_anchor="end"))
    bottom = HEIGHT - BOTTOM
    parts.append(tag("line", cls="axis", x1=f"{x.start:.1f}", x2=x.stop, y1=bottom, y2=bottom))
    steps = [tick for tick in linear_ticks(x.low, x.high, 4) if tick == int(tick)]
    for tick, text in zip(steps, tick_labels(steps), strict=True):
        at = float(x(tick))
        parts.append(tag("line", cls="axis", x1=f"{at:.1f}", x2=f"{at:.1f}", y1=bottom, y2=bottom + 4))
        over = at + 3.2 * len(text) > WIDTH
        parts.append(
            tag("text", text, x=WIDTH if over else f"{at:.1f}", y=bottom + 16, text_anchor="end" if over else "middle")
        )
    narrow = len(tick_labels(steps)[0]) <= 2  # a wide first label would run into the word
    if x(x.low) < float(x(steps[0])) + 1 and narrow:
        parts.append(tag("text", "step", x=f"{x.start - 8:.1f}", y=bottom + 16, text_anchor="end", cls="axis-name"))
    return parts


def stretches(finite: np.ndarray) -> list[np.ndarray]:
    """Indices of each unbroken stretch of True in [n]."""
    where = np.flatnonzero(finite)
    return np.split(where, np.flatnonzero(np.diff(where) > 1) + 1) if where.size else []


def line(index: int, steps: np.ndarray, values: np.ndarray, x: Scale, y: Scale, cls: str, dots: bool = False) -> Html:
    """A line through the points, with gaps where a value is not finite. A lone point is a dot; with `dots` every point is."""
    finite = np.isfinite(values)
    px, py = x(steps), y(np.where(finite, values, 1.0))
    parts, points = [], []
    for piece in stretches(finite):
        if piece.size > 1:
            parts.append("M" + "L".join(f"{px[i]:.1f} {py[i]:.1f}" for i in piece))
        points += list(piece) if dots or piece.size == 1 else []
    path = tag("path", d="".join(parts), cls=cls, stroke_dasharray=dash(index) if cls == "line" else None) if parts else None
    circles = [tag("circle", cx=f"{px[i]:.1f}", cy=f"{py[i]:.1f}", r=2.2, cls="point") for i in points]
    return tag("g", path, *circles, cls=f"arm-{index} c{index % COLOURS}")


def bands(index: int, curve: Curve, x: Scale, y: Scale) -> Html:
    """The area between the least and the greatest seed of a curve."""
    parts = []
    for piece in stretches(np.isfinite(curve.low) & np.isfinite(curve.high)):
        px, low, high = x(curve.steps[piece]), y(curve.low[piece]), y(curve.high[piece])
        there = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(px, low, strict=True))
        back = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(px[::-1], high[::-1], strict=True))
        parts.append(f"M{there}L{back}Z")
    return tag("g", tag("path", d="".join(parts), cls="band"), cls=f"arm-{index} c{index % COLOURS}")


def numbers(arms: Sequence[Arm], curves: Sequence[tuple[int, Curve]], x: Scale, y: Scale) -> Html:
    """The numbers for the tooltip as JSON: scales, and for each arm steps, means, bands and seed counts; null for NaN."""
    series = []
    for index, curve in curves:
        entry = {"arm": index, "name": arms[index].name, "x": curve.steps.tolist(), "y": json_numbers(curve.mean)}
        if curve.seeds > 1:
            entry |= {"low": json_numbers(curve.low), "high": json_numbers(curve.high), "n": curve.count.tolist()}
        series.append(entry)
    scales = {key: [s.low, s.high, round(s.start, 1), s.stop, int(s.log)] for key, s in (("x", x), ("y", y))}
    text = json.dumps(scales | {"series": series}, separators=(",", ":"), allow_nan=False)
    return tag("script", Html(text.replace("<", "\\u003c")), type="application/json")


def json_numbers(values: np.ndarray) -> list[float | None]:
    """Values [n] with five significant digits, None where not finite (JSON has no NaN)."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def legend(arms: Sequence[Arm]) -> Html | None:
    """A button for each arm, which hides or shows its curves (report.js); None for a single arm."""
    if len(arms) < 2:
        return None
    buttons = [
        tag("button", swatch(index), tag("span", arm.name), type="button", data_arm=index, aria_pressed="true")
        for index, arm in enumerate(arms)
    ]
    return tag("div", join(buttons), cls="legend")
