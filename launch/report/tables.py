"""Tables that scroll sideways in a box of their own, and parts of the page that fold away."""

from collections.abc import Sequence
from typing import Any

from launch.report.arms import plain
from launch.report.markup import Html, exact, real, tag


def fold(heading: str, body: Html, unfolded: bool = False) -> Html:
    return tag("details", tag("summary", heading), body, cls="fold", open=unfolded)


def upright(columns: Sequence[Any], rows: Sequence[Sequence[Any]], title: str = "", caption: str = "", cls: str = "") -> Html:
    """A table with a heading per row and column, turned so that the longer side runs downwards."""
    if len(columns) - 1 > len(rows):
        columns, *rows = [list(line) for line in zip(columns, *rows, strict=True)]
    return table(columns, rows, title, caption, right=range(1, len(columns)), cls=cls)


def table(
    columns: Sequence[Any], rows: Sequence[Sequence[Any]], title: str = "", caption: str = "", right: Any = None, cls: str = ""
) -> Html:
    """A table in a box of its own that scrolls sideways. `right`: columns to align right, by default those of numbers only."""
    if right is None:
        full = [[row[i] for row in rows if row[i] is not None] for i in range(len(columns))]
        right = [
            i for i, cells in enumerate(full) if cells and all(real(c) is not None and not isinstance(c, bool) for c in cells)
        ]
    side = ["right" if i in right else None for i in range(len(columns))]
    head = tag("tr", *(tag("th", column, cls=s, scope="col") for column, s in zip(columns, side, strict=True)))
    body = [tag("tr", *(tag("td", cell(value), cls=s) for value, s in zip(row, side, strict=True))) for row in rows]
    grid = tag("table", tag("thead", head), tag("tbody", *body), cls=cls or None)
    heading = tag("h3", title) if title else None
    return tag("div", heading, tag("div", grid, cls="scroll"), tag("p", caption, cls="note") if caption else None, cls="table")


def cell(value: Any) -> Any:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return exact(value) if real(value) is not None and not isinstance(value, bool) else plain(value)
