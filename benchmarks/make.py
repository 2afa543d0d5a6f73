"""Seconds that `make(config, mesh)` takes for every variant of every config.

    python -m benchmarks.make

`make` opens nothing (tests/test_make.py), so this is the time that tracing shapes takes, and for the first variant of a config
also that of its imports.
"""

import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.runs import load, variants
from training import population
from training.sharding import make_mesh


def main() -> None:
    """Print one line a variant, slowest last."""
    mesh, seconds = make_mesh(1), {}
    for spec in variants():
        config = load(spec)
        begin = time.perf_counter()
        population.make(config, mesh)
        seconds[spec] = time.perf_counter() - begin
    for spec, value in sorted(seconds.items(), key=lambda item: item[1]):
        print(f"{value:7.3f} s  {spec}")


if __name__ == "__main__":
    main()
