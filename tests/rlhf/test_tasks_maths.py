"""GSM8K's prompt, marks and answers; equations that are right, distinct and in one split with their twins."""

import itertools
import json
import re

import numpy as np
import pytest

from rlhf_jax.tasks import arithmetic, gsm8k
from training.errors import UserError

TRAIN = [
    "She has 2*3 = <<2*3=6>>6.\nAnd 60+7 = $<<60+7=67>>67.\n#### 67",
    "<<7+60=67>>67 and <<5-9=-4>>-4 and <<9-5=3>>3 and <<1.5+2=3.5>> <<1+2+3=6>>6 <<12/5=2.4>> <<12/4=3>>3\n#### 1,203",
    "<<1000+1=1001>>1001 <<1+2000=2001>>2001 <<999+1=1000>>1000 <<2*3=6>>6 <<5/0=0>>0 <<2%*3=6>>6\n#### -3.5",
]


@pytest.fixture
def folder(tmp_path):
    for name, answers in (("train", TRAIN), ("test", ["<<8-3=5>>5\n#### 5"])):
        rows = [json.dumps({"question": f"How many {i}?", "answer": answer}) for i, answer in enumerate(answers)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    return str(tmp_path)


def test_prompt_reference_and_answer(folder):
    part = gsm8k.load(folder).splits["test"]
    assert part == (["[MATH_TASK] Problem:\nHow many 0?\n\nSolution:"], ["\n<<8-3=5>>5\n#### 5"], ["5"])


def test_marks_kept_or_removed_and_commas_dropped(folder):
    kept, removed = (gsm8k.load(folder, marks=marks, validation=0.3) for marks in (True, False))
    assert (
        "\nShe has 2*3 = 6.\nAnd 60+7 = $67.\n#### 67"
        in removed.splits["train"].references + removed.splits["validation"].references
    )
    assert sorted(kept.splits["train"].answers + kept.splits["validation"].answers) == ["-3.5", "1203", "67"]
    assert kept.splits["train"].prompts == removed.splits["train"].prompts
    assert not any("<<" in text for texts in removed.texts.values() for text in texts)
    assert sum(text.count("<<") for part in kept.texts.values() for text in part) == sum(a.count("<<") for a in [*TRAIN, "<<"])


def test_an_answer_without_a_number_is_named(tmp_path):
    row = json.dumps({"question": "q", "answer": "#### none"})
    (tmp_path / "train.jsonl").write_text(row)
    with pytest.raises(UserError, match=r"train.jsonl line 1: the answer has no '#### number'"):
        gsm8k.load(str(tmp_path))


@pytest.mark.parametrize(
    "text, number",
    [("#### 18", "18"), ("a #### -1,234.5 b", "-1234.5"), ("#### 1\n#### 2", "1"), ("####3", ""), ("#### $3", ""), ("18", "")],
)
def test_the_first_number_after_hashes(text, number):
    assert gsm8k.number_after_hashes(text) == number


def test_steps_are_whole_right_and_distinct():
    found = [(2, "*", 3), (60, "+", 7), (7, "+", 60), (12, "/", 4), (1000, "+", 1), (1, "+", 2000), (999, "+", 1)]
    assert arithmetic.steps(TRAIN) == found


def test_equations_of_the_files(folder):
    def equations(**options):
        task = arithmetic.load(folder, held_out=0.3, **options)
        return sorted(itertools.chain(*task.texts.values()))

    assert equations() == ["60+7=67", "7+60=67", "8-3=5", "999+1=1000"]  # operands of at most 3 digits
    assert equations(digits=0, ops="+") == ["1+2000=2001", "1000+1=1001", "60+7=67", "7+60=67", "999+1=1000"]
    assert equations(ops="*/-") == ["12/4=3", "2*3=6", "8-3=5"]


def test_twins_share_a_split():
    task = arithmetic.load("toy", drawn=90, digits=1, ops="+*-")
    place = {prompt: split for split, part in task.splits.items() for prompt in part.prompts}
    twins = 0
    for prompt, split in place.items():
        a, op, b = re.match(r"(\d+)(.)(\d+)=$", prompt).groups()
        if op in "+*" and a != b and f"{b}{op}{a}=" in place:
            twins += 1
            assert place[f"{b}{op}{a}="] == split
    assert twins > 10 and len(place) == 90  # no equation twice


def test_drawn_equations_are_right_and_whole():
    for op in "+-*/":
        found = arithmetic.draw(300, op, 2, np.random.default_rng(0))
        assert len(set(found)) == 300
        for a, same, b in found:
            exact = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[op]
            assert same == op and max(a, b) < 100 and exact >= 0 and exact == arithmetic.OPS[op](a, b)
    assert len(arithmetic.draw(500, "+", 1, np.random.default_rng(0))) == 100  # there are no more


def test_answers_are_the_references():
    part = arithmetic.load("toy", drawn=50).splits["train"]
    assert part.answers == part.references and all(
        str(eval_sum(p)) == a for p, a in zip(part.prompts, part.answers, strict=True)
    )


def eval_sum(prompt):
    a, op, b = re.match(r"(\d+)([+-])(\d+)=$", prompt).groups()
    return int(a) + int(b) * (1 if op == "+" else -1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ops": "+x"}, r"'\+x' must be some of \+-\*/"),
        ({"ops": ""}, "must be some of"),
        ({"drawn": -1}, "0 or more"),
        ({"held_out": 0.5}, "shares"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(UserError, match=message):
        arithmetic.load("toy", **options)
