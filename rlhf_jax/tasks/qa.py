"""Answer a question (StackLLaMA; Beeching et al. 2023). AlpacaEval's instructions stand in for StackExchange."""

from pathlib import Path

from rlhf_jax.tasks import preferences
from rlhf_jax.tasks.base import Pairs, Task, examples_of, pairs_of
from rlhf_jax.tasks.files import find_file, need_file, read_jsonl, shuffled
from training.errors import UserError
from training.files import data_directory

SUBSETS = ("finetune", "reward", "rl", "evaluation")
FIELDS = {"question": str, "response_j": str, "response_k": str}  # response_j is the better one


def prompt(question: str) -> str:
    """The question as StackLLaMA asks it."""
    return f"Question: {question}\n\nAnswer: "


def load(directory: str = "", *, seed: int = 0, limit: int = 0, validation: float = 0.1) -> Task:
    """StackExchange, AlpacaEval, or embedded questions without a data directory.

    Args:
      directory: folder with finetune.jsonl, reward.jsonl, rl.jsonl and evaluation.jsonl (question, response_j, response_k:
        the subsets of lvwerra/stack-exchange-paired), or with prefs.jsonl (AlpacaEval), plain or gzipped.
      limit: rows of each split, pairs of each split; 0 = all.
      validation: share of AlpacaEval's training instructions that is held out.

    StackExchange: the texts to train on are finetune's, the pairs reward's, the prompts rl's; evaluation is halved by
    question into validation and test. The reference of a question is the first better answer.
    """
    folder = data_directory(directory, "stack_exchange", "alpacaeval_prefs")
    if folder is not None and find_file(folder, "rl"):
        return _stack_exchange(folder, seed, limit)
    rows = preferences.read(folder, validation=validation, seed=seed)
    splits = {split: part.head(limit) for split, part in preferences.examples(rows, prompt).items()}
    pairs = {split: part.head(limit) for split, part in preferences.pairs(rows, prompt).items()}
    return Task("qa", splits, pairs, {split: part.texts() for split, part in splits.items()}, {})


def _stack_exchange(folder: Path, seed: int, limit: int) -> Task:
    rows = {name: shuffled(read_jsonl(need_file(folder, name), FIELDS), seed) for name in SUBSETS}
    asked = list(dict.fromkeys(row["question"] for row in rows["evaluation"]))
    if len(asked) < 2:
        raise UserError(f"{folder} has {len(asked)} question in evaluation.jsonl; validation and test need one each")
    held = set(asked[: len(asked) // 2])
    parts = {
        "train": rows["rl"],
        "validation": [row for row in rows["evaluation"] if row["question"] in held],
        "test": [row for row in rows["evaluation"] if row["question"] not in held],
    }
    splits = {}
    for split, part in parts.items():
        first = {row["question"]: row["response_j"] for row in reversed(part)}
        splits[split] = examples_of([(prompt(q), first[q]) for q in dict.fromkeys(row["question"] for row in part)]).head(limit)
    pairs = {split: _pairs(part, limit) for split, part in {**parts, "train": rows["reward"]}.items()}
    texts = {split: part.texts() for split, part in splits.items()}
    texts["train"] = [prompt(row["question"]) + row["response_j"] for row in rows["finetune"][: limit or None]]
    return Task("qa", splits, pairs, texts, {})


def _pairs(rows: list[dict], limit: int) -> Pairs:
    return pairs_of([(prompt(r["question"]), r["response_j"], r["response_k"]) for r in rows[: limit or None]])
