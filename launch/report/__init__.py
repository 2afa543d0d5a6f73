"""Reports: runs and results as one self-contained HTML page. `write_report` makes one; `python -m launch.report` calls it."""

import os
from collections.abc import Sequence
from pathlib import Path

from launch.report.data import gather
from launch.report.page import page
from training.errors import UserError


def write_report(folders: Sequence[Path], out: Path | None = None, title: str | None = None) -> Path:
    """Gather `folders`, write the page in one piece (a reader never sees half of it), return its path. Raises UserError."""
    text = page(gather(folders), title)
    out = folders[0] / "report.html" if out is None else out
    part = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"cannot write {out} ({error.strerror}): name another file with --out") from None
    return out
