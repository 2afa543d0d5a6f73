"""AlpacaEval's preference pairs (Li et al. 2023), which stand in for human comparisons that are not to be had.

One JSON Lines file, prefs.jsonl: split (train or test), instruction, chosen, rejected and, where known, chosen_by and
rejected_by. An instruction has several pairs; all of them are in one split.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_jax.tasks import embedded
from rlhf_jax.tasks.base import Examples, Pairs, examples_of, pairs_of
from rlhf_jax.tasks.files import deal, find_file, need_file, read_jsonl, shuffled

REFERENCE = "text_davinci_003"  # it answered every instruction
Rows = dict[str, list[dict[str, Any]]]


def near(folder: Path) -> Path | None:
    """The folder with prefs.jsonl: this one, or alpacaeval_prefs beside it."""
    return next((f for f in (folder, folder.parent / "alpacaeval_prefs") if find_file(f, "prefs")), None)


def read(folder: Path | None, *, validation: float, seed: int) -> Rows:
    """Rows of each split, shuffled; a share of the train instructions becomes the validation split. None: embedded pairs."""
    rows = embedded.preferences()
    if folder is not None:
        check = lambda row: "" if row["split"] in ("train", "test") else f"split {row['split']!r} is not train or test"  # noqa: E731
        fields = {"split": str, "instruction": str, "chosen": str, "rejected": str}
        rows = read_jsonl(need_file(folder, "prefs"), fields, check)
    by_instruction: dict[str, list[dict]] = {}
    for row in rows:
        by_instruction.setdefault(row["instruction"], []).append(row)
    groups = {split: [g for g in by_instruction.values() if g[0]["split"] == split] for split in ("train", "test")}
    dealt = {**deal(groups["train"], {"validation": validation}, seed, "instructions"), "test": shuffled(groups["test"], seed)}
    return {split: [row for group in chosen for row in group] for split, chosen in dealt.items()}


def pairs(rows: Rows, prompt: Callable[[str], str], start: str = "") -> dict[str, Pairs]:
    """prompt: template around an instruction; start: what an answer begins with."""
    return {
        split: pairs_of([(prompt(r["instruction"]), start + r["chosen"], start + r["rejected"]) for r in part])
        for split, part in rows.items()
    }


def examples(rows: Rows, prompt: Callable[[str], str]) -> dict[str, Examples]:
    """One row an instruction. The reference is text-davinci-003's answer, or the chosen one of the first pair."""
    splits = {}
    for split, part in rows.items():
        answers = {}
        for row in part:
            side = "rejected" if row.get("rejected_by") == REFERENCE else "chosen"
            answers.setdefault(row["instruction"], row[side])
        splits[split] = examples_of([(prompt(instruction), answer) for instruction, answer in answers.items()])
    return splits
