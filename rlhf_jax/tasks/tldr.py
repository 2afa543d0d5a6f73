"""Summarise a post in one line (Stiennon et al. 2020; Noukhovitch et al. 2025), or, standing in, a paper's abstract.

Reads the Reddit layout (subreddit, title, post, summary) or SciTLDR (title, abstract, tldrs; Cachola et al. 2020).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.tasks import embedded, preferences
from rlhf_jax.tasks.base import Examples, Pairs, Task, examples_of, pairs_of
from rlhf_jax.tasks.files import deal, find_file, lacks, need_file, read_jsonl, shuffled
from training.errors import UserError
from training.files import data_directory

END = "\n\nTL;DR:"
POST = "POST: "
STEMS = {"train": ("train",), "validation": ("validation", "valid", "dev"), "test": ("test",)}


def query(post: str, title: str = "", subreddit: str = "") -> str:
    """The prompt; heads that are empty are left out."""
    head = f"SUBREDDIT: r/{subreddit}\n\n" * bool(subreddit) + f"TITLE: {title}\n\n" * bool(title)
    return f"{head}{POST}{post}{END}"


def fit(prompt: str, budget: int, encode: Callable[[str], Sequence[int]]) -> str:
    """Shorten the post until the prompt takes `budget` tokens or fewer; the head and 'TL;DR:' stay.

    The post is cut at its last newline, again and again; one without newlines loses characters (tldr_dataset.py of
    vwxyzjn/summarize_from_feedback_details). How many is found by bisection: more text is taken to be more tokens.
    """
    head, post = _parts(prompt)
    size = lambda n: len(encode(head + post[:n] + END))  # noqa: E731
    stop = len(post)
    while size(stop) > budget and (newline := post.rfind("\n", 0, stop)) >= 0:
        stop = newline
    if size(stop) > budget:
        low, high = 0, stop  # `high` characters are too many
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(middle) <= budget else (low, middle)
        stop = low
    if size(stop) > budget:
        raise UserError(f"{budget} tokens cannot hold even {head + END!r}; raise the prompt length")
    return head + post[:stop] + END


def _parts(prompt: str) -> tuple[str, str]:
    start = 0 if prompt.startswith(POST) else prompt.find(f"\n\n{POST}") + 2
    if start == 1 or not prompt.endswith(END):  # find gave -1
        raise UserError(f"{prompt[:40]!r}... is no TL;DR prompt: it needs {POST!r} and {END!r}")
    start += len(POST)
    return prompt[:start], prompt[start : -len(END)]


def load(directory: str = "", *, seed: int = 0, limit: int = 0, validation: float = 0.1) -> Task:
    """TL;DR of Reddit, SciTLDR, or embedded posts without a data directory.

    Args:
      directory: folder with train.jsonl, validation.jsonl (or valid, dev) and test.jsonl, plain or gzipped. Pairs come from
        pairs_{train,validation,test}.jsonl (subreddit, title, post, chosen, rejected), else from AlpacaEval's prefs.jsonl
        there or in a folder alpacaeval_prefs beside it; with neither there are none.
      limit: rows of each split and pairs of each split; 0 = all.
      validation: share of AlpacaEval's training instructions that is held out.

    The references and answers to prefer begin with one blank. Prompts are not shortened here: see `fit`.
    """
    folder = data_directory(directory, "tldr", "scitldr")
    if folder is None:
        dealt = deal(embedded.posts(), {"validation": 0.15, "test": 0.15}, seed, "posts")
        pairs = {s: pairs_of([(_query(r), f" {r['summary']}", f" {r['rejected']}") for r in rows]) for s, rows in dealt.items()}
    else:
        dealt = {split: shuffled(_read(need_file(folder, *stems)), seed) for split, stems in STEMS.items()}
        pairs = _pairs(folder, validation, seed)
    splits: dict[str, Examples] = {
        split: examples_of([(_query(row), f" {row['summary'].strip()}") for row in rows[: limit or None]])
        for split, rows in dealt.items()
    }
    texts = {split: part.texts() for split, part in splits.items()}
    return Task("tldr", splits, {split: part.head(limit) for split, part in pairs.items()}, texts, {})


def _query(row: dict[str, Any]) -> str:
    return query(row["post"], row["title"], row["subreddit"])


REDDIT = {"subreddit": str, "title": str, "post": str}
SCIENCE = {"title": str, "abstract": str, "tldrs": list}


def _read(path: Path) -> list[dict[str, Any]]:
    """Rows with subreddit, title, post, summary; SciTLDR has no subreddit, and the author's own TL;DR is taken."""
    rows = read_jsonl(path, {}, _check)
    return [{"subreddit": "", "post": r["abstract"], "summary": r["tldrs"][0], **r} if "abstract" in r else r for r in rows]


def _check(row: dict[str, Any]) -> str:
    if "abstract" not in row:
        return lacks(row, {**REDDIT, "summary": str})
    first = row.get("tldrs")[:1] if isinstance(row.get("tldrs"), list) else None
    return lacks(row, SCIENCE) or ("" if first and isinstance(first[0], str) and first[0].strip() else "no text in 'tldrs'")


def _pairs(folder: Path, validation: float, seed: int) -> dict[str, Pairs]:
    files = {split: path for split in STEMS if (path := find_file(folder, f"pairs_{split}"))}
    if files:
        dealt = {s: read_jsonl(path, {**REDDIT, "chosen": str, "rejected": str}) for s, path in files.items()}
        row = lambda r: (_query(r), f" {r['chosen'].strip()}", f" {r['rejected'].strip()}")  # noqa: E731
        return {split: pairs_of([row(r) for r in shuffled(rows, seed)]) for split, rows in dealt.items()}
    if near := preferences.near(folder):
        return preferences.pairs(preferences.read(near, validation=validation, seed=seed), query, " ")
    return {}
