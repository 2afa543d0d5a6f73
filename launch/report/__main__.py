"""One self-contained HTML page about a run or a group of runs: curves, results, pictures, config, timings, environment.

    python -m launch.report DIR [DIR ...] [--out report.html] [--title T]

A DIR is a workdir, or a folder that holds workdirs at any depth. Runs that differ only in their seed are drawn as one arm.
The page opens from disk, loads nothing, and is written to DIR/report.html unless --out says otherwise.
"""

import argparse
from pathlib import Path

from launch.report import write_report
from training.cli import guarded


def main(argv: list[str]) -> None:
    """Write the report that the command line asks for, and print its path. Raises UserError as `write_report` does."""
    parser = argparse.ArgumentParser(prog="python -m launch.report", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a workdir, or a folder of workdirs at any depth")
    parser.add_argument("--out", type=Path, help="the HTML file to write (default: report.html in the first DIR)")
    parser.add_argument("--title", help="the heading of the page (default: the name of the run or folder)")
    options = parser.parse_args(argv)
    print(write_report(options.folders, options.out, options.title))


if __name__ == "__main__":
    guarded(main)
