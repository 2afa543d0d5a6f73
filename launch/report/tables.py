"""Tables, each in a box of its own that scrolls sideways, and parts of the page that fold away."""

from collections.abc import Sequence
from typing import Any

from launch.report.markup import Html, as_float, config_text, exact, tag


def fold(heading: str, body: Html, unfolded: bool = False) -> Html:
    """A part that opens and closes with a click on its heading; closed at first, unless `unfolded`."""
    return tag("details", tag("summary", heading), body, cls="fold", open=unfolded)


def upright_table(
    columns: Sequence[Any], rows: Sequence[Sequence[Any]], title: str = "", caption: str = "", cls: str = ""
) -> Html:
    """A table whose first row and first column are headings, transposed if it has more columns than rows."""
    if len(columns) - 1 > len(rows):
        columns, *rows = [list(line) for line in zip(columns, *rows, strict=True)]
    return table(columns, rows, title, caption, right=range(1, len(columns)), cls=cls)


def table(
    columns: Sequence[Any], rows: Sequence[Sequence[Any]], title: str = "", caption: str = "", right: Any = None, cls: str = ""
) -> Html:
    """A table with a heading per column. `right`: indices of the columns to align right; by default those of numbers only."""
    if right is None:
        full = [[row[i] for row in rows if row[i] is not None] for i in range(len(columns))]
        right = [i for i, cells in enumerate(full) if cells and all(as_float(c) is not None for c in cells)]
    side = ["right" if i in right else None for i in range(len(columns))]
    head = tag("tr", *(tag("th", column, cls=s, scope="col") for column, s in zip(columns, side, strict=True)))
    body = [tag("tr", *(tag("td", cell(value), cls=s) for value, s in zip(row, side, strict=True))) for row in rows]
    grid = tag("table", tag("thead", head), tag("tbody", *body), cls=cls or None)
    heading = tag("h3", title) if title else None
    return tag("div", heading, tag("div", grid, cls="scroll"), tag("p", caption, cls="note") if caption else None, cls="table")


def cell(value: Any) -> str:
    """The content of a cell: a dash for None, numbers by `exact`, strings (Html among them) as they are, JSON for the rest."""
    if value is None:
        return "–"
    return exact(value) if as_float(value) is not None else config_text(value)
