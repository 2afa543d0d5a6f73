"""Grade-school word problems with exact-match reward (Cobbe et al. 2021; prompt of rho-1b-sft-GSM8K)."""

import re
from pathlib import Path

from rlhf_jax.tasks import embedded
from rlhf_jax.tasks.base import Task, examples_of
from rlhf_jax.tasks.files import deal, need_file, read_jsonl
from training.files import data_directory

MARK = re.compile(r"<<[^<>]*>>")
NUMBER = re.compile(r"#### (-?[0-9.,]+)")


def number_after_hashes(text: str) -> str:
    """The number after the first '####', without commas, or '' (grade-school-math/dataset.py)."""
    match = NUMBER.search(text)
    return match.group(1).replace(",", "") if match else ""


def prompt(question: str) -> str:
    """The question as rho-1b-sft-GSM8K reads it."""
    return f"[MATH_TASK] Problem:\n{question}\n\nSolution:"


def load(directory: str = "", *, seed: int = 0, limit: int = 0, marks: bool = True, validation: float = 0.05) -> Task:
    """GSM8K, or embedded problems of one step without a data directory. The test split keeps its order.

    Args:
      directory: folder with train.jsonl and test.jsonl (question, answer with '#### number' at its end), plain or gzipped.
      limit: rows of each split; 0 = all.
      marks: keep calculator marks such as `<<48/2=24>>` in the references.
      validation: share of the training problems held out.

    A reference is a newline and the worked answer; an answer is its number without commas.
    """
    rows = deal(read(directory, "train"), {"validation": validation}, seed, "problems")
    splits = {}
    for split, part in {**rows, "test": read(directory, "test")}.items():
        worked = [row["answer"] if marks else MARK.sub("", row["answer"]) for row in part]
        answers = [number_after_hashes(row["answer"]) for row in part]
        columns = ([prompt(row["question"]) for row in part], [f"\n{text}" for text in worked], answers)
        splits[split] = examples_of(list(zip(*columns, strict=True))).head(limit)
    return Task("gsm8k", splits, {}, {split: part.texts() for split, part in splits.items()}, {})


def read(directory: str, split: str) -> list[dict[str, str]]:
    """Rows with question and answer."""
    folder: Path | None = data_directory(directory, "gsm8k")
    if folder is None:
        return embedded.problems(split)
    check = lambda row: "" if number_after_hashes(row["answer"]) else "the answer has no '#### number'"  # noqa: E731
    return read_jsonl(need_file(folder, split), {"question": str, "answer": str}, check)
