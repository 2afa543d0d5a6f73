"""Tables of mined triples and human judgement: rankings, novelty of the top, unseen words, the paper's own studies."""

from collections.abc import Mapping
from typing import Any

from kbc_jax.tables import human, published
from kbc_jax.tables.cells import THIRDS, arms, interval, seed_note, show
from kbc_jax.tables.compare import ALL, UNSEEN


def l2_modes(results: dict) -> dict:
    """Table of the arms that were trained with lazy and with dense L2, and of the differences."""
    rows, counts = [], []
    for split, facts in results.items():
        names = [name for name in facts["arms"] if f"{name}_dense" in facts["arms"]]
        if names:
            mined = f", {facts['human']['unseen']} of the {facts['human']['n']} mined" if "human" in facts else ""
            counts.append(f"{split}: {facts['unseen']['test']} of the test triples{mined}")
        for name in names:
            dense = f"{name}_dense"
            for mode, arm in (("lazy", name), ("dense", dense), ("dense − lazy", f"{dense} - {name}")):
                rows.append([split, name, mode, *_l2_cells(facts, arm, "+" if arm not in facts["arms"] else "")])
    return {
        "title": "L2 on the word table: lazy (rows of the batch) and dense (all rows, the authors' code)",
        "caption": "Adagrad turns dense L2 into a steady erasure of words without training triples. `static` arms know such "
        f"words from general text, the others start them all at one vector. Triples with such a word: {'; '.join(counts)}. "
        "Mined: rank correlation with people's mean rating, and the mean rating of the best 100 (30). 95 % bootstrap intervals."
        + seed_note(results, *results),
        "columns": [
            "split", "model", "L2", "accuracy", "F1, most novel third", "accuracy, unseen word", "AUC, unseen word",
            "mined: Spearman", "best 100", "mined, unseen word: Spearman", "best 30",
        ],
        "rows": rows,
    }  # fmt: skip


def _l2_cells(facts: Mapping[str, Any], arm: str, sign: str) -> list[str | None]:
    """Cells of an arm or a difference, from the results of a split."""

    def test(metric: str, level: str) -> str | None:
        return interval(facts["compare"].get(arm, {}).get(metric, {}).get(level), sign=sign)

    ratings = facts.get("human", {}).get("rankings", {}).get(arm, {})
    measures = {"spearman": 3, "top_100": 2, "unseen_spearman": 3, "unseen_top_30": 2}
    tests = [test("accuracy", ALL), test("f1", "third 3"), test("accuracy", UNSEEN), test("auc", UNSEEN)]
    return tests + [interval(ratings.get(name), digits, sign) for name, digits in measures.items()]


def rankings(results: dict, split: str) -> dict | None:
    """Table of the agreement with people of every arm and of Li et al.'s score, with ceilings; None without ratings."""
    if "human" not in results[split]:
        return None
    facts, rows = results[split]["human"], []
    best = [f"top_30_third_{k}" for k in (1, 2, 3)]
    for name in [*arms(results, split), human.LI]:
        ranking, lead = facts["rankings"][name], facts["rankings"].get(f"{name} - {human.LI}", {})
        rows.append(
            [
                name, interval(ranking["spearman"]), interval(lead.get("spearman"), sign="+"), interval(ranking["top_100"], 2),
                interval(lead.get("top_100"), 2, "+"), *(interval(ranking[measure], 2) for measure in best),
            ]
        )  # fmt: skip
    rows.append(["one rater against the other", interval(facts["raters"]), *[None] * 6])
    ceiling = facts["ceiling"]
    rows.append(
        ["the mean rating itself", None, None, f"{ceiling['top_100']:.2f}", None, *(f"{ceiling[name]:.2f}" for name in best)]
    )
    return {
        "title": f"Triples mined from Wikipedia, ranked by models trained on the {split} split",
        "caption": f"{facts['n']} triples with two human ratings of 0 to 4 (mean {facts['mean']:.2f}; chosen by BERT scorers, "
        "no fair sample): rank correlation with the mean rating, mean rating of the best 100, and of the best 30 in each "
        "novelty third, with 95 % bootstrap intervals over triples and seeds; differences from Li et al.'s score on the same "
        "draws. The last rows are ceilings: how well one rater predicts the other, and what a perfect ranking would get."
        + seed_note(results, split),
        "columns": [
            "model", "Spearman", "− Li et al.'s", "best 100", "− Li et al.'s best 100", *(f"best 30, {t}" for t in THIRDS),
        ],
        "rows": rows,
    }  # fmt: skip


def novelty_of_top(results: dict, split: str) -> dict | None:
    """Table of the mean novelty of the best K of 3,000 mined triples, and of the paper's 1.6 million; None without them."""
    if "novelty_of_top" not in results[split]:
        return None
    tops_of = results[split]["novelty_of_top"]
    counts = sorted({int(k) for tops in [*tops_of.values(), *published.TOP_NOVELTY.values()] for k in tops})
    rows = []
    for name in [*(name for name in arms(results, split) if name in tops_of), human.LI]:
        tops = tops_of[name]
        last = tops[max(tops, key=int)]["mean"]
        cells = [show(tops[str(k)], 2) if str(k) in tops else None for k in counts]
        rows.append([name, "ours", *cells, f"{tops[min(tops, key=int)]['mean'] / last:.2f}"])
    for name, tops in published.TOP_NOVELTY.items():
        cells = [f"{tops[k]:.2f}" if k in tops else None for k in counts]
        rows.append([name, "paper", *cells, f"{tops[min(tops)] / tops[max(tops)]:.2f}"])
    return {
        "title": f"Mean novelty of the best K mined triples, models of the {split} split",
        "caption": "Ours: 3,000 triples (300 a relation) and skip-gram vectors; the paper: some 1.6 million and OMCS vectors, "
        "so that only the last column compares: best 100 by the most that there are. Above 1, a model prefers novel triples.",
        "columns": ["model", "whose", *(f"best {k:,}" for k in counts), "first / last"],
        "rows": rows,
    }


def quality() -> dict:
    """Table of the paper's human ratings of mined triples (0 to 4)."""
    studies = {
        "best 100, first study (two raters)": published.MINED_FIRST,
        "best 100, as reprinted by Davison et al. 2019 (unchecked)": published.MINED_REPRINT,
        **{
            f"best 100 of the {third} third": {name: values[k] for name, values in published.MINED.items()}
            for k, third in enumerate(THIRDS)
        },
    }
    names = ("bilinear", "dnn", "factorized", "prototypical")
    rows = [[study, *(f"{means[n]:.2f}" if n in means else None for n in names)] for study, means in studies.items()]
    return {
        "title": "Mined triples: what people said in the paper",
        "caption": "Mean rating of 0 to 4, new ratings of each model's best of 1.6 million mined triples; our own tables rank "
        "triples that were rated before, so their level does not compare.",
        "columns": ["study", *names],
        "rows": rows,
    }


def novelty_by_people() -> dict:
    """Table of the paper's human novelty study; `kbc_jax.mine novelty_table` makes a row of your own."""
    rows = [
        [name, f"{used} / {sampled}", *(f"{share:.0%}" for share in shares), *(f"{value:.2f}" for value in rest)]
        for name, (used, sampled, shares, *rest) in published.HUMAN_NOVELTY.items()
    ]
    return {
        "title": "How novel true triples are to people, in the paper",
        "caption": "A and B: rewording of a training triple (same, other relation); C and D: similar word; E: simple "
        "inference; F: none of these. Mean on the scale A 0 to F 5, of all, and of the halves with less and with more novelty.",
        "columns": ["triples", "kept / sampled", *"ABCDEF", "mean", "near half", "far half", "Pearson with novelty"],
        "rows": rows,
    }
