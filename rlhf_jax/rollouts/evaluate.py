"""Evaluations of language models: reward, win rate and exact match of sampled text, three drifts, sample continuations.

The drifts disagree, so all are measured (docs/rlhf.md): `kl`, log(pi / pi_0) summed over a sampled response; `nll_human`, the
policy's loss on human completions; `nll_start`, the loss of its samples under the weights it started from. Papers that measure
the perplexity of a whole corpus have it as `ppl_corpus` (`eval.corpus`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import decoder
from models.tokenisers import Tokeniser
from rlhf_jax.algorithms import masks
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts import rewards, rollout, rows, text_metrics
from rlhf_jax.rollouts.rewards import Judge
from rlhf_jax.rollouts.rollout import Sampler, Setup
from rlhf_jax.tasks import Examples, Task
from training.method import Eval, EvalRun, TrainState, on_first_run
from training.metrics import Text
from training.rng import key_for
from training.sharding import replicated

JudgeOf = Callable[[Examples], Judge]  # of a split

SHOWN = 6  # continuations in the report
STYLES = ("rl4lms", "stackllama")  # texts joined by blank lines, tokens weighted alike; closed by EOS, mean of windows
COUNTED = 50_000  # examples whose tokens are counted for comparison


def evaluations(
    setup: Setup, data: Callable[[], tuple[Task, Tokeniser]], reward: Callable[[], JudgeOf], gold: Callable[[], JudgeOf] | None
) -> dict[str, Eval]:
    """{'eval': on the validation split, 'test': at the end of a run, on the test split}.

    Args:
      data, reward, gold: give the task with its tokeniser and the judges; called when an evaluation first runs.
    """
    tools = functools.cache(lambda: tools_of(setup, data()[1]))

    def on(split: str) -> EvalRun:
        return on_first_run(lambda: evaluation(setup, *data(), split, reward(), gold and gold(), tools()))

    return {"eval": Eval(setup.config.eval.every, on("validation")), "test": Eval(0, on("test"))}


class Tools(NamedTuple):
    """Compiled once for all splits: (weights, rows, key) -> tokens; (weights, ids, mask) -> log-probs."""

    draw: Callable[..., jax.Array]
    logps: Callable[..., np.ndarray]


def tools_of(setup: Setup, tokeniser: Tokeniser) -> Tools:
    """For one response a prompt, drawn at the temperature of evaluations."""
    sampler = setup.sampler._replace(samples=1, temperature=setup.config.eval.temperature, shortest=0)
    return Tools(drawer(setup.policy, sampler, tokeniser, setup.mesh), response_logps(setup.policy, setup.mesh))


def evaluation(
    setup: Setup, task: Task, tokeniser: Tokeniser, split: str, reward: JudgeOf, gold: JudgeOf | None, tools: Tools
) -> EvalRun:
    """An `Eval.run` of a reinforcement-learning run, on the first `eval.prompts` prompts of a split.

    Every number also exists for the weights that the run started from ('<name>_at_start'), where curves begin.
    """
    config, policy, logps = setup.config, setup.policy, tools.logps
    examples = task.splits[split].head(config.eval.prompts)
    sample = sample_texts(tools.draw, setup.sampler, examples, tokeniser, config.eval, setup.mesh)
    human = nll_of_texts(logps, examples, tokeniser, setup.sampler, config.eval.rows)
    corpus = perplexity_of_texts(logps, task.texts[split], tokeniser, config.eval)
    judges = reward(examples), gold and gold(examples)
    start: dict[str, Any] = {}

    def measure(weights: dict, reference: dict) -> tuple[dict, list[str]]:
        tokens_nN, ids, mask, texts = sample(weights)
        real_nN = np.asarray(masks.response_masks(tokens_nN, tokeniser.pad).mask)
        n, N = tokens_nN.shape
        own_nN, theirs_nN = (
            np.concatenate([logps(w, *pair) for pair in zip(ids, mask, strict=True)])[:n, -N:] for w in (weights, reference)
        )
        prompt_length = np.concatenate(mask)[:n].sum(1) - real_nN.sum(1)
        numbers = {
            **judge_texts(texts, examples, *judges),
            **exact(texts, examples),
            **corpus(weights),
            "kl": float((np.where(real_nN, own_nN - theirs_nN, 0)).sum(1).mean()),
            "nll_human": human(weights),
            "nll_start": float(-np.where(real_nN, theirs_nN, 0).sum() / max(real_nN.sum(), 1)),
            "ppl_response": text_metrics.ppl_response(theirs_nN, real_nN),
            "ppl_paper": text_metrics.ppl_paper(theirs_nN, real_nN, prompt_length),
            "length": float(real_nN.sum(1).mean()),
            "distinct_1": text_metrics.distinct_n(texts, 1),
            "distinct_2": text_metrics.distinct_n(texts, 2),
            "repetition": text_metrics.repetition(texts),
        }
        return numbers, texts

    def run(state: TrainState, consts: dict, step: int) -> dict[str, Any]:
        reference = policy.weights(consts["init"], consts["frozen"])
        if not start:
            numbers, texts = measure(reference, reference)
            start.update({"numbers": {f"{name}_at_start": x for name, x in numbers.items()}, "texts": texts})
        numbers, texts = measure(policy.weights(state.params["policy"], consts["frozen"]), reference)
        shown = show(examples.prompts, {"before": start["texts"], "after": texts})
        return {**numbers, **start["numbers"], "samples": Text(shown)}

    return run


def held_out(config: ConfigDict, policy: Policy, task: Task, tokeniser: Tokeniser, mesh: Mesh) -> EvalRun:
    """An `Eval.run` of supervised fine-tuning: loss on the validation split, exact match where it has answers, samples.

    Beside the loss stands what counting tokens and pairs of tokens of the training split gives.
    """
    examples = task.splits["validation"].head(config.eval.prompts)
    sampler = rollout.sampler_of(config.sample)
    human = nll_of_texts(response_logps(policy, mesh), examples, tokeniser, sampler, config.eval.rows)
    draw = drawer(policy, sampler._replace(samples=1, temperature=config.eval.temperature), tokeniser, mesh)
    sample = sample_texts(draw, sampler, examples, tokeniser, config.eval, mesh)
    some = task.splits["train"].head(COUNTED)
    train, held = (rows.pieces(x.prompts, x.references, tokeniser, sampler.lengths) for x in (some, examples))
    floor = text_metrics.ngram_nll(train, held, policy.cfg.vocab)

    def run(state: TrainState, consts: dict, step: int) -> dict[str, Any]:
        weights = policy.weights(state.params["policy"], consts["frozen"])
        *_, texts = sample(weights)
        shown = show(examples.prompts, {"sample": texts})
        return {"nll_human": human(weights), **floor, **exact(texts, examples), "samples": Text(shown)}

    return run


def judge_texts(texts: list[str], examples: Examples, judge: Judge, gold: Judge | None) -> dict[str, float]:
    """{'score', and with a gold judge 'gold', 'win_rate' (share of texts above the human's), 'mean_difference'}."""
    index = np.arange(len(texts))
    numbers = {"score": float(judge(index, examples.prompts, texts).mean())}
    if gold is None:
        return numbers
    ours = gold(index, examples.prompts, texts)
    numbers["gold"] = float(ours.mean())
    if any(examples.references):
        numbers |= text_metrics.win_rate(ours, gold(index, examples.prompts, examples.references))
    return numbers


def exact(texts: list[str], examples: Examples) -> dict[str, float]:
    """{'exact': share of right answers}, where the split has answers."""
    if not any(examples.answers):
        return {}
    score = rewards.exact(examples)
    return {"exact": float(np.mean(score(np.arange(len(texts)), examples.prompts, texts)))}


def drawer(policy: Policy, sampler: Sampler, tokeniser: Tokeniser, mesh: Mesh) -> Callable[..., jax.Array]:
    """(weights, rows with 'prompt' and 'prompt_mask', key) -> tokens [P, k, N]."""

    def tokens(weights: dict, prompts: dict, key: jax.Array) -> jax.Array:
        return rollout.draw(weights, policy.cfg, prompts, key, sampler, tokeniser)["tokens"]

    return jax.jit(tokens, out_shardings=replicated(mesh))


def sample_texts(
    draw: Callable[..., jax.Array], sampler: Sampler, examples: Examples, tokeniser: Tokeniser, options: ConfigDict, mesh: Mesh
) -> Callable[[dict], tuple]:
    """One response a prompt, with fixed keys: weights -> (tokens [n, N], blocks of ids and mask of whole rows, texts)."""
    blocks = blocked(rows.prompt_rows(examples.prompts, tokeniser, sampler.lengths).arrays, options.rows)

    def run(weights: dict) -> tuple:
        tokens, ids, mask = [], [], []
        for number, block in enumerate(blocks):
            prompts = rows.place({name: block[name] for name in ("prompt", "prompt_mask")}, mesh)
            drawn_BN = np.asarray(draw(weights, prompts, key_for(0, number, "evaluation")))[:, 0]
            real_BN = np.asarray(masks.response_masks(drawn_BN, tokeniser.pad).mask)
            tokens.append(drawn_BN)
            ids.append(np.concatenate([block["prompt"], drawn_BN], 1))
            mask.append(np.concatenate([block["prompt_mask"], real_BN], 1))
        tokens_nN = np.concatenate(tokens)[: len(examples.prompts)]
        return tokens_nN, ids, mask, tokeniser.decode_batch(tokens_nN)

    return run


def response_logps(policy: Policy, mesh: Mesh) -> Callable[..., np.ndarray]:
    """(weights, ids [B, T], mask) -> log-probs float32 [B, T] of all tokens, at temperature 1 however they were drawn."""
    run = jax.jit(
        lambda weights, ids, mask: decoder.token_logprobs(weights, policy.cfg, ids, mask), out_shardings=replicated(mesh)
    )
    return lambda weights, ids, mask: np.asarray(run(weights, *rows.place((ids, mask), mesh)))


def nll_of_texts(
    logps: Callable[..., np.ndarray], examples: Examples, tokeniser: Tokeniser, sampler: Sampler, block: int
) -> Callable[[dict], float]:
    """The loss on human completions: weights -> mean of -log p over their tokens.

    Args:
      logps: `response_logps`.
      block: rows at once.
    """
    blocks = blocked(rows.pieces(examples.prompts, examples.references, tokeniser, sampler.lengths), block)

    def run(weights: dict) -> float:
        total = count = 0.0
        for part in blocks:
            logps_BT = logps(weights, part["ids"], part["mask"])
            total -= np.where(part["loss"], logps_BT, 0).sum()
            count += part["loss"].sum()
        return float(total / count)

    return run


def perplexity_of_texts(
    logps: Callable[..., np.ndarray], texts: list[str], tokeniser: Tokeniser, options: ConfigDict
) -> Callable[[dict], dict[str, float]]:
    """Perplexity of the first `options.corpus.texts` texts, read as one: weights -> {'ppl_corpus'}, {} for no texts."""
    corpus = options.corpus
    if not corpus.texts:
        return lambda weights: {}
    blank = corpus.style == "rl4lms"
    ids = text_metrics.join_texts(texts[: corpus.texts], tokeniser.encode, None if blank else tokeniser.eos)
    shape = {"window": corpus.window, "stride": corpus.stride, "batch": options.rows, "weighted": blank}
    read = lambda weights: text_metrics.corpus_perplexity(ids, lambda i, m: logps(weights, i, m), **shape)  # noqa: E731
    return lambda weights: {"ppl_corpus": read(weights)}


def blocked(arrays: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    """Blocks of `size` rows, so that one program serves all; the last is filled up with rows without 'loss'."""
    n = len(next(iter(arrays.values())))
    size = min(size, n)
    place = np.arange(-(-n // size) * size)
    filled = {name: x[np.minimum(place, n - 1)] for name, x in arrays.items()}
    if "loss" in filled:
        filled["loss"] = filled["loss"] & (place < n)[:, None]
    return [{name: x[start : start + size] for name, x in filled.items()} for start in range(0, len(place), size)]


def show(prompts: list[str], columns: dict[str, list[str]]) -> str:
    """The first prompts and what each column continues them with, for the report."""
    lines = []
    for i, prompt in enumerate(prompts[:SHOWN]):
        lines.append(f"prompt: {prompt[-300:]!r}")
        lines += [f"  {name}: {texts[i]!r}" for name, texts in columns.items()]
    return "\n".join(lines)
