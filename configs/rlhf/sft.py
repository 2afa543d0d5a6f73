"""Supervised fine-tuning of language models: the starting points of every reinforcement-learning run.

    python -m launch.train --config configs/rlhf/sft.py:small_imdb --workdir runs/rlhf/sft

batch = texts (packed rows with form 'packed'), step = an update

Variants
    tldr       Pythia on TL;DR summaries (Noukhovitch et al. 2025); an accelerator, --config.sources.init=FOLDER; not run
    qa         LLaMA-7B with LoRA on StackExchange (Noukhovitch et al. 2023); the same; not run
    chat       Llama-3.1-8B on No Robots (Noukhovitch et al. 2025); the same, data in the layout of 'qa'; not run
    small_imdb          1 M parameters from scratch, minutes on 2 cores: 4.23 nats a held-out token
    small_arithmetic    the same: of unseen equations .44 right drawn, .55 greedy
    small_tldr, small_qa, small_gsm8k    the same; too small a model to learn these, no score
    tiny                tests
"""

from ml_collections import ConfigDict

from rlhf_jax.tasks.config import language, task_of, tiny

SMALL = ("imdb", "tldr", "qa", "gsm8k", "arithmetic")
VARIANTS = ("tldr", "qa", "chat", *(f"small_{task}" for task in SMALL), "tiny")


def get_config(variant: str = "small_imdb") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}")
    if variant == "tldr":  # async_rlhf, sft configs
        c = language("rlhf_jax.sft", "tldr", "pythia-410m", batch=32, steps=3648)  # one epoch of 116,722 rows
        c.form = "examples"  # loss over prompt and summary
        c.sample.update({"prompt": 512, "response": 53})
        c.optim.update({"lr": 1e-5, "schedule": "cosine", "steps": 3648})
    elif variant == "qa":  # trl's StackLLaMA recipe
        c = language("rlhf_jax.sft", "qa", "llama-7b", batch=8, steps=5000)  # 4 x accumulation 2
        c.form = "packed"
        c.lora.update({"rank": 16, "alpha": 32.0})  # dropout .05 of the recipe is left out
        c.optim.update({"lr": 1e-5, "weight_decay": 0.05, "schedule": "cosine", "warmup": 100, "steps": 5000})
    elif variant == "chat":  # Noukhovitch et al. 2025, appendix
        c = language("rlhf_jax.sft", "qa", "llama-3.1-8b", batch=128, steps=148)  # 2 epochs of 9,500 rows
        c.form = "examples"
        c.sample.update({"prompt": 3072, "response": 1024})
        c.optim.update({"lr": 5e-6, "schedule": "linear", "warmup": 4, "steps": 148})
    elif variant.startswith("small"):
        task = variant.removeprefix("small_")
        c = language("rlhf_jax.sft", task, "small", batch=64, steps=1500)
        c.form = "completions" if task == "arithmetic" else "examples"
        task_of(c, task)
        lr = 1e-3 if task == "arithmetic" else 2e-3  # equations are memorised at 2e-3: 10 % of new ones right, not 40 %
        c.optim.update({"lr": lr, "clip": 1.0, "schedule": "cosine", "warmup": 50, "steps": 1500})
        c.eval.every = 500
    else:
        c = language("rlhf_jax.sft", "imdb", "tiny")
        c.form = "examples"
        tiny(c)
    c.length = 1024  # tokens of a packed row
    c.checkpoint.every = c.checkpoint.every if variant.startswith("tiny") else max(c.steps // 4, 1)
    return c.lock()
