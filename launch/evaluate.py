"""Every evaluation of a run's method on one of its checkpoints.

    python -m launch.evaluate runs/pong [--step N] [--config.eval.episodes=100] [--out FOLDER]

Prints the numbers as one JSON object; they go to FOLDER too, with pictures and videos. The run itself is not changed: its
config, its weights, and the files that it saved with them (a tokeniser, a vocabulary) are read from the workdir.
"""

import argparse
import json
from pathlib import Path

from training import config as configs
from training import runtime
from training.cli import guarded, split_overrides
from training.runs import Run


def main(argv: list[str]) -> None:
    """Evaluate the run that the command line names. Raises UserError where there is none, or nothing to restore."""
    argv, overrides = split_overrides(argv)
    parser = argparse.ArgumentParser(prog="python -m launch.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("workdir")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    parser.add_argument("--out", help="folder for the result, pictures and videos (default: WORKDIR/evaluate)")
    args = parser.parse_args(argv)
    config = Run(args.workdir).config
    with config.unlocked():
        for key, text in overrides.items():
            configs.set_value(config, key, text)
    runtime.setup(**config.runtime)

    import jax

    from training import loop, population
    from training.checkpoint import Checkpoints
    from training.errors import UserError
    from training.metrics import Writer
    from training.sharding import make_mesh

    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    config = population.measured(config)
    method = population.make(config, mesh)
    target = loop.abstract_state(config, method, mesh)
    restored = Checkpoints(args.workdir).restore(target, args.step, set_aside=False)
    if restored is None:
        raise UserError(f"no checkpoint in {args.workdir}; train there first")
    writer = Writer(args.out or str(Path(args.workdir) / "evaluate"), every=1, last=config.steps, resume_step=None)
    results, consts = {}, method.consts()
    with jax.set_mesh(mesh):
        for name, evaluation in method.evals.items():
            results |= {f"{name}/{k}": v for k, v in evaluation.run(restored.state, consts, restored.step).items()}
    writer.write(restored.step, results)
    writer.close()
    print(json.dumps({"step": restored.step, **{k: v for k, v in results.items() if isinstance(v, int | float | list)}}))


if __name__ == "__main__":
    guarded(main)
