"""The novelty study: completion scores of trained runs by how novel a test triple is (Jastrzębski et al. 2018).

    python -m kbc_jax.study RUNS --out results/kbc

RUNS holds a folder for each arm ('factorized', 'dnn_random', ...), which is a run or a folder of runs, one a seed. Unfinished
runs are named and left out. Writes results.json, the tables of the paper as *.table.json and a plot of score against novelty;
`python -m launch.report` shows them.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kbc_jax import complete
from kbc_jax.facts import baselines, embeddings
from kbc_jax.facts.data import RELATIONS, Lexicon, Split, Triples, find_directory, load_split
from kbc_jax.facts.novelty import nearest, novelty
from kbc_jax.mining.candidates import read_mined
from kbc_jax.scoring import metrics, scorer
from kbc_jax.tables import compare, human
from training import files
from training.cli import guarded
from training.errors import UserError
from training.runs import Run
from training.runs import find as find_runs

SPLITS = ("official", "redrawn", "random")
MINED = {"novel3000": "novel3000.tsv", "human": "human_scored_466.tsv"}  # in wiki_mined/; either may be missing
TOP = (100, 1000, 3000)


class Arm(NamedTuple):
    """Scores of one model on one split."""

    score: Mapping[str, np.ndarray]  # part (dev1, dev2, test, those of MINED) -> float [seeds, n]
    threshold: np.ndarray  # [seeds], from dev1
    epoch: np.ndarray  # [seeds], chosen on dev2


def find_arms(runs: Path) -> dict[str, list[Path]]:
    """{arm: workdirs of its finished runs}, an arm for each folder of `runs`.

    Unfinished runs are printed and left out. Raises UserError if no run is finished.
    """
    if not runs.is_dir():
        raise UserError(f"no folder {runs}; train there first, see results/kbc/run.sh")
    arms = {}
    for folder in sorted(path for path in runs.iterdir() if path.is_dir()):
        members = find_runs(folder)
        for run in members:
            if not run.finished:
                print(f"left out, not finished: {run.path}")
        if workdirs := [run.path for run in members if run.finished]:
            arms[folder.name] = workdirs
    if not arms:
        raise UserError(f"no finished completion runs below {runs}")
    return arms


def runs_of_split(split: str, arms: Mapping[str, Sequence[Path]]) -> tuple[dict[str, list[Path]], int]:
    """({model: its runs that were selected on a split}, seed of the split's negatives). Raises UserError for several seeds."""
    configs = {workdir: Run(workdir).config for workdirs in arms.values() for workdir in workdirs}
    models, seeds = {}, {}
    for folder, workdirs in arms.items():
        for workdir in workdirs:
            if configs[workdir].method != complete.__name__:
                raise UserError(f"{workdir} is a run of {configs[workdir].method}: give a folder of completion runs only")
            data = configs[workdir].data
            if split in data.splits:
                models.setdefault(folder.removesuffix(f"_{split}"), []).append(workdir)
                seeds.setdefault(data.seed, workdir)
    if len(seeds) > 1:
        raise UserError(f"runs of several config.data.seed: {', '.join(map(str, seeds.values()))}; study them apart")
    return models, next(iter(seeds), 0)


def trained_arm(workdirs: Sequence[Path], split: str, parts: Mapping[str, Triples]) -> Arm:
    """Scores of all seeds of the runs of one model on the parts of a split."""
    trained = [scorer.load(workdir, split) for workdir in workdirs]
    scores = {part: np.concatenate([t.score(rows) for t in trained]) for part, rows in parts.items()}
    return Arm(scores, *(np.concatenate([getattr(t, name) for t in trained]) for name in ("threshold", "epoch")))


def reference_arms(
    split: Split, lexicon: Lexicon, vectors: np.ndarray, parts: Mapping[str, Triples], distance: Mapping[str, np.ndarray]
) -> dict[str, Arm]:
    """Arms without a classifier: counts, similarities, memory. `distance`: {part: novelty [n]}; `vectors`: of the lexicon."""
    pmi, argsim = baselines.WordPMI(split.train), baselines.ArgSim(lexicon, vectors)
    triples, part = Triples.concatenate(*parts.values()), np.repeat(list(parts), [rows.size for rows in parts.values()])
    scores = {
        "word PMI": pmi.score(triples),
        "word PMI, no head-tail": pmi.score(triples, pairs=("rh", "rt")),
        "phrase PMI": baselines.PhrasePMI(split.train).score(triples),
        "seen": baselines.Seen(split.train).score(triples),
        "MaxSim": baselines.MaxSim(split.train, lexicon, vectors).score(triples),
        "ArgSim (cosine)": argsim.cosine(triples),
        "ArgSim (dot)": argsim.score(triples),
        "minus novelty": -np.concatenate([distance[name] for name in parts]).astype(float),
    }
    scores["MaxArgSim"] = baselines.max_arg_sim(scores["MaxSim"], scores["ArgSim (dot)"], part == "dev1")
    arms = {}
    for name, values in scores.items():
        threshold, _ = metrics.best_threshold(values[part == "dev1"], split.dev1.label)
        arms[name] = Arm({name: values[None, part == name] for name in parts}, np.array([threshold]), np.array([0]))
    return arms


def distances(split: Split, lexicon: Lexicon, skipgram: np.ndarray, parts: Mapping[str, Triples]) -> dict[str, np.ndarray]:
    """Novelty of the triples of each part under skip-gram vectors, the paper's kind: {part: [n]}."""
    values, _ = novelty(split.train, Triples.concatenate(*parts.values()), lexicon, skipgram)
    ends = np.cumsum([rows.size for rows in parts.values()])
    return dict(zip(parts, np.split(values, ends[:-1]), strict=True))


def novelties(split: Split, lexicon: Lexicon) -> dict[str, np.ndarray]:
    """Novelty of the test triples under embeddings of general text, {kind: [n]}, without kinds whose package is missing."""
    values = {}
    try:
        static = embeddings.word_vectors("static", lexicon, split.train)
        values["static"] = novelty(split.train, split.test, lexicon, static, unknown="keep")[0]
    except UserError as error:
        print(f"novelty under static is left out: {error}")
    try:
        test, train = (lexicon.ids(part)[:, [0, 2]] for part in (split.test, split.train))
        values["minilm"] = nearest(embeddings.phrase_vectors(lexicon), test, train)[0]
    except UserError as error:
        print(f"novelty under minilm is left out: {error}")
    return values


def over_seeds(rows: Sequence[dict[str, float]]) -> dict[str, dict]:
    """Statistics over seeds, {name: {mean, sd, values}}, from the rows {name: value} of the seeds."""
    return {
        name: dict(zip(("mean", "sd"), metrics.mean_sd(values), strict=True), values=values)
        for name in rows[0]
        for values in [[row[name] for row in rows]]
    }


def summarise(arm: Arm, split: Split, buckets: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Every number of one arm on one split. `buckets`: {name: int [n], the bucket of each test triple or -1}."""
    test, labels = split.test, split.test.label
    train = set(split.train.keys())
    clean = np.array([label or key not in train for key, label in zip(test.keys(), labels, strict=True)])
    seeds = list(zip(arm.score["test"], arm.threshold, strict=True))
    whole_test = []
    for i, (scores, threshold) in enumerate(seeds):
        dev2 = metrics.accuracy(arm.score["dev2"][i], split.dev2.label, threshold)
        filtered = metrics.accuracy(scores[clean], labels[clean], threshold)
        whole_test.append({**metrics.summary(scores, labels, threshold), "dev2": dev2, "accuracy_filtered": filtered})
    relations = [metrics.by_relation(scores, labels, threshold, test.relation) for scores, threshold in seeds]
    return {
        "seeds": len(seeds),
        "epochs": arm.epoch.tolist(),
        "test": over_seeds(whole_test),
        "buckets": {
            name: [over_seeds(rows) for rows in zip(*(metrics.by_bucket(s, labels, t, b) for s, t in seeds), strict=True)]
            for name, b in buckets.items()
        },
        "relations": {
            RELATIONS[rows[0]["relation"]]: over_seeds([{k: v for k, v in r.items() if k != "relation"} for r in rows])
            for rows in zip(*relations, strict=True)
        },
    }


def novelty_of_top(scores: np.ndarray, distance: np.ndarray) -> dict[str, dict]:
    """Mean novelty of the K best triples, {K: {mean, sd, values}}, from scores [seeds, n] and the novelty `distance` [n]."""
    ranked = distance[np.argsort(-scores, kind="stable")]
    return over_seeds([{str(k): float(row[:k].mean()) for k in TOP if k <= len(row)} for row in ranked])


def study(runs: Path, directory: str = "") -> dict[str, Any]:
    """Results of the runs below `runs`, {split: `study_split`}. Raises UserError if no run was selected on one of SPLITS."""
    arms, folder = find_arms(runs), find_directory(directory)
    files_ = {part: folder / "wiki_mined" / name for part, name in MINED.items()} if folder else {}
    mined = {part: read_mined(path) for part, path in files_.items() if path.is_file()}
    results = {}
    for name in SPLITS:
        workdirs, seed = runs_of_split(name, arms)
        if workdirs:
            results[name] = study_split(name, workdirs, load_split(name, directory, seed=seed), mined)
    if not results:
        raise UserError(f"no finished run below {runs} was selected on {', '.join(SPLITS)}")
    return results


def study_split(
    name: str,
    workdirs: Mapping[str, Sequence[Path]],
    split: Split,
    mined: Mapping[str, tuple[Triples, Mapping[str, np.ndarray]]],
) -> dict[str, Any]:
    """Results of one split, by their place in results.json.

    Args:
      name: that of the split; workdirs: {model: its runs}.
      mined: {part: (triples, columns)} of MINED, those that are there.

    Returns:
      arms: {arm: `summarise`}; compare: `compare.compare` of the trained arms; novelty: {kind of vectors: `novelty_facts`};
      curve: {trained arm: `curve`}; unseen: {part: number of triples with a word that train lacks}; with mined triples also
      novelty_of_top: {arm: `novelty_of_top`}; human: `human.compare`.
    """
    triples = {part: rows for part, (rows, _) in mined.items()}
    parts = {"dev1": split.dev1, "dev2": split.dev2, "test": split.test, **triples}
    lexicon = Lexicon.build(split.train, *parts.values())
    skipgram = embeddings.word_vectors("skipgram", lexicon, split.train)
    trained = {arm: trained_arm(paths, name, parts) for arm, paths in workdirs.items()}
    distance = distances(split, lexicon, skipgram, parts)
    arms = trained | reference_arms(split, lexicon, skipgram, parts, distance)
    test, labels, far = split.test, split.test.label, {"skipgram": distance["test"], **novelties(split, lexicon)}
    thirds = {"third": metrics.thirds(far["skipgram"])}
    buckets = {f"thirds by {kind}": metrics.thirds(values) for kind, values in far.items()}
    cluster = np.arange(test.size) if test.source is None else test.source
    if test.source is not None:
        thirds["paired third"] = buckets["paired thirds by skipgram"] = metrics.paired_thirds(far["skipgram"], labels, cluster)
    sets = compare.row_sets(lexicon.unseen(test), thirds)
    results = {
        "arms": {arm: summarise(value, split, buckets) for arm, value in arms.items()},
        "compare": compare.compare({a: (v.score["test"], v.threshold) for a, v in trained.items()}, labels, cluster, sets),
        "novelty": {kind: novelty_facts(values, labels) for kind, values in far.items()},
        "curve": {arm: curve(value, labels, far["skipgram"]) for arm, value in trained.items()},
        "unseen": {part: int(lexicon.unseen(parts[part]).sum()) for part in parts},
    }
    if "novel3000" in mined:
        _, columns = mined["novel3000"]
        scores = {arm: value.score["novel3000"] for arm, value in arms.items()} | {human.LI: columns["li_score"][None]}
        results["novelty_of_top"] = {arm: novelty_of_top(s, distance["novel3000"]) for arm, s in scores.items()}
    if "human" in mined:
        rows, columns = mined["human"]
        scores = {arm: value.score["human"] for arm, value in arms.items()}
        results["human"] = human.compare(scores, columns, metrics.thirds(distance["human"]), lexicon.unseen(rows))
    return results


def novelty_facts(values: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Facts about thirds: largest novelty of the lower two (cuts), shares of true triples, share at distance 0 (zero)."""
    thirds = metrics.thirds(values)
    return {
        "cuts": [float(values[thirds == k].max()) for k in (0, 1)],
        "positives": [float(labels[thirds == k].mean()) for k in range(3)],
        "zero": float((values == 0).mean()),
    }


def curve(arm: Arm, labels: np.ndarray, far: np.ndarray, bins: int = 8) -> dict[str, list]:
    """Recall of true triples and rejection of false ones by novelty: {'true', 'false': [[mean novelty, share right] a bin]}.

    The bins of a class hold equal numbers of its triples. `far`: novelty [n].
    """
    right = (arm.score["test"] >= arm.threshold[:, None]) == labels
    curves = {}
    for name, member in (("true", labels), ("false", ~labels)):
        rows = np.flatnonzero(member)
        chunks = np.array_split(rows[np.argsort(far[rows], kind="stable")], bins)
        curves[name] = [[float(far[c].mean()), float(right[:, c].mean())] for c in chunks]
    return curves


def for_json(value: Any) -> Any:
    """`value` as results.json has it: NaN (sd of one seed, AUC of one class) as None, since JSON lacks it; five digits."""
    if isinstance(value, dict):
        return {key: for_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(entry) for entry in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 5)
    return value


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m kbc_jax.study", description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json, tables and the plot")
    parser.add_argument("--data", default="", help="folder of the data, else QUINTET_DATA")
    args = parser.parse_args(argv)
    from kbc_jax.tables.pages import write

    out = files.folder(args.out)
    results = study(args.runs, args.data)
    files.write(out / "results.json", [json.dumps(for_json(results), separators=(",", ":"))])
    write(results, out)


if __name__ == "__main__":
    guarded(main)
