"""Offline DPO on preference pairs.

    python -m launch.train --config configs/rlhf/dpo.py:small_tldr --config.sources.init=runs/rlhf/sft --workdir runs/rlhf/dpo

batch = pairs of texts, step = an update

Variants
    tldr          Pythia-410m on TL;DR comparisons (Noukhovitch et al. 2025, branch dev); an accelerator; not run
    small_tldr, small_qa    AlpacaEval's preferences, 2 cores; no score
    small_imdb    pairs made by rlhf_jax.preferences (--config.pairs=FILE.jsonl), 2 cores; no score
    tiny          tests
"""

from ml_collections import ConfigDict

from rlhf_jax.tasks.config import language, task_of, tiny

VARIANTS = ("tldr", "small_tldr", "small_qa", "small_imdb", "tiny")


def get_config(variant: str = "small_tldr") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}")
    if variant == "tldr":  # its learning rate and length are those of the online runs
        c = language("rlhf_jax.dpo", "tldr", "pythia-410m", batch=512, steps=181)  # one epoch of 92,858 pairs
        c.sample.update({"prompt": 512, "response": 128})
        c.accumulate = 8
        c.optim.update({"lr": 3e-6, "schedule": "linear", "steps": 181})
    elif variant.startswith("small"):
        task = variant.removeprefix("small_")
        c = language("rlhf_jax.dpo", task, "small", batch=32, steps=200)
        task_of(c, task)
        c.optim.update({"lr": 1e-4, "clip": 1.0})
        c.eval.every = 50
    else:
        c = language("rlhf_jax.dpo", "qa", "tiny")
        tiny(c)
        c.optim.eps = 1e-2  # what both sides of a pair share has no gradient but rounding errors, which Adam would enlarge
    c.loss = "dpo"
    c.beta = 0.1
    c.pairs = ""  # JSON lines of prompt, chosen, rejected instead of the task's own pairs
    c.checkpoint.every = c.checkpoint.every if variant.startswith("tiny") else max(c.steps // 4, 1)
    return c.lock()
