"""What the entry points share: flags, and one clear line with exit code 2 for a user's mistake."""

import logging
import re
import sys
from collections.abc import Callable

from training.errors import UserError

OVERRIDE = re.compile(r"--config\.([\w.]+)(?:=(.*))?$", re.DOTALL)


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take `--config.a.b=value` (or `--config.a.b value`) out of a command line."""
    rest, overrides, i = [], {}, 0
    while i < len(argv):
        match = OVERRIDE.match(argv[i])
        if match is None:
            rest.append(argv[i])
        elif match[2] is not None:
            overrides[match[1]] = match[2]
        elif i + 1 < len(argv):
            i += 1
            overrides[match[1]] = argv[i]
        else:
            raise UserError(f"{argv[i]} needs a value")
        i += 1
    return rest, overrides


def guarded(main: Callable[[list[str]], None]) -> None:
    """Run `main(argv)`. A UserError becomes one line and exit code 2; `--debug` anywhere shows its traceback."""
    argv = sys.argv[1:]
    debug = "--debug" in argv
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "jax", "orbax", "etils", "asyncio", "PIL", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        main([a for a in argv if a != "--debug"])
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
