"""Rewards against hand-made completions; what is not finite is refused by row."""

import numpy as np
import pytest

from rlhf_jax.rollouts import rewards
from rlhf_jax.rollouts.rewards import make_reward
from rlhf_jax.tasks import Examples, open_task
from training.errors import UserError


def examples(answers, references=None):
    return Examples(["p"] * len(answers), references or list(answers), answers)


def test_exact_looks_up_the_row_of_the_split():
    reward = make_reward("exact", examples(["72", "5", "-3"]))
    found = reward(np.array([2, 0, 0, 1]), ["p"] * 4, [" -3", "72\n", "7", "55"])
    assert found.tolist() == [1, 1, 0, 0] and found.dtype == np.float32


def test_exact_finds_the_number_after_hashes_where_the_references_have_it():
    part = examples(["72", "1203"], ["\n#### 72", "\n#### 1,203"])
    index, completions = np.array([0, 0, 1, 1]), ["72", "so\n#### 72 .", "#### 1,203", "#### 1.203"]
    assert make_reward("exact", part)(index, ["p"] * 4, completions).tolist() == [0, 1, 1, 0]
    assert make_reward("exact", part, extract="whole")(index, ["p"] * 4, completions).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("name", ["gsm8k", "arithmetic"])
def test_references_of_the_tasks_are_right_answers(name):
    part = open_task({"task": name, "dir": "toy"}).splits["test"]
    index = np.arange(len(part.prompts))
    assert make_reward("exact", part)(index, part.prompts, part.references).all()
    assert make_reward("exact", part)(index[::-1], part.prompts, part.references).mean() < 0.5


def test_exact_needs_answers():
    with pytest.raises(UserError, match="needs gold answers"):
        make_reward("exact", examples(["", ""]))


def test_lexicon_is_vader_of_prompt_and_completion():
    """Valence 1.9 of 'good': compound 1.9 / sqrt(1.9^2 + 15) = .4404; of 'not good' -.74 times that."""
    reward = make_reward("lexicon", examples(["", ""]))
    index = np.arange(5)
    found = reward(index, ["The film is ", "The film is ", "table", "good ", "a"], ["good", "not good", " chair", "table", ""])
    good, bad = 1.9 / np.sqrt(1.9**2 + 15), -0.74 * 1.9 / np.sqrt((0.74 * 1.9) ** 2 + 15)
    np.testing.assert_allclose(found, [(1 + good) / 2, (1 + bad) / 2, 0.5, (1 + good) / 2, 0.5], atol=1e-4)
    alone = make_reward("lexicon", examples(["", ""]), scope="completion")(index[:2], ["good ", "awful "], ["table", "table"])
    assert alone.tolist() == [0.5, 0.5] and alone.dtype == np.float32


def test_lexicon_tells_the_embedded_reviews_apart():
    texts, labels = open_task({"task": "imdb", "dir": "toy"}).labelled["test"]
    scores = rewards.sentiment(texts)
    assert scores.min() >= 0 and scores.max() <= 1 and ((scores > 0.5) == labels).mean() > 0.9


def test_length_grows_to_the_target():
    reward = make_reward("length", examples([""]), target=4)
    assert reward(np.zeros(4, int), ["p"] * 4, ["", "a", "abcd", "abcdefgh"]).tolist() == [0, 0.25, 1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_names_its_row(bad):
    with pytest.raises(UserError, match=r"reward of row 9 is -?(nan|inf) \(2 such rows\)"):
        rewards.check([1.0, bad, bad], np.array([4, 9, 2]))
    assert rewards.check([1, 2], np.array([4, 9])).dtype == np.float32


def test_one_score_for_each_completion():
    with pytest.raises(UserError, match=r"shape \(2, 1\) for 2 completions"):
        rewards.check(np.zeros((2, 1)), np.array([0, 1]))


def test_rewards_pass_through_the_check(monkeypatch):
    monkeypatch.setattr(rewards, "sentiment", lambda texts: np.array([0.5, np.nan]))
    with pytest.raises(UserError, match="reward of row 7"):
        make_reward("lexicon", examples([""]))(np.array([3, 7]), ["p", "p"], ["a", "b"])


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("exakt", {}, "no reward 'exakt'; there are exact, lexicon, length"),
        ("lexicon", {"scope": "prompt"}, "'prompt' of reward 'lexicon'"),
        ("length", {"target": 0}, "must be 1 character or more"),
    ],
)
def test_impossible_rewards(kind, options, message):
    with pytest.raises(UserError, match=message):
        make_reward(kind, examples(["1"]), **options)


def test_unknown_extraction():
    with pytest.raises(UserError, match="no way 'regex'"):
        make_reward("exact", examples(["1"]), extract="regex")(np.array([0]), ["p"], ["1"])
