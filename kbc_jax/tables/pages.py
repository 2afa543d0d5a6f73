"""The study's results as tables (*.table.json, for launch.report) beside the paper's, and a plot of score against novelty."""

import json
from pathlib import Path
from typing import Any

from kbc_jax.tables import claims, mined, published
from kbc_jax.tables.cells import ORDER, THIRDS, arms, interval, seed_note, show, trained_arms
from kbc_jax.tables.compare import PAIRS
from training import files

METRICS = {
    "f1": "F1",
    "balanced_f1": "balanced F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "auc": "AUC",
    "ap": "AP",
}
PAPER = {"official": published.OFFICIAL, "redrawn": published.REDRAWN, "random": {k: v[0] for k, v in published.RANDOM.items()}}
PAIRED = "paired thirds by skipgram"


def write(results: dict[str, Any], out: Path) -> None:
    """Write all tables and plots for which `results` have numbers to the folder `out`."""
    save(out, "1-completion", completion(results))
    for split in results:
        save(out, f"2-thirds-{split}", thirds(results, split, "thirds by skipgram"))
        if PAIRED in results[split]["arms"][arms(results, split)[0]]["buckets"]:
            save(out, f"3-paired-thirds-{split}", thirds(results, split, PAIRED))
        save(out, f"3b-differences-{split}", differences(results, split))
    save(out, "4-claims", claims.summary(results))
    save(out, "4b-claims-in-detail", claims.details(results))
    save(out, "5-embeddings", by_embedding(results))
    save(out, "5b-novelty-by-people", mined.novelty_by_people())
    save(out, "6-l2", mined.l2_modes(results))
    for split in results:
        save(out, f"7-mined-{split}", mined.rankings(results, split))
        save(out, f"7b-novelty-of-top-{split}", mined.novelty_of_top(results, split))
        save(out, f"8-relations-{split}", relations(results, split))
    save(out, "7c-mined-published", mined.quality())
    plot(results, out / "score-against-novelty.png")


def save(out: Path, name: str, table: dict[str, Any] | None) -> None:
    """Write a table for `launch.report`, unless it has no rows."""
    if table is not None and table["rows"]:
        files.write(out / f"{name}.table.json", [json.dumps(table, indent=1)])


def completion(results: dict) -> dict:
    """Table of accuracy, F1 and AUC of every arm on every split."""
    rows = []
    for split in results:
        for name in arms(results, split):
            arm = results[split]["arms"][name]
            test = arm["test"]
            cells = [show(test[key]) for key in ("dev2", "accuracy", "f1", "auc", "ap")]
            paper = PAPER.get(split, {}).get(name)
            filtered = show(test["accuracy_filtered"])
            rows.append([split, name, arm["seeds"], *cells, filtered, f"{paper:.3f}" if paper else None])
    return {
        "title": "Completion",
        "caption": "Mean ± sd over seeds; threshold on dev1, epoch on dev2. Filtered: accuracy without the false triples "
        "that are in train. Paper: accuracy, see docs/kbc.md for the source of each." + seed_note(results, *results),
        "columns": ["split", "model", "seeds", "dev2", "accuracy", "F1", "AUC", "AP", "filtered", "paper"],
        "rows": rows,
    }


def thirds(results: dict, split: str, bucket: str) -> dict:
    """Table of all metrics in each third; on the random split with the paper's F1, also of its arms with GloVe."""
    paper = published.RANDOM if split == "random" and bucket.startswith("thirds") else {}
    published_f1 = {name: " / ".join(f"{x:.3f}" for x in values[1:]) for name, values in paper.items()}
    rows = []
    for name in arms(results, split):
        parts = results[split]["arms"][name]["buckets"][bucket]
        for key, label in METRICS.items():
            cell = [published_f1.get(name) if key == "f1" else None] if paper else []
            rows.append([name, label, *(show(part[key]) for part in parts), *cell])
    rows += [[name, "F1", None, None, None, published_f1[name]] for name in paper if name not in results[split]["arms"]]
    first = results[split]["arms"][arms(results, split)[0]]["buckets"][bucket]
    rates = ", ".join(f"{part['positives']['mean']:.0%}" for part in first)
    trivial = ", ".join(f"{part['all_positive_f1']['mean']:.3f}" for part in first)
    return {
        "title": f"{split} split by novelty: {bucket}",
        "caption": f"True triples in each third: {rates}; F1 of calling all true: {trivial}. Balanced measures weigh both "
        "classes alike. In paired thirds each false triple shares the third of the true one that it corrupts."
        + seed_note(results, split),
        "columns": ["model", "metric", *THIRDS, *(["paper"] if paper else [])],
        "rows": rows,
    }


def differences(results: dict, split: str) -> dict:
    """Table of differences between arms, whole and by third, with intervals."""
    comparisons, rows = results[split]["compare"], []
    for pair in (f"{a} - {b}" for a, b in PAIRS):
        for kind in ("third", "paired third"):
            for key, label in METRICS.items():
                levels = comparisons.get(pair, {}).get(key, {})
                if f"{kind} 1" in levels:
                    names = ["all", *(f"{kind} {k}" for k in (1, 2, 3)), f"{kind} 1 - 3"]
                    rows.append([pair, f"{kind}s", label, *(interval(levels[name], sign="+") for name in names)])
    return {
        "title": f"Differences by third, {split} split",
        "caption": "Difference of seed means with its 95 % bootstrap interval over test triples and seeds, on the same draws "
        "in all columns; the last is that of the least novel third minus that of the most novel one."
        + seed_note(results, split),
        "columns": ["models", "thirds", "metric", "all", *THIRDS, "least − most novel"],
        "rows": rows,
    }


def by_embedding(results: dict) -> dict:
    """Table of F1 by novelty, for each kind of vectors that novelty is measured with."""
    rows = []
    for split in results:
        for kind, facts in results[split]["novelty"].items():
            for name in ("fusion", "factorized", "dnn", "prototypical"):
                if name in results[split]["arms"]:
                    parts = results[split]["arms"][name]["buckets"][f"thirds by {kind}"]
                    cuts = " / ".join(f"{cut:.2f}" for cut in facts["cuts"])
                    rates = " / ".join(f"{rate:.0%}" for rate in facts["positives"])
                    row = [show(p["f1"]) for p in parts] + [" / ".join(f"{p['balanced_f1']['mean']:.3f}" for p in parts)]
                    rows.append([split, kind, cuts, rates, name, *row])
    return {
        "title": "F1 by thirds, with novelty under several embeddings",
        "caption": "skipgram: trained on the training triples, the paper's kind. static, minilm: general text, not fitted to "
        "the knowledge base.",
        "columns": ["split", "novelty under", "cuts", "true", "model", *THIRDS, "balanced F1"],
        "rows": rows,
    }


def relations(results: dict, split: str, fewest: int = 20) -> dict:
    """Table of accuracy by relation, for those with `fewest` test triples or more."""
    names = trained_arms(results, split)
    relation_facts = results[split]["arms"][names[0]]["relations"]
    rows = [
        [
            relation,
            int(facts["n"]["mean"]),
            *(show(results[split]["arms"][n]["relations"][relation]["accuracy"]) for n in names),
        ]
        for relation, facts in relation_facts.items()
        if facts["n"]["mean"] >= fewest
    ]
    return {
        "title": f"Accuracy by relation, {split} split",
        "caption": f"Relations with {fewest} test triples or more; the relation of a false triple is the one it claims.",
        "columns": ["relation", "n", *names],
        "rows": rows,
    }


def plot(results: dict, path: Path) -> None:
    """Plot of the share of test triples judged rightly against their novelty, true and false ones apart, a panel a split.

    A model has the same colour in every panel, and the axis reaches down to the lowest point.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    splits = [split for split in results if any(name in results[split]["curve"] for name in ORDER[:5])]
    if not splits:
        return
    figure, axes = pyplot.subplots(1, len(splits), figsize=(4.2 * len(splits), 3.6), sharey=True, squeeze=False)
    lowest, handles = 0.5, {}
    for axis, split in zip(axes[0], splits, strict=True):
        for color, name in enumerate(ORDER[:5]):
            for part, points in results[split]["curve"].get(name, {}).items():
                x, y = zip(*points, strict=True)
                lowest = min(lowest, *y)
                style = "-" if part == "true" else "--"
                (line,) = axis.plot(x, y, style, color=f"C{color}", lw=1.5, marker="o", ms=3)
                handles.setdefault(name, line)
        axis.set(title=f"{split} split", xlabel="novelty: distance to the nearest training triple")
        axis.grid(alpha=0.3)
    axes[0][0].set(ylabel="judged rightly (— true, -- false triples)", ylim=(lowest - 0.03, 1.03))
    axes[0][0].legend(handles.values(), handles, fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def links(results: dict) -> dict:
    """Table of link prediction: ours, then the published systems."""
    keys = ("mrr", "hits@1", "hits@3", "hits@10")
    ours = []

    def place(arm: str) -> tuple:
        name = arm.removesuffix("_cn82k")
        return name != arm, ORDER.index(name) if name in ORDER else len(ORDER)

    for arm in sorted(results, key=place):
        entry = results[arm]
        graph = "CN-82K" if arm.endswith("_cn82k") else "CN-100K"
        cells = [show(entry["measures"][f"mean {key}"]) for key in keys]
        seeds = len(entry["measures"]["mean mrr"]["values"])
        ours.append([f"{arm.removesuffix('_cn82k')} ({graph}), ours", seeds, entry["test"], *cells])
    theirs = [
        [name, None, None, *(None if x is None else f"{x:.3f}" for x in values)] for name, values in published.LINKS.items()
    ]
    return {
        "title": "Link prediction",
        "caption": "Filtered, over every phrase of the graph, mean of head and tail prediction; equal scores count half. Where "
        "fewer test triples are given, a random sample. Published rows from memory of the literature, to be checked.",
        "columns": ["system", "seeds", "test triples", "MRR", "Hits@1", "Hits@3", "Hits@10"],
        "rows": ours + theirs,
    }
