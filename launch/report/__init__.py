"""Runs and results as one self-contained HTML page: `write_report`, and the command `python -m launch.report`."""

from collections.abc import Sequence
from pathlib import Path

from launch.report.data import gather
from launch.report.page import page
from training import files
from training.errors import UserError


def write_report(folders: Sequence[Path], out: Path | None = None, title: str | None = None) -> Path:
    """Path of a new page about the runs, tables and figures in `folders`; a reader never sees half of it.

    Args:
      folders: workdirs, or folders that hold workdirs at any depth.
      out: the HTML file; report.html in the first folder by default.
      title: the heading; the name of the run or folder by default.

    Raises:
      UserError: nothing to show, a damaged file, or `out` cannot be written.
    """
    text = page(gather(folders), title)
    out = folders[0] / "report.html" if out is None else out
    try:
        files.replace(out, text)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}): name another file with --out") from None
    return out
