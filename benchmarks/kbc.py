"""Side by side in one process: epochs of Factorized against naive eager PyTorch, and the novelty search.

    python -m benchmarks.kbc [--epoch-updates 500] [--torch-updates 50] [--rounds 3] [--queries 2400] [--data DIR] [--json FILE]

Both sides train the same model (200 wide, 1000 hidden, batch 200, one corruption of each slot) on all cores, in turns. Ours is
`Method.step` of one seed: the updates, and the choice of the threshold on dev1 and of the epoch on dev2. PyTorch's is the
updates alone. Drawing the corruptions counts; compilation and first calls do not.

The ratio to quote is that with dense L2, which both sides then compute: like for like. Lazy L2, our default, updates only the
words of a batch and so does less work; its ratio stands beside.

The yardstick is one product of two 2048 x 2048 float32 matrices in numpy, timed in each round: it says how fast, and how busy,
the machine was. Without a data folder (--data or QUINTET_DATA) the triples are random, of the same numbers. The words' vectors
are random either way.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs.kbc.complete import get_config
from kbc_jax import complete
from kbc_jax.facts import novelty
from kbc_jax.facts.data import FILES, RELATIONS, find_directory, phrase_means
from kbc_jax.facts.source import open_knowledge
from training import files, population, runtime
from training.cli import guarded
from training.sharding import make_mesh, replicated

TRAIN, DEV, TEST, PHRASES, WORDS = 100_000, 1200, 2400, 78_000, 21_500  # of ConceptNet-100k
YARDSTICK = 2048

Run = Callable[[], float]  # one round -> seconds, or positives a second


def write_synthetic(folder: Path, seed: int = 0) -> None:
    """Write random triples in the numbers of ConceptNet-100k: phrases of one to four words, half of dev and test true."""
    rng = np.random.default_rng(seed)
    words = np.array([f"w{i}" for i in range(WORDS)])
    phrases = np.array([" ".join(rng.choice(words, rng.integers(1, 5))) for _ in range(PHRASES)])
    relations = np.array(list(RELATIONS))

    for part, n in {"train": TRAIN, "dev1": DEV, "dev2": DEV, "test": TEST}.items():
        labels = [""] * n if part == "train" else ["\t1"] * (n // 2) + ["\t0"] * (n - n // 2)
        columns = rng.choice(relations, n), rng.choice(phrases, n), rng.choice(phrases, n)
        files.write(folder / FILES[part], ["\t".join(row) + label for *row, label in zip(*columns, labels, strict=True)])


def yardstick() -> Run:
    """Seconds of one matrix product."""
    a = np.random.default_rng(0).random((YARDSTICK, YARDSTICK), np.float32)
    return _seconds(lambda: a @ a)


def factorized(directory: str) -> ConfigDict:
    """The config of Factorized on the official split in `directory`, with random word vectors."""
    config = get_config("factorized")
    with config.unlocked():
        config.data.update({"splits": ("official",), "dir": directory})
        config.words.kind = "random"
    return config


def epochs(config: ConfigDict, mode: str, updates: int) -> Run:
    """Positives a second of one `Method.step` of `updates` updates, with 'lazy' or 'dense' L2."""
    config, knowledge = population.measured(config), open_knowledge(config.data)
    with config.unlocked():
        config.updates, config.l2.mode = updates, mode
    everywhere = replicated(mesh := make_mesh(1, 1, 1))
    method = complete.make(config, mesh)
    consts = method.consts()
    state = jax.device_put(method.warm(jax.jit(method.init)(jnp.uint32(0)), consts), everywhere)
    step = jax.jit(method.step, donate_argnums=0, out_shardings=everywhere)
    ids, rng = knowledge.lexicon.ids(knowledge.train), np.random.default_rng(0)

    def epoch() -> None:
        nonlocal state
        batch = np.resize(rng.permutation(ids), (updates * config.batch, 3))
        state, metrics = step(state, batch, consts)
        jax.block_until_ready(metrics)

    epoch()  # compiles
    return _rate(epoch, updates * config.batch)


def torch_updates(config: ConfigDict, updates: int) -> Run | None:
    """Positives a second of naive PyTorch, or None without it."""
    try:
        import torch

        from benchmarks import kbc_torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    torch.set_num_threads(_cores())
    knowledge = open_knowledge(config.data)
    lexicon, vectors = knowledge.lexicon, complete.word_vectors(config)
    model = kbc_torch.Factorized(len(RELATIONS), vectors.shape[1], config.net.hidden)
    net = kbc_torch.Completion(model, torch.from_numpy(vectors), bn=True)
    optimiser = kbc_torch.adagrad(net, config.optim.lr)
    ids, phrases = (torch.from_numpy(x.astype(np.int64)) for x in (lexicon.ids(knowledge.train), lexicon.phrase_words))

    def train(n: int) -> None:
        for _ in range(n):
            triples = ids[torch.randint(len(ids), (config.batch,))]
            kbc_torch.update(net, optimiser, phrases, triples, torch.randint(config.batch, (config.batch, 3)))

    train(2)  # first calls allocate
    return _rate(lambda: train(updates), updates * config.batch)


def novelty_search(config: ConfigDict, queries: int) -> Run:
    """Seconds to find the nearest training triple of `queries` triples."""
    knowledge = open_knowledge(config.data)
    lexicon, split = knowledge.lexicon, knowledge.splits["official"]
    phrases = phrase_means(complete.word_vectors(config), lexicon.phrase_words)
    pairs, known = (lexicon.ids(part)[:, [0, 2]] for part in (split.test, split.train))
    pairs = np.resize(pairs, (queries, 2))
    novelty.nearest(phrases, pairs[:1], known)  # compiles
    return _seconds(lambda: novelty.nearest(phrases, pairs, known))


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """What each run returned in each round; they take turns, so that a busy moment hits all of them."""
    results = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            results[name].append(run())
    return results


def publish(result: dict, table: str, path: Path | None) -> None:
    """Print the table and the result as a line of JSON, which also goes to `path`."""
    line = json.dumps(result)
    print(table)
    print(line)
    if path:
        files.write(path, [line])


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the rounds of our rate by PyTorch's, whose L2 is dense."""
    if "torch" not in rates:
        return {}
    pairs = {mode: zip(rates[mode], rates["torch"], strict=True) for mode in ("dense", "lazy")}
    return {mode: statistics.median(ours / theirs for ours, theirs in pair) for mode, pair in pairs.items()}


def table(result: dict) -> str:
    """The result for people."""
    medians, lines = result["median"], []
    if ratio := result["ratio"]:
        lines.append(f"{ratio['dense']:.1f} x naive PyTorch, both with dense L2 ({ratio['lazy']:.1f} x with ours lazy)")
    lines.append(f"data: {result['data']}; {result['cores']} cores; median of {result['rounds']} rounds")
    lines.append(f"  {f'yardstick: {YARDSTICK}^3 product, numpy':44s} {medians['yardstick'] * 1e3:10.0f} ms")
    rates = {"torch": "naive PyTorch, dense L2", "dense": "Factorized, dense L2", "lazy": "Factorized, lazy L2"}
    skipped = "   skipped: no torch (make parity installs it)"
    for name, label in rates.items():
        lines.append(f"  {label:44s} {f'{medians[name]:10,.0f} positives/s' if name in medians else skipped}")
    label = f"novelty of {result['queries']:,} x {result['training_triples']:,} triples"
    return "\n".join([*lines, f"  {label:44s} {medians['novelty']:10.2f} s"])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kbc", description=__doc__.split("\n")[0])
    parser.add_argument("--epoch-updates", type=files.positive, default=500, help="updates of one epoch of ours")
    parser.add_argument("--torch-updates", type=files.positive, default=50, help="updates of PyTorch in a round")
    parser.add_argument("--rounds", type=files.positive, default=3)
    parser.add_argument("--queries", type=files.positive, default=TEST, help="triples whose novelty is searched")
    parser.add_argument("--data", default="", help="folder of the ConceptNet-100k files (default: that in QUINTET_DATA)")
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args(argv)
    if args.json:
        files.check_place(args.json)
    runtime.setup()
    with tempfile.TemporaryDirectory() as folder:
        if not (real := find_directory(args.data)):
            write_synthetic(Path(folder))
        config = factorized(args.data if real else folder)
        runs = {
            "yardstick": yardstick(),
            "dense": epochs(config, "dense", args.epoch_updates),
            "lazy": epochs(config, "lazy", args.epoch_updates),
            "torch": torch_updates(config, args.torch_updates),
            "novelty": novelty_search(config, args.queries),
        }
        measures = measure({name: run for name, run in runs.items() if run is not None}, args.rounds)
        triples = open_knowledge(config.data).train.size
    result = {
        "benchmark": "kbc", "data": "ConceptNet-100k" if real else "synthetic", "cores": _cores(), "rounds": args.rounds,
        "epoch_updates": args.epoch_updates, "torch_updates": args.torch_updates, "queries": args.queries,
        "training_triples": triples, "median": {name: statistics.median(x) for name, x in measures.items()},
        "ratio": ratios(measures), "all": measures, **runtime.describe(),
    }  # fmt: skip
    publish(result, table(result), args.json)


def _seconds(work: Callable[[], object]) -> Run:
    def run() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return run


def _rate(work: Callable[[], object], count: int) -> Run:
    seconds = _seconds(work)
    return lambda: count / seconds()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    guarded(main)
