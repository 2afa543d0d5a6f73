"""What the configs of all stages share, so that a later stage has the model of an earlier one."""

from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.tasks import defaults
from training.config import base

# Shapes of our own, for CPUs. 'small' has 1.06 M parameters with 2,048 tokens of vocabulary (rlhf.md: 4 layers, d 128).
SHAPES = {
    "tiny": {"layers": 2, "width": 32, "heads": 4, "context": 64},
    "small": {"layers": 4, "width": 128, "heads": 4, "context": 256},
    "medium": {"layers": 4, "width": 256, "heads": 4, "context": 256},
}


def language(method: str, task: str, model: str, **values: Any) -> ConfigDict:
    """A config with the sections `data`, `tokeniser`, `model`, `lora`, `sample`, `eval`, `optim`.

    Args:
      task: of rlhf_jax.tasks.
      model: a name of `SHAPES` (trained from random weights, with a tokeniser of its own) or of models.presets (whose weights
        and tokeniser come from a folder, --config.sources.init, or the tokeniser from another, --config.tokeniser.path).
    """
    c = base(method, **values)
    c.accumulate = 1
    c.data = defaults(task)
    own = model in SHAPES
    c.tokeniser = {"kind": "bpe" if own else "file", "vocab": 2048, "path": ""}
    shape = SHAPES[model] if own else {"layers": 0, "width": 0, "heads": 0, "context": 0}
    c.model = {"preset": "" if own else model, "vocab": 0, **shape}  # vocab 0: as the tokeniser has it
    c.model.update({"dtype": "float32" if own else "bfloat16", "remat": not own})
    c.lora = {"rank": 0, "alpha": 32.0, "targets": ("q", "v")}  # rank 0: all weights are trained
    c.sample = {"each": 1, "prompt": 64, "response": 48, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "stop": True}
    c.sample.cut = task in ("imdb", "qa")  # longer prompts lose their beginning; else they are an error
    c.sample.shortest = 0  # a batch's length is drawn from here to `response`; 0: it is `response`
    c.eval = {"every": 100, "prompts": 256, "rows": 64, "temperature": 1.0}
    c.eval.corpus = {"texts": 0, "window": 1024, "stride": 512, "style": "rl4lms"}  # perplexity of human text; 0 texts: none
    c.optim = {"lr": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "clip": None}
    c.optim.update({"schedule": "constant", "warmup": 0, "steps": 0})
    return c


def task_of(c: ConfigDict, task: str) -> None:
    """Lengths and data options of the CPU-size tasks, the same in every stage."""
    if task == "imdb":  # prompts: first half of a sentence of a review
        c.data.update({"level": "sentence", "clean": True, "shortest": 8, "longest": 30, "limit": 20000})
        c.sample.update({"prompt": 24, "response": 24})
    elif task == "arithmetic":
        c.tokeniser.kind = "characters"
        c.sample.update({"prompt": 8, "response": 6})
    elif task == "tldr":  # SciTLDR stands in
        c.sample.update({"prompt": 192, "response": 48})
    elif task == "gsm8k":
        c.sample.update({"prompt": 160, "response": 96, "cut": True})  # one question of a hundred is longer
    elif task == "qa":
        c.sample.update({"prompt": 96, "response": 64})


def tiny(c: ConfigDict) -> None:
    """For tests: embedded data, seconds."""
    c.data.dir = "toy"
    c.tokeniser.vocab = 300
    c.update({"batch": 8, "steps": 6})
    c.sample.update({"prompt": 8, "response": 8})
    c.optim.lr = 1e-3
    c.eval.update({"every": 3, "prompts": 6, "rows": 8})
    c.log.every = 1
    c.mesh.min_shard = 256
    c.checkpoint.every = 3
