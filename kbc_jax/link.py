"""Link prediction of trained runs: ranks of the phrases that complete (head, relation, ?) and (?, relation, tail).

    python -m kbc_jax.link RUNS --out results/kbc [--arms factorized dnn] [--seeds 3] [--limit 300]

Arms whose name ends in _cn82k are ranked on CN-82K, the others on CN-100K; those of the random split, whose training triples
hold test triples of CN-100K, are left out. Every call adds to links.json, one entry an arm, and writes the table that
`launch.report` shows. Unfinished runs are named and left out.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from kbc_jax.facts.data import Lexicon, Triples, load_graph
from kbc_jax.scoring import scorer
from kbc_jax.scoring.ranking import link_prediction
from kbc_jax.study import find_arms, over_seeds
from kbc_jax.tables import pages
from training import files
from training.cli import guarded
from training.errors import UserError
from training.files import positive

KEYS = ("mrr", "hits@1", "hits@3", "hits@10")


def rank_arm(arm: str, workdirs: Sequence[Path], data: str, *, seeds: int, limit: int) -> dict:
    """The entry of links.json of one arm: {'test', 'phrases': numbers, 'measures': {'head mrr': {mean, sd, values}, ...}}.

    At most `seeds` runs, at their epochs chosen on dev2; a random `limit` of the test triples, 0 for all.
    """
    train, valid, test = load_graph("cn82k" if arm.endswith("_cn82k") else "cn100k", data)
    graph = Lexicon.build(train, valid, test)
    known = graph.ids(Triples.concatenate(train, valid, test))
    questions = graph.ids(test)[np.random.default_rng(0).permutation(test.size)[: limit or None]]
    rows = []
    for trained in map(scorer.load, workdirs):
        words, sentences = trained.lexicon.encode(graph.phrases), trained.sentences(graph.phrases)
        for seed in range(len(trained.threshold)):
            if len(rows) == seeds:
                break
            begin = time.perf_counter()
            best = jax.tree.map(lambda x, i=seed: x[i], (trained.params, trained.stats))
            measures = link_prediction(trained.net, *best, words, sentences, questions, known)
            rows.append({f"{side} {key}": measures[side][key] for side in measures for key in KEYS})
            print(
                f"{arm} seed {len(rows) - 1}: MRR {measures['mean']['mrr']:.4f}, {time.perf_counter() - begin:.0f} s",
                flush=True,
            )
    return {"test": len(questions), "phrases": len(graph.phrases), "measures": over_seeds(rows)}


def _read_links(path: Path) -> dict:
    """The ranks of earlier calls; none without a file. Raises UserError for a file of another kind."""
    if not path.exists():
        return {}
    results = files.json_object(path, hint := "mend it, or remove it and rank again")
    if not all(isinstance(entry, dict) and {"test", "measures"} <= entry.keys() for entry in results.values()):
        raise UserError(f"{path} holds something else than ranks: {hint}")
    return results


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m kbc_jax.link", description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", help="folders of RUNS (default: all but those of the random split)")
    parser.add_argument("--seeds", type=positive, default=5, help="at most so many runs of an arm")
    parser.add_argument("--limit", type=int, default=0, help="rank a random sample of so many test triples (0: all)")
    parser.add_argument("--data", default="", help="folder of the data, else QUINTET_DATA")
    args = parser.parse_args(argv)
    path = files.folder(args.out) / "links.json"
    results = _read_links(path)
    workdirs = find_arms(args.runs)
    arms = args.arms or [arm for arm in workdirs if not arm.endswith("_random")]
    if missing := [arm for arm in arms if arm not in workdirs]:
        raise UserError(f"no finished run of {', '.join(missing)} in {args.runs}; there are {', '.join(workdirs)}")
    if leaky := [arm for arm in arms if arm.endswith("_random")]:
        raise UserError(f"{', '.join(leaky)} learnt from test triples of CN-100K: leave arms of the random split out")
    for arm in arms:
        results[arm] = rank_arm(arm, workdirs[arm], args.data, seeds=args.seeds, limit=args.limit)
        files.write(path, [json.dumps(results, indent=1)])
        pages.save(args.out, "9-links", pages.links(results))


if __name__ == "__main__":
    guarded(main)
