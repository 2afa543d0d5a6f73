"""Training of any config, with checkpoints, metrics and evaluations in a workdir.

    python -m launch.train --config configs/sgi/pretrain.py:tiny --workdir runs/x [--config.optim.lr=3e-4]

The same command again resumes the run from its last checkpoint. On several hosts start the same command on each, with
--distributed (TPU pods, Slurm and GKE are recognised) or with --coordinator, --processes and --process.
"""

import argparse
import logging
import time

import numpy as np

from training import config as configs
from training import runtime
from training.cli import guarded, split_overrides
from training.errors import UserError


def main(argv: list[str]) -> None:
    """Train what the command line says. Raises UserError for a mistake in it, before any training where it can be known."""
    argv, overrides = split_overrides(argv)
    parser = argparse.ArgumentParser(prog="python -m launch.train", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, metavar="FILE.py[:VARIANT]")
    parser.add_argument("--workdir", required=True, help="checkpoints, metrics and media go here; an existing run is resumed")
    parser.add_argument("--stop_after", type=int, help="save and leave after this step (schedules stay those of config.steps)")
    parser.add_argument("--distributed", action="store_true", help="one process of many; the cluster says which")
    parser.add_argument("--coordinator", help="host:port of process 0, with --processes and --process")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    args = parser.parse_args(argv)
    config = configs.load(args.config, {**overrides, "workdir": args.workdir})

    runtime.setup(**config.runtime)
    if args.coordinator and (args.processes is None or args.process is None):
        raise UserError("--coordinator needs --processes and --process")
    if args.coordinator or args.distributed:
        runtime.join(args.coordinator or "auto", args.processes, args.process)

    import jax  # after setup: the first use of a device reads XLA_FLAGS
    from jax.experimental import multihost_utils

    from training import loop, population
    from training.sharding import make_mesh

    if jax.process_count() > 1:
        try:
            multihost_utils.assert_equal(np.uint32(configs.fingerprint(config)), "configs differ")
        except AssertionError as error:
            raise UserError("the processes of this run have different configs; start the same command everywhere") from error
    logging.info("%s: %s", config.method, configs.units(args.config))
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    start = time.perf_counter()
    config = population.measured(config)
    state = loop.run(config, population.make(config, mesh), mesh, args.workdir, stop_after=args.stop_after)
    logging.info(
        "step %d after %.0f s; see %s",
        int(state.step if state.step.ndim == 0 else state.step[0]),
        time.perf_counter() - start,
        args.workdir,
    )


if __name__ == "__main__":
    guarded(main)
