"""Side by side in one process: sampling and training of decoders against PyTorch.

    python -m benchmarks.rlhf [--new 128] [--batches 1 16 64] [--widths 256 512] [--updates 3] [--rounds 3] [--json FILE]

Sampling: GPT-2 small's shape with random weights, a prompt of 32 tokens, prefill included, against `generate` of transformers
(temperature 1, whole softmax, key/value cache). Training: GPT-2's architecture with 12 layers, heads of 64, vocabulary 4,096,
8 x 256 tokens, cross-entropy and AdamW, against the same in PyTorch with fused attention. Both sides in float32, on all cores,
in turns; compilation and first calls do not count. Rates are new tokens a second, and trained tokens a second.

The yardstick is one product of two 2048 x 2048 float32 matrices in numpy, timed in each round: it says how fast, and how busy,
the machine was. Without torch or transformers their side is skipped.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax

from benchmarks.kbc import YARDSTICK, Run, measure, publish, yardstick
from models import decoder, sampling
from models.decoder import TransformerConfig
from models.presets import PRESETS
from training import files, optim, runtime
from training.cli import guarded

PROMPT = 32
LAYERS, HEAD, VOCAB, ROWS, TOKENS = 12, 64, 4096, 8, 256  # of the trained decoder
LR, DECAY = 3e-4, 0.1


def samplers(batches: list[int], new: int) -> dict[str, Run]:
    """New tokens a second of our sampler, for each number of rows."""
    cfg = PRESETS["gpt2"]
    params = jax.jit(lambda: decoder.init(jax.random.key(0), cfg))()

    def one(batch: int) -> Run:
        prompt, mask, calls = prompts(batch), np.ones((batch, PROMPT), bool), iter(range(10**9))

        def run() -> None:
            key = jax.random.key(next(calls))
            jax.block_until_ready(
                sampling.generate(params, cfg, prompt, mask, key, max_new=new, temperature=1.0, eos=None, pad=0)
            )

        run()  # compiles
        return _rate(run, batch * new)

    return {f"sample_{batch}": one(batch) for batch in batches}


def torch_samplers(batches: list[int], new: int) -> dict[str, Run]:
    """The same of transformers; nothing without it."""
    if not _there("torch", "transformers"):
        return {}
    import torch

    from benchmarks import rlhf_torch

    torch.set_num_threads(_cores())
    net = rlhf_torch.gpt2()

    def one(batch: int) -> Run:
        prompt = torch.from_numpy(prompts(batch)).long()
        rlhf_torch.sample(net, prompt, 2)  # first calls allocate
        return _rate(lambda: rlhf_torch.sample(net, prompt, new), batch * new)

    return {f"torch_sample_{batch}": one(batch) for batch in batches}


def learners(widths: list[int], updates: int) -> dict[str, Run]:
    """Trained tokens a second of our decoder, for each width."""
    ids, mask = texts(), np.ones((ROWS, TOKENS), bool)
    tx = optim.build(lr=LR, weight_decay=DECAY)

    def one(width: int) -> Run:
        cfg = TransformerConfig(VOCAB, LAYERS, width, width // HEAD, TOKENS)

        def loss(params: dict, ids: jax.Array) -> jax.Array:
            return -decoder.token_logprobs(params, cfg, ids, mask)[:, 1:].mean()

        def step(params: dict, opt_state: tuple, ids: jax.Array) -> tuple:
            value, grads = jax.value_and_grad(loss)(params, ids)
            change, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, change), opt_state, value

        params = jax.jit(lambda: decoder.init(jax.random.key(0), cfg))()
        state, compiled = (params, tx.init(params)), jax.jit(step, donate_argnums=(0, 1))

        def some(n: int) -> None:
            nonlocal state
            for _ in range(n):
                *state, value = compiled(*state, ids)
                jax.block_until_ready(value)

        some(2)  # compiles
        return _rate(lambda: some(updates), updates * ROWS * TOKENS)

    return {f"train_{width}": one(width) for width in widths}


def torch_learners(widths: list[int], updates: int) -> dict[str, Run]:
    """The same of PyTorch; nothing without it."""
    if not _there("torch"):
        return {}
    import torch

    from benchmarks import rlhf_torch

    torch.set_num_threads(_cores())
    ids = torch.from_numpy(texts()).long()

    def one(width: int) -> Run:
        net = rlhf_torch.Decoder(VOCAB, LAYERS, width, width // HEAD, TOKENS)
        optimiser = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=DECAY)

        def some(n: int) -> None:
            for _ in range(n):
                rlhf_torch.update(net, optimiser, ids)

        some(2)  # first calls allocate
        return _rate(lambda: some(updates), updates * ROWS * TOKENS)

    return {f"torch_train_{width}": one(width) for width in widths}


def prompts(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, PRESETS["gpt2"].vocab, (batch, PROMPT), np.int32)


def texts() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (ROWS, TOKENS), np.int32)


def ratios(found: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the rounds of our rate by PyTorch's."""
    both = {name: f"torch_{name}" for name in found if f"torch_{name}" in found}
    return {
        name: statistics.median(ours / theirs for ours, theirs in zip(found[name], found[other], strict=True))
        for name, other in both.items()
    }


def table(result: dict) -> str:
    """The result for people."""
    medians = result["median"]
    lines = [f"{result['cores']} cores; median of {result['rounds']} rounds; tokens a second"]
    lines.append(f"  {f'yardstick: {YARDSTICK}^3 product, numpy':40s} {medians['yardstick'] * 1e3:10.0f} ms")
    for name, rate in medians.items():
        kind, _, size = name.partition("_")
        if kind not in ("sample", "train"):
            continue
        label = f"sample {size} x {result['new']} tokens" if kind == "sample" else f"train {LAYERS} layers of {size}"
        other = f"torch_{name}"
        times = (
            f"PyTorch {medians[other]:10,.1f}   {result['ratio'][name]:5.2f} x"
            if other in medians
            else "PyTorch skipped: needs torch (and transformers to sample); make parity installs them"
        )
        lines.append(f"  {label:40s} {rate:10,.1f}   {times}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rlhf", description=__doc__.split("\n")[0])
    parser.add_argument("--new", type=files.positive, default=128, help="sampled tokens a row")
    parser.add_argument("--batches", type=files.positive, nargs="*", default=[1, 16, 64], help="rows that are sampled at once")
    parser.add_argument("--widths", type=files.positive, nargs="*", default=[256, 512], help="widths of the trained decoders")
    parser.add_argument("--updates", type=files.positive, default=3, help="updates of a learner in a round")
    parser.add_argument("--rounds", type=files.positive, default=3)
    parser.add_argument("--json", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args(argv)
    if args.json:
        files.check_place(args.json)
    runtime.setup()
    runs = {
        "yardstick": yardstick(),
        **samplers(args.batches, args.new),
        **torch_samplers(args.batches, args.new),
        **learners(args.widths, args.updates),
        **torch_learners(args.widths, args.updates),
    }
    found = measure(runs, args.rounds)
    result = {
        "benchmark": "rlhf", "cores": _cores(), "rounds": args.rounds, "prompt": PROMPT, "new": args.new,
        "updates": args.updates, "median": {name: statistics.median(x) for name, x in found.items()}, "ratio": ratios(found),
        "all": found, "torch": _versions("torch", "transformers"), **runtime.describe(),
    }  # fmt: skip
    publish(result, table(result), args.json)


def _there(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages if _there(package)}


def _rate(work: Callable[[], object], count: int) -> Run:
    def run() -> float:
        begin = time.perf_counter()
        work()
        return count / (time.perf_counter() - begin)

    return run


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    guarded(main)
