"""Equations as the smallest task with exact-match reward: prompt '48+24=', answer '72'.

They are the whole-number steps of GSM8K's calculator marks, or drawn at random. Splits are by equation, and a+b goes with
b+a, so that nothing of the test split was ever learned.
"""

import operator
import re
from collections.abc import Callable, Iterable

import numpy as np

from rlhf_jax.tasks import gsm8k
from rlhf_jax.tasks.base import Task, examples_of
from rlhf_jax.tasks.files import deal
from training.errors import UserError
from training.files import data_directory

OPS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a // b if b and a % b == 0 else -1,
}
STEP = re.compile(r"<<(\d+)([-+*/])(\d+)=(\d+)>>")
DRAWN = 4000  # equations without a data directory

Equation = tuple[int, str, int]


def load(
    directory: str = "",
    *,
    seed: int = 0,
    limit: int = 0,
    ops: str = "+-",
    digits: int = 3,
    drawn: int = 0,
    held_out: float = 0.1,
) -> Task:
    """Distinct equations with whole results of 0 or more.

    Args:
      directory: of GSM8K; see gsm8k.load. Both of its files are used, and dealt anew.
      limit: rows of each split; 0 = all.
      ops: operators, of '+-*/'.
      digits: operands have no more digits than this; 0 = any (3 for drawn ones).
      drawn: draw so many equations with operands below 10^digits (fewer where there are not so many) in place of GSM8K's
        steps; 0 = steps where there is a data directory, 4,000 drawn ones elsewhere.
      held_out: share of the equations in validation, and as many in test.
    """
    if not ops or set(ops) - set(OPS):
        raise UserError(f"config.data.ops {ops!r} must be some of {''.join(OPS)}")
    if drawn < 0 or digits < 0:
        raise UserError("config.data.drawn and digits must be 0 or more")
    if drawn or data_directory(directory, "gsm8k") is None:
        equations = draw(drawn or DRAWN, ops, digits or 3, np.random.default_rng(seed))
    else:
        equations = steps(row["answer"] for split in ("train", "test") for row in gsm8k.read(directory, split))
        equations = [e for e in equations if e[1] in ops and (not digits or max(e[0], e[2]) < 10**digits)]
    twins: dict[tuple, list[Equation]] = {}
    for equation in equations:
        twins.setdefault(_key(equation), []).append(equation)
    dealt = deal(list(twins.values()), {"validation": held_out, "test": held_out}, seed, "equations")
    splits = {split: examples_of([_row(e) for group in part for e in group]).head(limit) for split, part in dealt.items()}
    return Task("arithmetic", splits, {}, {split: part.texts() for split, part in splits.items()}, {})


def alphabet(ops: str) -> list[str]:
    """The characters of prompts and answers, in order."""
    return sorted({*"0123456789=", *ops})


def steps(answers: Iterable[str]) -> list[Equation]:
    """Distinct equations of calculator marks `<<a op b=c>>` with whole numbers that are right, in order."""
    marks = [(int(a), op, int(b), int(c)) for answer in answers for a, op, b, c in STEP.findall(answer)]
    return list(dict.fromkeys((a, op, b) for a, op, b, c in marks if OPS[op](a, b) == c))


def draw(n: int, ops: str, digits: int, rng: np.random.Generator) -> list[Equation]:
    """Up to n distinct equations with whole results of 0 or more: fewer where they get rare."""
    top, equations = 10**digits, {}
    for _ in range(20 * n):
        op, a, b = ops[rng.integers(len(ops))], *map(int, rng.integers(top, size=2))
        if op == "-":
            a, b = max(a, b), min(a, b)
        if op == "/":  # most quotients are not whole
            b = int(rng.integers(1, top))
            a = b * int(rng.integers((top - 1) // b + 1))
        equations[a, op, b] = None
        if len(equations) == n:
            break
    return list(equations)


def _key(equation: Equation) -> tuple:
    a, op, b = equation
    return (op, *sorted((a, b))) if op in "+*" else (op, a, b)


def _row(equation: Equation) -> tuple[str, str, str]:
    a, op, b = equation
    answer = str(OPS[op](a, b))
    return f"{a}{op}{b}=", answer, answer
