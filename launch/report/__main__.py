"""One self-contained HTML page about a run or a group of runs: curves, results, pictures, config, timings, environment.

    python -m launch.report DIR [DIR ...] [--out report.html] [--title T]

A DIR is a workdir, or a folder that holds workdirs at any depth. Runs that differ only in their seed are drawn as one arm.
The page opens from disk, loads nothing, and is written to DIR/report.html unless --out says otherwise.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.report import write_report
from training.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.report", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a workdir, or a folder of workdirs at any depth")
    parser.add_argument("--out", type=Path, help="the HTML file to write (default: report.html in the first DIR)")
    parser.add_argument("--title", help="the heading of the page (default: the name of the run or folder)")
    options = parser.parse_args(argv)
    try:
        print(write_report(options.folders, options.out, options.title))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
