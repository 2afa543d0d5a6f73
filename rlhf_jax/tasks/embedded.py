"""Small texts of our own, so that every command runs without any data: built from lists of phrases, always the same."""

import itertools
import random
from typing import Any

THINGS = (
    "The acting in this film",
    "The story of this movie",
    "The music in the last scene",
    "The young director",
    "The second half of the film",
    "The camera work",
    "The script of the old series",
    "The villain in this one",
    "The ending of the movie",
    "The hero of the story",
)
VERDICTS = {
    1: (
        "is wonderful",
        "is a great joy",
        "was better than I had hoped",
        "made me laugh and smile",
        "is honest and beautiful",
        "was perfect for the whole family",
        "is the best I have seen this year",
    ),
    0: (
        "is terrible",
        "is a sad waste of time",
        "was worse than I had feared",
        "made me angry and tired",
        "is ugly and stupid",
        "was boring for the whole family",
        "is the worst I have seen this year",
    ),
}
REASONS = (
    "from the first minute to the last.",
    "and I have told all my friends about it.",
    "when I think of the book.",
    "and the people around me said the same.",
    "although the trailer looked quite different.",
    "and nobody in the room could believe it.",
)

QUESTIONS = (  # question, good answer, poor answer
    ("How do I boil an egg?", "Put the egg in boiling water for eight minutes, then cool it in cold water.", "Use an egg."),
    ("Why is the sky blue?", "Air scatters blue light more than red light, so blue reaches us from everywhere.", "It is."),
    ("How can I sleep better?", "Go to bed at the same time each day and keep the room dark and cool.", "Sleep more."),
    ("What is a prime number?", "A whole number above one that only one and itself divide.", "A number like nine."),
    ("How do I remove a stain of ink?", "Dab it with alcohol on a cloth, then wash it in cold water.", "Buy a new shirt."),
    ("Why do leaves turn red?", "In autumn the green pigment breaks down and the red ones show.", "They get cold."),
    ("How do I learn a language?", "Speak a little every day and read texts that are slightly too hard.", "Read a book."),
    ("What does a compiler do?", "It translates a program into instructions that the machine can run.", "It compiles."),
    ("How do I sharpen a knife?", "Draw it over a wet stone at a low angle, both sides in turn.", "With a sharpener."),
    ("Why does bread rise?", "Yeast eats the sugar in the dough and gives off gas that blows it up.", "Because of the oven."),
    ("How do I start to run?", "Walk and run in turn for twenty minutes, three times a week.", "Just run fast."),
    ("What is an eclipse?", "The moon stands between sun and earth and throws its shadow on us.", "The sun goes away."),
    ("How do I save money?", "Write down what you spend for a month and cut what you do not miss.", "Spend nothing."),
    ("Why is the sea salty?", "Rivers wash salt out of the rocks, and the sea keeps it when water evaporates.", "Fish."),
    ("How do I water a cactus?", "Give it much water rarely, and let the soil dry out in between.", "Every day, a lot."),
    ("What is a verb?", "A word for what somebody does or for what happens.", "A word."),
    ("How do I fix a flat tyre?", "Take out the tube, find the hole, roughen it and glue a patch on it.", "Call somebody."),
    ("Why do cats purr?", "They purr when they are content, and also to calm themselves.", "Cats are loud."),
    ("How do I make tea?", "Pour boiling water over the leaves and take them out after four minutes.", "Tea and water."),
    ("What is a recursive function?", "One that calls itself on a smaller case until it reaches the base case.", "See above."),
)

WHO = ("brother", "boss", "neighbour", "best friend", "aunt", "flatmate")
DEEDS = (
    ("borrowed my car and brought it back with a dent", "dented my car"),
    ("told everybody at dinner that I am moving away", "gave away my secret"),
    ("has asked me for money for the third time", "keeps asking for money"),
    ("forgot my birthday although we had planned the day together", "forgot my birthday"),
    ("plays loud music every night until two", "is loud at night"),
)
WISHES = (
    ("I do not want to fight about it.", "want peace"),
    ("I would like to hear sorry, nothing more.", "want an apology"),
    ("I am thinking about not answering calls any more.", "may cut contact"),
)

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix")
GOODS = ("apples", "books", "coins", "stamps", "marbles", "cards")


def reviews(split: str) -> list[dict[str, Any]]:
    """Reviews of three sentences with one verdict, as rows of `imdb`: 224 to train, 56 to test, half of them positive."""
    rows = []
    for label, verdicts in VERDICTS.items():
        said = [" ".join(parts) for parts in itertools.product(THINGS, verdicts, REASONS)]
        random.Random(label).shuffle(said)
        texts = [" ".join(said[i : i + 3]) for i in range(0, len(said), 3)]
        rows.append([{"text": text, "label": label} for text in texts])
    mixed = [row for pair in zip(*rows, strict=True) for row in pair]
    return mixed[:-56] if split == "train" else mixed[-56:]


def preferences() -> list[dict[str, str]]:
    """Questions with a good and a poor answer, as rows of `preferences`."""
    return [
        {"split": "test" if i % 5 == 4 else "train", "instruction": question, "chosen": good, "rejected": poor}
        for i, (question, good, poor) in enumerate(QUESTIONS)
    ]


def posts() -> list[dict[str, str]]:
    """90 posts that ask for advice, as rows of `tldr`, with a good summary and a poor one ('rejected')."""
    rows = []
    for who, (deed, short), (wish, aim) in itertools.product(WHO, DEEDS, WISHES):
        post = f"My {who} {deed}.\nWe have known each other for years.\n{wish} What should I do?"
        summary = f"My {who} {short} and I {aim}."
        rows.append(
            {"subreddit": "advice", "title": f"My {who} {short}", "post": post, "summary": summary, "rejected": post[:40]}
        )
    random.Random(0).shuffle(rows)
    return rows


def problems(split: str) -> list[dict[str, str]]:
    """Word problems of one step, as rows of `gsm8k`: 240 to train, 60 to test."""
    rng, rows = random.Random(0), []
    for i in range(300):
        name, goods = rng.choice(NAMES), rng.choice(GOODS)
        a, b = sorted((rng.randint(2, 99), rng.randint(2, 99)), reverse=True)
        op, did = ("+", "gets") if i % 2 else ("-", "gives away")
        c = a + b if op == "+" else a - b
        question = f"{name} has {a} {goods} and {did} {b}. How many {goods} does {name} have now?"
        answer = f"{name} has {a} {op} {b} = <<{a}{op}{b}={c}>>{c} {goods}.\n#### {c}"
        rows.append({"question": question, "answer": answer})
    return rows[:240] if split == "train" else rows[240:]
