r"""Reward models on pairs or on labelled texts.

    python -m launch.train --config configs/rlhf/reward_model.py:small_labels --config.sources.init=runs/rlhf/sft \
        --workdir runs/rlhf/judge

batch = pairs of texts (labelled texts with objective 'labels'), step = an update

Variants
    tldr       Pythia from the SFT run on relabelled comparisons (Noukhovitch et al. 2025); an accelerator; not run
    qa, chat   LLaMA-7B, Llama-3.1-8B on StackExchange pairs and on preferences; an accelerator; not run
    small_labels    sentiment of IMDB sentences: the stand-in for distilbert-imdb, minutes on 2 cores: .64 right
    small_pairs     pairs made by rlhf_jax.preferences (--config.pairs=FILE.jsonl), from an SFT run, the same: .76 right
    small_tldr, small_qa    AlpacaEval's preferences, the same; no score
    tiny    tests
"""

from ml_collections import ConfigDict

from rlhf_jax.tasks.config import language, task_of, tiny

VARIANTS = ("tldr", "qa", "chat", "small_labels", "small_pairs", "small_tldr", "small_qa", "tiny")


def get_config(variant: str = "small_labels") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}")
    if variant == "tldr":  # async_rlhf, rm configs
        c = language("rlhf_jax.reward_model", "tldr", "pythia-410m", batch=64, steps=1451)  # one epoch of 92,858 pairs
        c.sample.update({"prompt": 512, "response": 128})
        c.optim.update({"lr": 1e-5, "schedule": "cosine", "steps": 1451})
    elif variant == "qa":  # trl's StackLLaMA recipe; LoRA r8 of the recipe is not used
        c = language("rlhf_jax.reward_model", "qa", "llama-7b", batch=4, steps=25000)  # 100k pairs, one epoch
        c.sample.update({"prompt": 256, "response": 256})
        c.optim.update({"lr": 2e-5, "weight_decay": 0.001, "schedule": "linear", "steps": 25000})
    elif variant == "chat":  # Noukhovitch et al. 2025, appendix
        c = language("rlhf_jax.reward_model", "qa", "llama-3.1-8b", batch=256, steps=38)
        c.sample.update({"prompt": 512, "response": 512})
        c.optim.update({"lr": 3e-6, "schedule": "linear", "steps": 38})
    elif variant.startswith("small"):
        task = {"small_tldr": "tldr", "small_qa": "qa"}.get(variant, "imdb")
        c = language("rlhf_jax.reward_model", task, "small", batch=64, steps=1000)
        task_of(c, task)
        if variant == "small_pairs":  # two epochs of 9,000 pairs; 22 of 2,900 gave a held-out loss of 1.5
            c.steps = 280
        c.optim.update({"lr": 1e-3, "clip": 1.0, "schedule": "cosine", "warmup": 50, "steps": c.steps})
        c.eval.every = c.steps // 4
    else:
        c = language("rlhf_jax.reward_model", "qa", "tiny")
        tiny(c)
        c.optim.eps = 1e-2  # what both sides of a pair share has no gradient but rounding errors, which Adam would enlarge
    c.objective = "labels" if variant.endswith("labels") else "pairs"
    c.pairs = ""  # JSON lines of prompt, chosen, rejected instead of the task's own pairs
    c.length = c.sample.prompt + c.sample.response  # of a text that is scored
    c.checkpoint.every = c.checkpoint.every if variant.startswith("tiny") else max(c.steps // 4, 1)
    return c.lock()
