"""Data folders, JSON Lines read or refused with file and line, dealing of rows, options of open_task."""

import gzip
import itertools
import os
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rlhf_jax import tasks
from rlhf_jax.tasks import files
from training.errors import UserError

FIELDS = {"text": str, "label": int}
GOOD = b'{"text": "caf\xc3\xa9", "label": 1, "more": null}\n'
BAD = {
    "not JSON": (b'{"text": "a", label: 1}', r"is not JSON \(.*column 15\)"),
    "cut": (b'{"text": "a', "is not JSON"),
    "not an object": (b'["a", 1]', "is a JSON list"),
    "Latin-1": (b'{"text": "caf\xe9", "label": 1}', "is not UTF-8.*byte 13"),
    "missing": (b'{"txt": "a", "label": 1}', "no field 'text' among 'txt', 'label'"),
    "empty": (b"{}", "no field 'text' among none"),
    "number for text": (b'{"text": 3, "label": 1}', "'text' is int, not str"),
    "text for number": (b'{"text": "a", "label": "1"}', "'label' is str, not int"),
    "truth for number": (b'{"text": "a", "label": true}', "'label' is bool, not int"),
    "blank": (b'{"text": " \\n", "label": 1}', "'text' is blank"),
    "own check": (b'{"text": "a", "label": 7}', "label 7"),
}


def check(row):
    return "" if row["label"] < 2 else f"label {row['label']}"


def test_rows_blank_lines_and_byte_order_mark(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n\n" + GOOD.strip())
    assert files.read_jsonl(path, FIELDS, check) == [{"text": "café", "label": 1, "more": None}] * 2


@pytest.mark.parametrize("line, message", BAD.values(), ids=BAD)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(UserError, match=f"{path} line 3.*{message}"):
        files.read_jsonl(path, FIELDS, check)


def test_a_field_that_may_be_blank(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "", "other": "a"}\n{"text": "", "other": ""}')
    with pytest.raises(UserError, match="line 2: field 'other' is blank"):
        files.read_jsonl(path, {"text": str, "other": str}, blank=("text",))
    with pytest.raises(UserError, match=f"no file {tmp_path / 'b.jsonl'}"):
        files.read_jsonl(tmp_path / "b.jsonl", FIELDS)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_no_rows(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"a.jsonl is empty"):
        files.read_jsonl(tmp_path / "a.jsonl", FIELDS)


def test_gzip_and_damaged_gzip(tmp_path):
    packed = gzip.compress(GOOD * 500 + os.urandom(3000).hex().encode())
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD))
    assert len(files.read_jsonl(path, FIELDS)) == 1
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 255
    for damaged in (packed[: len(packed) // 2], GOOD, bytes(flipped), packed[:10] + b"\xff" * 50):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a.jsonl.gz (cannot be unpacked|line)"):
            files.read_jsonl(path, FIELDS)


def test_plain_before_gzipped_and_first_name_first(tmp_path):
    for name in ("dev.jsonl.gz", "valid.jsonl.gz", "valid.jsonl"):
        (tmp_path / name).touch()
    assert files.need_file(tmp_path, "validation", "valid", "dev").name == "valid.jsonl"
    assert files.need_file(tmp_path, "dev").name == "dev.jsonl.gz" and files.find_file(tmp_path, "test") is None
    with pytest.raises(UserError, match=f"{tmp_path} has no file validation.jsonl or test.jsonl"):
        files.need_file(tmp_path, "validation", "test")


def test_deal_is_a_partition_that_depends_on_the_seed_only():
    rows = list(range(100))
    dealt = files.deal(rows, {"validation": 0.2, "test": 0.1}, 3)
    assert {split: len(part) for split, part in dealt.items()} == {"train": 70, "validation": 20, "test": 10}
    assert sorted(itertools.chain(*dealt.values())) == rows
    assert (
        dealt == files.deal(rows, {"validation": 0.2, "test": 0.1}, 3) != files.deal(rows, {"validation": 0.2, "test": 0.1}, 4)
    )
    assert {split: len(part) for split, part in files.deal([1, 2], {"test": 0.01}, 0).items()} == {"train": 1, "test": 1}
    with pytest.raises(UserError, match="1 reviews are too few for 2 splits"):
        files.deal([1], {"test": 0.5}, 0, "reviews")
    for share in (0.0, -0.1, 1.0):
        with pytest.raises(UserError, match="shares"):
            files.deal(rows, {"test": share}, 0)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_embedded_texts_of_every_task(name, monkeypatch):
    """Without any data; splits are disjoint, texts are prompt and reference, pairs differ, a second call gives the same."""
    monkeypatch.delenv("QUINTET_DATA", raising=False)
    monkeypatch.setattr(files, "read_jsonl", None)  # nothing may be read
    task = tasks.open_task(ConfigDict(tasks.defaults(name)))
    assert task.name == name and set(task.splits) == {"train", "validation", "test"}
    whole = []
    for split, part in task.splits.items():
        assert len(part.prompts) == len(part.references) == len(part.answers) > 1
        assert task.texts[split] == part.texts() and all(map(str.strip, part.prompts)) and all(part.references)
        whole += sorted(set(task.texts[split]))
    assert len(whole) == len(set(whole))
    for pairs in task.pairs.values():
        assert all(c != r for c, r in zip(pairs.chosen, pairs.rejected, strict=True)) and pairs.prompts
    assert bool(task.pairs) == (name in ("tldr", "qa")) and bool(task.labelled) == (name == "imdb")
    assert any(task.splits["test"].answers) == (name in ("gsm8k", "arithmetic"))
    tasks._open.cache_clear()
    again = tasks.open_task({"task": name, "dir": "toy"})
    assert again.splits == task.splits and again.pairs == task.pairs


def test_limit_is_the_head_of_each_split():
    for name in tasks.TASKS:
        whole, few = (tasks.open_task({"task": name, "dir": "toy", "limit": limit}) for limit in (0, 2))
        for split, part in few.splits.items():
            assert len(part.prompts) == 2 and len(few.texts[split]) == 2
            if name != "imdb":  # which shuffles what it has read
                assert part == whole.splits[split].head(2)
        assert all(len(pairs.prompts) == 2 for pairs in few.pairs.values())


def test_options_that_cannot_be():
    with pytest.raises(UserError, match="no task 'imbd'; there are imdb, tldr"):
        tasks.open_task({"task": "imbd"})
    with pytest.raises(UserError, match=r"config.data.marks takes bool, not 'no'"):
        tasks.open_task({"task": "gsm8k", "dir": "toy", "marks": "no"})
    with pytest.raises(UserError, match=r"config.data.limit must be 0"):
        tasks.open_task({"task": "qa", "dir": "toy", "limit": -1})
    with pytest.raises(UserError, match="tensorflow-datasets serves imdb only"):
        tasks.open_task({"task": "gsm8k", "dir": "tfds"})


def test_other_keys_are_left_alone_and_the_environment_is_looked_at_again(tmp_path, monkeypatch):
    monkeypatch.delenv("QUINTET_DATA", raising=False)
    task = tasks.open_task({"task": "qa", "dir": "", "prompt_length": 64})
    assert "boil" in " ".join(itertools.chain(*(part.prompts for part in task.splits.values())))
    monkeypatch.setenv("QUINTET_DATA", str(tmp_path))
    with pytest.raises(UserError, match="no folder stack_exchange or alpacaeval_prefs"):
        tasks.open_task({"task": "qa", "dir": "", "prompt_length": 64})


@pytest.fixture
def root():
    if not os.environ.get("QUINTET_DATA"):
        pytest.skip("QUINTET_DATA is not set: no files to read")
    return Path(os.environ["QUINTET_DATA"])


COUNTS = {  # sizes of the published files
    "imdb": (12000, 3000, 5000),
    "tldr": (1992, 619, 618),
    "qa": (653, 72, 80),
    "gsm8k": (7099, 374, 1319),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_real_files(name, root):
    task = tasks.open_task(tasks.defaults(name))
    if name == "tldr" and (root / "tldr").is_dir():
        pytest.skip("the folder tldr comes before scitldr")
    assert tuple(len(part.prompts) for part in task.splits.values()) == COUNTS[name]
    assert all(task.texts[split] == part.texts() for split, part in task.splits.items())
    if task.pairs:
        assert sum(len(pairs.prompts) for pairs in task.pairs.values()) == 6346 and len(task.pairs["test"].prompts) == 637
