"""Prompts, references and pairs of TL;DR, StackExchange and AlpacaEval; how a long post is shortened."""

import json

import pytest

from rlhf_jax.tasks import qa, tldr
from training.errors import UserError


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def words(text):
    return text.split()


POST = {"subreddit": "cats", "title": "My cat", "post": "She sleeps.\nA lot.", "summary": "Cat sleeps. "}


def test_reddit_layout(tmp_path):
    for name in ("train", "valid", "test"):
        write(tmp_path / f"{name}.jsonl", [{**POST, "title": name}])
    write(tmp_path / "pairs_validation.jsonl", [{**POST, "chosen": " good", "rejected": "poor"}])
    task = tldr.load(str(tmp_path))
    prompt = "SUBREDDIT: r/cats\n\nTITLE: valid\n\nPOST: She sleeps.\nA lot.\n\nTL;DR:"
    assert task.splits["validation"] == ([prompt], [" Cat sleeps."], [""])
    assert task.pairs == {"validation": ([prompt.replace("valid", "My cat")], [" good"], [" poor"])}
    write(tmp_path / "test.jsonl", [POST, {**POST, "post": ""}])
    with pytest.raises(UserError, match=r"test.jsonl line 2: field 'post' is blank"):
        tldr.load(str(tmp_path))


PREFS = [
    {"split": "train", "instruction": "Do A", "chosen": "a+", "rejected": "a-", "chosen_by": "x", "rejected_by": "y"},
    {"split": "train", "instruction": "Do A", "chosen": "a*", "rejected": "a-"},
    {"split": "train", "instruction": "Do B", "chosen": "b+", "rejected": "b-", "rejected_by": "text_davinci_003"},
    {"split": "train", "instruction": "Do B", "chosen": "b-", "rejected": "b0", "chosen_by": "text_davinci_003"},
    {"split": "test", "instruction": "Do C", "chosen": "c+", "rejected": "c-"},
]


def test_scitldr_with_pairs_of_alpacaeval_beside_it(tmp_path):
    for name in ("train", "dev", "test"):
        write(tmp_path / "scitldr" / f"{name}.jsonl", [{"title": name, "abstract": "We do.", "tldrs": ["Done.", "Other."]}])
    assert tldr.load(str(tmp_path / "scitldr")).pairs == {}
    write(tmp_path / "alpacaeval_prefs" / "prefs.jsonl", PREFS)
    task = tldr.load(str(tmp_path / "scitldr"))
    assert task.splits["validation"] == (["TITLE: dev\n\nPOST: We do.\n\nTL;DR:"], [" Done."], [""])
    assert task.pairs["test"] == (["POST: Do C\n\nTL;DR:"], [" c+"], [" c-"])
    write(tmp_path / "scitldr" / "dev.jsonl", [{"title": "t", "abstract": "a", "tldrs": []}])
    with pytest.raises(UserError, match=r"dev.jsonl line 1: no text in 'tldrs'"):
        tldr.load(str(tmp_path / "scitldr"))


def test_alpacaeval_keeps_an_instruction_in_one_split(tmp_path):
    write(tmp_path / "prefs.jsonl", PREFS)
    for seed in range(4):  # both instructions get held out
        task = qa.load(str(tmp_path), seed=seed, validation=0.5)
        asked = {split: set(part.prompts) for split, part in task.splits.items()}
        assert asked == {split: set(pairs.prompts) for split, pairs in task.pairs.items()}
        assert sum(map(len, asked.values())) == 3 and asked["test"] == {"Question: Do C\n\nAnswer: "}
        references = {p: r for part in task.splits.values() for p, r in zip(part.prompts, part.references, strict=True)}
        assert list(map(references.get, sorted(references))) == ["a+", "b-", "c+"]  # text-davinci-003's where it is known
    write(tmp_path / "prefs.jsonl", [{**PREFS[0], "split": "dev"}])
    with pytest.raises(UserError, match=r"prefs.jsonl line 1: split 'dev' is not train or test"):
        qa.load(str(tmp_path))


def test_stack_exchange_subsets(tmp_path):
    def row(question, better, worse="w"):
        return {"question": question, "response_j": better, "response_k": worse, "qid": 1}

    write(tmp_path / "finetune.jsonl", [row("f", "1")])
    write(tmp_path / "reward.jsonl", [row("w", "2", "3")])
    write(tmp_path / "rl.jsonl", [row("r", "4"), row("r", "4", "v")])
    write(tmp_path / "evaluation.jsonl", [row("e1", "5"), row("e2", "6"), row("e1", "7")])
    task = qa.load(str(tmp_path))
    assert task.texts["train"] == ["Question: f\n\nAnswer: 1"]
    assert task.pairs["train"] == (["Question: w\n\nAnswer: "], ["2"], ["3"])
    assert task.splits["train"] == (["Question: r\n\nAnswer: "], ["4"], [""])
    held = [task.splits[split].prompts[0][10:12] for split in ("validation", "test")]
    assert sorted(held) == ["e1", "e2"] and len(task.splits["validation"].prompts + task.splits["test"].prompts) == 2
    both = dict(zip(held, (task.pairs["validation"], task.pairs["test"]), strict=True))
    assert sorted(both["e1"].chosen) == ["5", "7"] and both["e2"].chosen == ["6"]
    first = dict(zip(held, (task.splits["validation"], task.splits["test"]), strict=True))["e1"]
    assert first.references == both["e1"].chosen[:1]
    write(tmp_path / "evaluation.jsonl", [row("e1", "5"), row("e1", "6")])
    with pytest.raises(UserError, match=r"has 1 question in evaluation.jsonl"):
        qa.load(str(tmp_path))
    (tmp_path / "reward.jsonl").unlink()
    with pytest.raises(UserError, match=r"no file reward.jsonl"):
        qa.load(str(tmp_path))


PROMPT = "TITLE: t\n\nPOST: a b\nc d\n\ne f\n\nTL;DR:"


@pytest.mark.parametrize(
    "budget, post",
    [(99, "a b\nc d\n\ne f"), (10, "a b\nc d\n\ne f"), (9, "a b\nc d\n"), (8, "a b\nc d\n"), (7, "a b"), (6, "a b")],
)
def test_a_long_post_is_cut_at_its_last_newline(budget, post):
    """Words are tokens: TITLE:, t, POST: and TL;DR: take 4, each line 2. A cut leaves out one newline only."""
    assert tldr.fit(PROMPT, budget, words) == tldr.query(post, "t")


def test_a_post_of_one_line_is_cut_by_characters():
    prompt = tldr.query("abcdefghij", "t")
    frame = len(tldr.query("", "t"))
    for n in range(11):
        assert tldr.fit(prompt, frame + n, list) == tldr.query("abcdefghij"[:n], "t")
    with pytest.raises(UserError, match=f"{frame - 1} tokens cannot hold even 'TITLE: t"):
        tldr.fit(prompt, frame - 1, list)


def test_cut_as_one_character_after_another_would():
    """The loop of the reference code, on real-looking prompts with a tokeniser of 4-character pieces."""

    def encode(text):
        return [text[i : i + 4] for i in range(0, len(text), 4)]

    def slow(post, budget):
        while len(encode(tldr.query(post, "x", "y"))) > budget:
            post = post[: post.rindex("\n")] if "\n" in post else post[:-1]
        return tldr.query(post, "x", "y")

    for post in ("one line of a post that goes on", "first\nsecond line\n\nthird", "\nbegins with a newline and is long"):
        for budget in range(11, 25):
            assert tldr.fit(tldr.query(post, "x", "y"), budget, encode) == slow(post, budget)


@pytest.mark.parametrize("text", ["POST: a", "TITLE: a\n\nTL;DR:", "POSTS: a\n\nTL;DR:"])
def test_only_a_tldr_prompt_can_be_cut(text):
    with pytest.raises(UserError, match="is no TL;DR prompt"):
        tldr.fit(text, 1, words)


def test_a_post_may_hold_the_words_of_the_template():
    prompt = tldr.query("POST: a\n\nPOST: b\n\nTL;DR: c")
    assert tldr.fit(prompt, 4, words) == tldr.query("POST: a\n")
