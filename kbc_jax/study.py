"""The novelty study: completion scores of trained runs by how novel a test triple is (Jastrzębski et al. 2018).

    python -m kbc_jax.study RUNS --out results/kbc

RUNS holds a folder for each arm ('factorized', 'dnn_random', ...), which is a run or a folder of runs, one a seed. Writes
results.json, the tables of the paper as *.table.json and a plot of score against novelty; `python -m launch.report` shows them.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kbc_jax import baselines, embeddings, metrics, scorer
from kbc_jax.data import RELATIONS, Lexicon, Split, Triples, find_directory, load_split, phrase_means
from kbc_jax.mining import mean_novelty_of_top, rank, read_mined
from kbc_jax.novelty import nearest
from kbc_jax.ratings import human_466
from launch.cli import guarded
from training.errors import UserError

SUFFIXES = {"random": "_random", "cn82k": "_cn82k"}
PAIRS = (("factorized", "dnn"), ("factorized", "prototypical"), ("dnn", "prototypical"), ("fusion", "factorized"))
NOVELTIES = ("skipgram", "static", "minilm")  # vectors in which novelty is measured; the paper's is the first
TOP = (100, 1000, 3000)


class Arm(NamedTuple):
    """Scores of one model on one split. score: part -> float [seeds, n]; parts are dev1, dev2, test, novel3000, human."""

    score: Mapping[str, np.ndarray]
    threshold: np.ndarray  # [seeds], from dev1
    epoch: np.ndarray  # [seeds], chosen on dev2


def workdirs(folder: Path) -> list[Path]:
    """The runs that lie in a folder, or the folder itself, that have a checkpoint."""
    return sorted(path.parent for path in folder.rglob("config.json") if (path.parent / "checkpoints").is_dir())


def collect(runs: Path, split: str, parts: Mapping[str, Triples]) -> dict[str, Arm]:
    """Every trained arm of a split, by model name."""
    suffix, found = SUFFIXES.get(split, ""), {}
    for folder in sorted(path for path in runs.iterdir() if path.is_dir()):
        name = folder.name.removesuffix(suffix)
        if not workdirs(folder) or not folder.name.endswith(suffix) or any(name.endswith(s) for s in SUFFIXES.values()):
            continue
        trained = [scorer.load(workdir, split) for workdir in workdirs(folder)]
        scores = {part: np.concatenate([t.score(rows) for t in trained]) for part, rows in parts.items()}
        found[name] = Arm(scores, np.concatenate([t.threshold for t in trained]), np.concatenate([t.epoch for t in trained]))
    return found


def reference_arms(split: Split, lexicon: Lexicon, vectors: np.ndarray, parts: Mapping[str, Triples]) -> dict[str, Arm]:
    """Models without a classifier: counts, similarities, memory."""
    pmi, argsim = baselines.WordPMI(split.train), baselines.ArgSim(lexicon, vectors)
    scorers: dict[str, Callable[[Triples], np.ndarray]] = {
        "word PMI": pmi.score,
        "word PMI, no head-tail": lambda t: pmi.score(t, pairs=("rh", "rt")),
        "ArgSim": argsim.cosine,
        "MaxSim": baselines.MaxSim(split.train, lexicon, vectors).score,
        "minus novelty": baselines.MinusNovelty(split.train, lexicon, vectors).score,
    }
    arms = {}
    for name, score in scorers.items():
        scores = {part: score(rows)[None] for part, rows in parts.items()}
        threshold, _ = metrics.best_threshold(scores["dev1"][0], split.dev1.label)
        arms[name] = Arm(scores, np.array([threshold]), np.array([0]))
    return arms


def novelties(split: Split, lexicon: Lexicon) -> dict[str, np.ndarray]:
    """Distance of each test triple from the nearest training triple, under several embeddings: {kind: [n]}."""
    train, test = lexicon.ids(split.train)[:, [0, 2]], lexicon.ids(split.test)[:, [0, 2]]
    found = {}
    for kind in NOVELTIES:
        if (phrases := _phrases(kind, lexicon, split.train)) is not None:
            found[kind] = nearest(phrases, test, train)[0]
    return found


def _phrases(kind: str, lexicon: Lexicon, train: Triples) -> np.ndarray | None:
    """Phrase vectors for novelty; None where their package is not installed."""
    try:
        if kind == "minilm":
            return embeddings.phrase_vectors(lexicon)
        vectors = embeddings.word_vectors(kind, lexicon, train)
    except UserError as error:
        print(f"novelty under {kind} is left out: {error}")
        return None
    if kind == "skipgram":
        vectors = vectors * lexicon.seen[:, None]  # the authors' distances give unknown words the padding vector
    return phrase_means(vectors, lexicon.phrase_words)


def over_seeds(rows: list[dict[str, float]]) -> dict[str, dict]:
    """[{name: value} of each seed] -> {name: {mean, sd, values}}."""
    return {
        name: dict(zip(("mean", "sd"), metrics.mean_sd(values), strict=True), values=values)
        for name in rows[0]
        for values in [[row[name] for row in rows]]
    }


def summarise(arm: Arm, split: Split, novelty: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Every number of one arm on one split."""
    test, labels = split.test, split.test.label
    known = set(split.train.keys())
    clean = np.array([label or key not in known for key, label in zip(test.keys(), labels, strict=True)])
    bucket = {f"thirds by {kind}": metrics.thirds(values) for kind, values in novelty.items()}
    if _paired(split):
        bucket["paired thirds by skipgram"] = metrics.paired_thirds(novelty["skipgram"], labels)
    seeds = list(zip(arm.score["test"], arm.threshold, strict=True))
    whole = []
    for i, (scores, threshold) in enumerate(seeds):
        dev2 = metrics.accuracy(arm.score["dev2"][i], split.dev2.label, threshold)
        filtered = metrics.accuracy(scores[clean], labels[clean], threshold)
        whole.append({**metrics.summary(scores, labels, threshold), "dev2": dev2, "accuracy_filtered": filtered})
    relations = [metrics.by_relation(scores, labels, threshold, test.relation) for scores, threshold in seeds]
    return {
        "seeds": len(seeds),
        "epochs": arm.epoch.tolist(),
        "test": over_seeds(whole),
        "buckets": {
            name: [over_seeds(rows) for rows in zip(*(metrics.by_bucket(s, labels, t, b) for s, t in seeds), strict=True)]
            for name, b in bucket.items()
        },
        "relations": {
            RELATIONS[rows[0]["relation"]]: over_seeds([{k: v for k, v in r.items() if k != "relation"} for r in rows])
            for rows in zip(*relations, strict=True)
        },
    }


def _paired(split: Split) -> bool:
    """Whether row n + i corrupts one slot of row i, as in the official files."""
    keys, n = split.test.keys(), split.test.size // 2
    return all(sum(a != b for a, b in zip(*pair, strict=True)) == 1 for pair in zip(keys[:n], keys[n:], strict=True))


def differences(arms: Mapping[str, Arm], labels: np.ndarray, bucket: np.ndarray) -> dict[str, dict]:
    """Paired bootstrap of pairs of arms: accuracy and F1 over all rows, F1 in each third: {'a - b': {where: Difference}}."""
    found = {}
    for a, b in PAIRS:
        if a not in arms or b not in arms:
            continue

        def compare(metric: str, rows: np.ndarray, a: str = a, b: str = b) -> dict:
            x, y = arms[a], arms[b]
            scores = (arm.score["test"][:, rows] for arm in (x, y))
            return metrics.paired_bootstrap(metric, *scores, labels[rows], x.threshold, y.threshold)._asdict()

        whole = np.ones(len(labels), bool)
        found[f"{a} - {b}"] = {
            "accuracy": compare("accuracy", whole),
            "f1": compare("f1", whole),
            **{f"f1 third {k + 1}": compare("f1", bucket == k) for k in range(3)},
            **{f"accuracy third {k + 1}": compare("accuracy", bucket == k) for k in range(3)},
        }
    return found


def mined(arm: Arm, triples: Mapping[str, Triples], ratings: np.ndarray, novelty: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Ranking of the mined triples: agreement with the 466 human ratings, whole and by novelty thirds; novelty of the top K."""
    thirds = metrics.thirds(novelty["human"])
    rows = []
    for scores in arm.score["human"]:
        whole = human_466(scores, ratings, draws=200)
        parts = [human_466(scores[thirds == k], ratings[thirds == k], top=30, draws=2) for k in range(3)]
        row = {"spearman": whole["spearman"], "top_100": whole["top_mean"], "all": whole["mean"]}
        rows.append(row | {f"top_30_third_{k + 1}": part["top_mean"] for k, part in enumerate(parts)})
    by_key = dict(zip(triples["novel3000"].keys(), novelty["novel3000"], strict=True))
    tops = []
    for scores in arm.score["novel3000"]:
        ranked, _ = rank(triples["novel3000"], scores)
        means = mean_novelty_of_top(ranked, lambda t: np.array(list(map(by_key.get, t.keys()))), TOP)
        tops.append({str(k): v for k, v in means.items()})
    return {"human": over_seeds(rows), "novelty_of_top": over_seeds(tops)}


def study(runs: Path, directory: str = "") -> dict[str, Any]:
    """All results of the runs below `runs`: {split: {arms, li, differences, novelty, curve}}; see `summarise` and `mined`.

    `li` is the ranking of the mined triples by the scores that Li et al. 2016 published with them.
    """
    folder, results = find_directory(directory), {}
    files = {"novel3000": "novel3000.tsv", "human": "human_scored_466.tsv"}
    extra = {part: read_mined(folder / "wiki_mined" / file) for part, file in files.items()} if folder else {}
    for name in ("official", "redrawn", "random"):
        split = load_split(name, directory)
        triples = {part: rows for part, (rows, _) in extra.items()}
        parts = {"dev1": split.dev1, "dev2": split.dev2, "test": split.test, **triples}
        trained = collect(runs, name, parts)
        if not trained:
            continue
        lexicon = Lexicon.build(split.train, *parts.values())
        vectors = embeddings.word_vectors("skipgram", lexicon, split.train)
        arms = trained | reference_arms(split, lexicon, vectors, parts)
        novelty = novelties(split, lexicon)
        thirds = metrics.thirds(novelty["skipgram"])
        summaries = {arm: summarise(value, split, novelty) for arm, value in arms.items()}
        results[name] = {}
        if extra:
            ratings = extra["human"][1]["mean"]
            train = lexicon.ids(split.train)[:, [0, 2]]
            phrases = _phrases("skipgram", lexicon, split.train)
            far = {part: nearest(phrases, lexicon.ids(rows)[:, [0, 2]], train)[0] for part, rows in triples.items()}
            for arm, value in arms.items():
                summaries[arm] |= mined(value, triples, ratings, far)
            theirs = Arm({part: columns["li_score"][None] for part, (_, columns) in extra.items()}, np.zeros(1), np.zeros(1))
            results[name]["li"] = mined(theirs, triples, ratings, far)
        results[name] |= {
            "arms": summaries,
            "differences": differences(trained, split.test.label, thirds),
            "novelty": {kind: _novelty_facts(values, split.test.label) for kind, values in novelty.items()},
            "curve": {arm: curve(value, split.test.label, novelty["skipgram"]) for arm, value in trained.items()},
        }
    if not results:
        raise UserError(f"no finished completion runs below {runs}")
    return results


def _novelty_facts(values: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    thirds = metrics.thirds(values)
    cuts = [float(values[thirds == k].max()) for k in (0, 1)]
    return {
        "cuts": cuts,
        "positives": [float(labels[thirds == k].mean()) for k in range(3)],
        "zero": float((values == 0).mean()),
    }


def curve(arm: Arm, labels: np.ndarray, novelty: np.ndarray, bins: int = 8) -> dict[str, list]:
    """Recall of true triples and rejection of false ones against novelty, in bins of equal numbers of each class."""
    right = (arm.score["test"] >= arm.threshold[:, None]) == labels
    found = {}
    for name, of in (("true", labels), ("false", ~labels)):
        rows = np.flatnonzero(of)
        chunks = np.array_split(rows[np.argsort(novelty[rows], kind="stable")], bins)
        found[name] = [[float(novelty[c].mean()), float(right[:, c].mean())] for c in chunks]
    return found


def without_nan(value: Any) -> Any:
    """NaN (the sd of one seed, the AUC of one class) as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m kbc_jax.study", description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, tables and the plot")
    parser.add_argument("--data", default="", help="folder of the data, else QUINTET_DATA")
    args = parser.parse_args(argv)
    if not args.runs.is_dir():
        raise UserError(f"no folder {args.runs}; train there first, see results/kbc/run.sh")
    from kbc_jax.tables import write

    results = study(args.runs, args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(without_nan(results), indent=1))
    write(results, args.out)


if __name__ == "__main__":
    guarded(main)
