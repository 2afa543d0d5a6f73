"""HTML elements with escaped content, and numbers, times, config values and ticks as people read them."""

import html
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

VOID = frozenset({"img", "link", "meta", "path", "line", "circle", "rect"})
SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Html(str):
    """A string of markup. Any other string is data, and `tag` escapes it."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """One element. `cls` becomes `class`, and `_` in names `-`; None and False drop an attribute, True leaves it bare."""
    words = [name]
    for key, value in attributes.items():
        key = "class" if key == "cls" else key.replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(str(value))}"')
    opening = " ".join(words)
    if name in VOID:
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """The children one after another: None is left out, Html is kept, everything else is escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(str(c)) for c in children if c is not None))


def as_float(value: Any) -> float | None:
    """A number, NaN and infinity included, as float; None for anything else, True and False included."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def config_text(value: Any) -> str:
    """A config value as the user wrote it: JSON, but strings without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def short(value: float, digits: int = 4) -> str:
    """A number with `digits` significant digits, and an SI suffix from 10 000 on: 0.01234, 1234, 12.35k, 1.2e-05, NaN."""
    if not math.isfinite(value):
        return not_finite(value)
    value = float(f"{value:.{digits}g}")
    for scale, suffix in SUFFIXES:
        if abs(value) >= max(scale, 1e4):
            return f"{value / scale:.{digits}g}{suffix}"
    return exact(value)


def spread(mean: float, half: float) -> str:
    """An interval as '20.9 ± 7.0': two significant digits of the half width, and the mean to the same decimals."""
    decimals = max(0, 1 - math.floor(math.log10(half))) if half > 0 else 9
    if decimals > 6 or abs(mean) >= 1e5:
        return f"{short(mean)} ± {short(half, 2)}"
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


def exact(value: float) -> str:
    """A number for tables: integers whole, others with six significant digits: 1,234,567, 0.123457, 1.2e-05."""
    if not math.isfinite(value):
        return not_finite(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}" if abs(value) >= 1e4 else str(int(value))
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.4g}"
    decimals = max(0, 5 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:,.0f}"


def not_finite(value: float) -> str:
    """NaN, ∞ or −∞, for a value that is one of them."""
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"


def duration(seconds: float | None) -> str:
    """A time as 2.5 s, 3 min 20 s, 42 min, 1 h 05 min, 2 d 3 h; a dash for None and for what is no time."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 59.95:
        return f"{short(seconds, 3)} s"
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {whole} s" if whole and minutes < 10 else f"{minutes + (whole >= 30)} min"
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def linear_ticks(low: float, high: float, target: int = 5) -> list[float]:
    """Round numbers inside [low, high], about `target` of them; steps are 1, 2, 2.5 or 5 times a power of ten."""
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, target: int = 6) -> list[float]:
    """Powers of ten inside [low, high], about `target` of them at most. The bounds are positive, more than a decade apart."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / target))
    return [10.0**power for power in range(first, last + 1, stride)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels of an axis, with one suffix and one number of decimals for all: 0, 20k, 40k or 0.25, 0.50."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    scale, suffix = 1.0, ""
    if largest >= 1e4:
        scale, suffix = next(pair for pair in SUFFIXES if largest >= pair[0])
    elif 0 < largest < 1e-3:
        power = math.floor(math.log10(largest) + 1e-9)
        scale, suffix = 10.0**power, f"e{power}"
    scaled = [tick / scale for tick in ticks]
    gap = min((abs(b - a) for a, b in itertools.pairwise(scaled)), default=1.0)
    decimals = next((d for d in range(9) if all(abs(round(t, d) - t) < 1e-3 * gap for t in scaled)), 9)
    return [f"{t:.{decimals}f}{suffix}" if t else "0" for t in scaled]


def unit(metric: str) -> str:
    """The unit of a metric by its name, or '': steps/s for 'time/steps_per_second'."""
    leaf = metric.rsplit("/", 1)[-1]
    if leaf.endswith("_per_second"):
        what = leaf.removesuffix("_per_second")
        return f"{'FLOP' if what in ('flops', 'flop') else what.replace('_', ' ')}/s"
    for word, symbol in (("seconds", "s"), ("bytes", "B"), ("minutes", "min"), ("hours", "h")):
        if leaf == word or leaf.endswith("_" + word):
            return symbol
    return ""


def listing(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def extent(values: Sequence[float]) -> str:
    """Least and greatest value as '3 to 5'; '5' where they are equal, a dash for no values."""
    ends = [short(value) for value in (min(values), max(values))] if values else ["–"]
    return " to ".join(dict.fromkeys(ends))
