"""The paper's five claims, judged by intervals: one row a claim, and the comparisons behind it."""

from collections import Counter
from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

from kbc_jax.tables.compare import ALL

CLAIMS = {
    1: "Factorized does not beat DNN on the official positives",
    2: "Factorized beats DNN on the random split",
    3: "Factorized leads DNN in the most novel third of the random split",
    4: "Every model loses more than 0.1 F1 from the least to the most novel third",
    5: "Prototypical trails Factorized by 5 to 10 points, and by less in the least novel third",
}
SPLITS = ("official", "redrawn", "random")
PAPERS = ("factorized", "dnn", "prototypical")  # the models of the paper
YES, NO, OPEN, ONE_SEED = "yes", "no", "not told apart", "one seed"


class Part(NamedTuple):
    """One comparison behind a claim, which holds if its measure lies in (over, up_to]."""

    claim: int  # its number; 0 for comparisons that the paper does not make
    text: str
    split: str
    what: str  # an arm, or 'a - b'
    metric: str
    level: str  # of compare.LEVELS
    over: float = 0.0
    up_to: float = inf
    counts: bool = True  # the claim's verdict needs it


def parts() -> list[Part]:
    """Every comparison, in the order of its table."""
    ours, pair, trails = "fusion - factorized", "factorized - dnn", "factorized - prototypical"
    comparisons = [Part(1, "Factorized does not beat DNN", split, pair, "accuracy", ALL, -inf, 0) for split in SPLITS[:2]]
    comparisons += [
        Part(2, "Factorized beats DNN", "random", pair, "accuracy", ALL),
        Part(2, "the same by F1", "random", pair, "f1", ALL, counts=False),
        Part(3, "Factorized leads in the most novel third", "random", pair, "f1", "third 3"),
        Part(3, "and in the middle third", "random", pair, "f1", "third 2", counts=False),
        Part(3, "DNN leads in the least novel third", "random", pair, "f1", "third 1", -inf, 0, counts=False),
        Part(3, "the lead grows from first to last third", "random", pair, "f1", "third 1 - 3", -inf, 0, counts=False),
        Part(3, "leads with classes balanced", "random", pair, "balanced_f1", "paired third 3", counts=False),
        Part(3, "leads by AUC, classes balanced", "random", pair, "auc", "paired third 3", counts=False),
    ]
    for split in SPLITS:
        for arm in (*PAPERS, "bilinear", "fusion"):
            counts = arm in PAPERS
            comparisons += [
                Part(4, "F1 falls by more than 0.1", split, arm, "f1", "third 1 - 3", 0.1, counts=counts),
                Part(4, "with classes balanced", split, arm, "balanced_f1", "paired third 1 - 3", 0.1, counts=False),
                Part(4, "AUC falls at all, classes balanced", split, arm, "auc", "paired third 1 - 3", counts=False),
            ]
    for split in SPLITS:
        comparisons += [
            Part(5, "Prototypical trails by 5 to 10 points", split, trails, "accuracy", ALL, 0.05, 0.1),
            Part(5, "and by less in the least novel third", split, trails, "f1", "all - third 1"),
            Part(5, "the same with classes balanced", split, trails, "balanced_f1", "all - paired third 1", counts=False),
            Part(5, "DNN leads by 5 to 10 points", split, "dnn - prototypical", "accuracy", ALL, 0.05, 0.1, counts=False),
            Part(0, "Fusion beats Factorized", split, ours, "accuracy", ALL, counts=False),
            Part(0, "Fusion leads in the most novel third", split, ours, "f1", "third 3", counts=False),
        ]
    return comparisons


def judge(results: dict[str, Any]) -> list[tuple[Part, dict[str, float], str]]:
    """(part, estimate, verdict) of the comparisons that the results of `study.study` have."""
    judged = []
    for part in parts():
        facts = results.get(part.split, {})
        value = facts.get("compare", {}).get(part.what, {}).get(part.metric, {}).get(part.level)
        if value:
            seeds = min(facts["arms"][arm]["seeds"] for arm in part.what.split(" - "))
            judged.append((part, value, verdict(value, seeds, part.over, part.up_to)))
    return judged


def verdict(value: dict[str, float], seeds: int, over: float, up_to: float) -> str:
    """'yes' where the whole interval lies in (over, up_to], 'no' where all of it lies on one side, else 'not told apart'."""
    low, high = value["low"], value["high"]
    if seeds < 2:
        return ONE_SEED
    if low > over and high <= up_to:
        return YES
    return NO if high <= over or low > up_to else OPEN


def combine(verdicts: Sequence[str]) -> str:
    """A claim's verdict from those of its parts: one 'no' refutes it, and 'yes' needs all."""
    if not verdicts:
        return "not measured"
    for outcome in (ONE_SEED, NO, OPEN):
        if outcome in verdicts:
            return outcome
    return YES


def summary(results: dict[str, Any]) -> dict:
    """Table of the five claims and their verdicts."""
    judged, rows = [(part, outcome) for part, _, outcome in judge(results) if part.counts], []
    for number, text in CLAIMS.items():
        verdicts = [(part, outcome) for part, outcome in judged if part.claim == number]
        splits = ", ".join(dict.fromkeys(part.split for part, _ in verdicts)) or None
        counts = Counter(outcome for _, outcome in verdicts)
        counted = ", ".join(f"{outcome} {counts[outcome]}" for outcome in (YES, NO, OPEN, ONE_SEED) if counts[outcome]) or None
        rows.append([f"{number}. {text}", splits, counted, combine([outcome for _, outcome in verdicts])])
    return {
        "title": "The claims",
        "caption": "A comparison is 'yes' where its whole 95 % interval agrees with the claim, 'no' where none of it does. "
        "A claim is 'no' where one of its comparisons is, and 'yes' where all are. The next table has them.",
        "columns": ["claim", "splits", "comparisons", "verdict"],
        "rows": rows,
    }


def details(results: dict[str, Any]) -> dict:
    """Table of all comparisons, also those that do not count for a verdict."""
    rows = []
    for part, value, outcome in judge(results):
        figure = f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
        where = f"{part.split}: {part.what}, {part.metric}, {part.level}"
        rows.append([part.claim or None, part.text, where, figure, outcome, "yes" if part.counts else None])
    return {
        "title": "The comparisons behind the claims",
        "caption": "Differences of seed means with 95 % bootstrap intervals over test triples (a true one together with the "
        "false ones made from it) and training seeds, all on the same draws; 'third 1 - 3' is the least minus the most novel "
        "third. Paired thirds: false triples lie in the third of the true one they corrupt. Few seeds make the intervals "
        "somewhat narrow.",
        "columns": ["claim", "comparison", "measured on", "figure", "verdict", "counts for the claim"],
        "rows": rows,
    }
