"""Weights of the reference implementation (github.com/mila-iqia/SGI, PyTorch state dict) to and from `SGINet`.

    python -m sgi.convert to-npz FILE.pt OUT.npz           so that machines without PyTorch can read them
    python -m sgi.convert to-pt FILE.npz OUT.pt
    python -m sgi.convert export WORKDIR OUT.{pt,npz} [--step N]     the weights of a run of ours, for the reference
    python -m sgi.convert check FILE.npz

`check` recomputes every output stored next to the weights in FILE.npz, prints the relative errors and exits 1 if one is above
1e-4. Bad input: one line, exit code 2.
The mapping itself is `sgi.reference.state_dict`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from sgi import pretrain
from sgi.agent import rainbow
from sgi.nets.sgi_net import RESNETS, SGINet
from sgi.reference import weights as files
from sgi.reference.state_dict import from_reference, to_reference, with_redundant
from training.cli import guarded
from training.errors import UserError
from training.runs import Run


def export(workdir: str, step: int | None = None) -> tuple[SGINet, dict[str, np.ndarray]]:
    """The network and the reference's state dict, redundant names included, of a run's newest checkpoint, or of `step`'s.

    Raises:
      UserError: no run of `sgi.pretrain` or `sgi.finetune`, no checkpoint, or a network that the reference does not have.
    """
    run = Run(workdir)
    net = _net_of_run(run)
    arrays = run.arrays(step, ("params", "extra/stats", "extra/spr_target"))
    variables = {"params": arrays["params"], "batch_stats": arrays["extra"]["stats"]}
    return net, with_redundant(to_reference(net, variables, arrays["extra"]["spr_target"]))


def _net_of_run(run: Run) -> SGINet:
    nets = {"sgi.pretrain": pretrain.build_net, "sgi.finetune": rainbow.build_net}
    config = run.needs(*nets).config
    if config.population > 1:
        raise UserError(f"{run.path} is a population of {config.population} seeds: only runs of one seed can be exported")
    net = nets[config.method](config)
    problem = {
        f"encoder {net.encoder!r}": net.encoder not in ("S", "S-bn", *RESNETS),
        f"head {net.head!r}": net.head != "dueling",
        "values instead of distributions (atoms=1)": net.atoms == 1,
        "latents without min-max scaling": not net.renormalise,
    }
    if any(problem.values()):
        named = ", ".join(name for name, bad in problem.items() if bad)
        raise UserError(f"{run.path} has what the reference does not: {named}; it cannot be exported")
    return net


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sgi.convert", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("to-npz", "a PyTorch state dict (.pt, .pth) as .npz"), ("to-pt", "an .npz state dict as .pt")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("file", type=Path)
        command.add_argument("out", type=Path)
    text = "the weights of a pretraining or fine-tuning run as a state dict of the reference"
    command = commands.add_parser("export", help=text, description=text)
    command.add_argument("workdir")
    command.add_argument("out", type=Path, help="name ending in .pt, .pth or .npz")
    command.add_argument("--step", type=int, help="which checkpoint; the newest by default")
    text = "compare the outputs stored in a golden file with ours"
    command = commands.add_parser("check", help=text, description=text)
    command.add_argument("file", type=Path, help="npz file with reference weights, inputs and outputs")
    args = parser.parse_args(argv)
    if args.command == "check":
        sys.exit(_check(args.file))
    _export(args) if args.command == "export" else _convert(args)


def _convert(args: argparse.Namespace) -> None:
    sides = ((".npz",), files.TORCH)
    into, source = sides if args.command == "to-npz" else sides[::-1]
    files.check_suffix(args.file, source)
    files.check_suffix(args.out, into)
    weights = files.read(args.file)
    from_reference(weights)  # raises where it is not a model of the reference
    files.write(args.out, weights)
    print(f"{args.out}: {len(weights)} arrays")


def _export(args: argparse.Namespace) -> None:
    files.check_suffix(args.out)
    net, weights = export(args.workdir, args.step)
    files.write(args.out, weights)
    print(f"{args.out}: {len(weights)} arrays")
    missing = [name for name, there in (("goal head", net.goal), ("inverse model", net.inverse)) if not there]
    if missing:
        # The reference copies its goal head's first layers over the reward head's after loading, unless load_head_to is 0.
        options = "load_compat_mode=True" + ("" if net.goal else " and load_head_to=0")
        print(f"without {' and '.join(missing)}, which the run does not have: the reference needs {options} to load it")


def _check(path: Path) -> int:
    """Exit code: 0 when every output agrees, 1 when one does not."""
    from sgi.reference.golden import check

    errors = check(path)
    for name, error in errors.items():
        print(f"{error.relative:9.2e}  {name}" + (f"  (allowed {error.allowed:.2e})" if error.relative > error.allowed else ""))
    worst = max(errors, key=lambda name: errors[name].relative)
    failed = [name for name, error in errors.items() if error.relative > error.allowed]
    print(f"largest relative error {errors[worst].relative:.2e} ({worst}); {len(failed)} of {len(errors)} outputs disagree")
    return int(bool(failed))


if __name__ == "__main__":
    guarded(main)
