"""Evaluations of language models: reward, win rate and exact match of sampled text, three drifts, sample continuations.

The drifts disagree, so all are measured (docs/rlhf.md): `kl`, log(pi / pi_0) summed over a sampled response; `nll_human`, the
policy's loss on human completions; `nll_start`, the loss of its samples under the weights it started from. Papers that measure
the perplexity of a whole corpus have it as `ppl_corpus` (`eval.corpus`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import decoder
from models.tokenisers import Tokeniser
from rlhf_jax import policy as models
from rlhf_jax.algorithms import masks
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts import rewards, rollout, text_metrics
from rlhf_jax.rollouts import rows as data
from rlhf_jax.rollouts.judges import Judge, open_judge
from rlhf_jax.tasks import Examples, Task
from training.errors import UserError
from training.method import Eval, TrainState
from training.metrics import Text
from training.rng import key_for
from training.sharding import replicated

if TYPE_CHECKING:
    from rlhf_jax.rl import World

SHOWN = 6  # continuations in the report
COUNTED = 50_000  # examples whose tokens are counted for comparison


def evaluations(world: "World", task: Task, tokeniser: Tokeniser, consts: Callable[[], Any]) -> dict[str, Eval]:
    """{'eval': on the validation split, 'test': at the end of a run, on the test split}."""
    options, how = world.config.eval, world.how._replace(samples=1, temperature=world.config.eval.temperature, shortest=0)
    tools = Tools(drawing(world.policy, how, world.mesh), response_logps(world.policy, world.mesh))
    every = {"eval": ("validation", options.every), "test": ("test", 0)}
    return {name: Eval(n, evaluator(world, task, split, tokeniser, consts, tools)) for name, (split, n) in every.items()}


class Tools(NamedTuple):
    """Compiled once for all splits: (weights, rows, key) -> tokens; (weights, ids, mask) -> log-probs."""

    draw: Callable[..., jax.Array]
    logps: Callable[..., np.ndarray]


def evaluator(
    world: "World", task: Task, split: str, tokeniser: Tokeniser, consts: Callable[[], Any], tools: Tools
) -> Callable[[TrainState, int], dict]:
    """An `Eval.run` of a reinforcement-learning run, on the first `eval.prompts` prompts of a split.

    Every number also exists for the weights that the run started from ('<name>_at_start'), where curves begin.
    """
    config, policy, compare = world.config, world.policy, tools.logps
    examples = task.splits[split].head(config.eval.prompts)
    sample = sampled(tools.draw, world.how, examples, tokeniser, config.eval, world.mesh)
    human = nll_of_texts(compare, examples, tokeniser, world.how, config.eval.rows)
    corpus = perplexity_of_texts(compare, task.texts[split], tokeniser, config.eval)
    judge = open_judge(config.reward, examples)
    gold = open_judge(config.gold, examples) if config.gold.kind else None
    start: dict[str, Any] = {}

    def measure(weights: dict, reference: dict) -> tuple[dict, list[str]]:
        tokens, ids, mask, texts = sample(weights)
        real = np.asarray(masks.response_masks(tokens, tokeniser.pad).mask)
        N = tokens.shape[1]
        own, theirs = (
            np.concatenate([compare(w, *pair) for pair in zip(ids, mask, strict=True)])[: len(texts), -N:]
            for w in (weights, reference)
        )
        prompt_length = np.concatenate(mask)[: len(texts)].sum(1) - real.sum(1)
        found = judged(texts, examples, judge, gold)
        found |= exact(texts, examples) | corpus(weights)
        found |= {
            "kl": float((np.where(real, own - theirs, 0)).sum(1).mean()),
            "nll_human": human(weights),
            "nll_start": float(-np.where(real, theirs, 0).sum() / max(real.sum(), 1)),
            "ppl_response": text_metrics.ppl_response(theirs, real),
            "ppl_paper": text_metrics.ppl_paper(theirs, real, prompt_length),
            "length": float(real.sum(1).mean()),
            "distinct_1": text_metrics.distinct_n(texts, 1),
            "distinct_2": text_metrics.distinct_n(texts, 2),
            "repetition": text_metrics.repetition(texts),
        }
        return found, texts

    def run(state: TrainState, step: int) -> dict[str, Any]:
        kept = consts()
        reference = policy.weights(kept["init"], kept["frozen"])
        if not start:
            found, texts = measure(reference, reference)
            start.update({"numbers": {f"{name}_at_start": x for name, x in found.items()}, "texts": texts})
        found, texts = measure(policy.weights(state.params["policy"], kept["frozen"]), reference)
        shown = show(examples.prompts, {"before": start["texts"], "after": texts})
        return {**found, **start["numbers"], "samples": Text(shown)}

    return run


def held_out(
    config: ConfigDict, policy: Policy, task: Task, tokeniser: Tokeniser, consts: Callable[[], Any], mesh: Mesh
) -> Callable[[TrainState, int], dict]:
    """An `Eval.run` of supervised fine-tuning: loss on the validation split, exact match where it has answers, samples.

    Beside the loss stands what counting tokens and pairs of tokens of the training split gives.
    """
    examples = task.splits["validation"].head(config.eval.prompts)
    how = rollout.sampler(config.sample, tokeniser)
    human = nll_of_texts(response_logps(policy, mesh), examples, tokeniser, how, config.eval.rows)
    draw = drawing(policy, how._replace(samples=1, temperature=config.eval.temperature), mesh)
    sample = sampled(draw, how, examples, tokeniser, config.eval, mesh)
    some = task.splits["train"].head(COUNTED)
    train, held = (data.pieces(x.prompts, x.references, tokeniser, how.lengths) for x in (some, examples))
    floor = text_metrics.ngram_nll(train, held, policy.cfg.vocab)

    def run(state: TrainState, step: int) -> dict[str, Any]:
        weights = policy.weights(state.params["policy"], consts()["frozen"])
        *_, texts = sample(weights)
        shown = show(examples.prompts, {"sample": texts})
        return {"nll_human": human(weights), **floor, **exact(texts, examples), "samples": Text(shown)}

    return run


def judged(texts: list[str], examples: Examples, judge: Judge, gold: Judge | None) -> dict[str, float]:
    """{'score', and with a gold judge 'gold', 'win_rate' (share of texts above the human's), 'mean_difference'}."""
    index = np.arange(len(texts))
    found = {"score": float(judge(index, examples.prompts, texts).mean())}
    if gold is None:
        return found
    ours = gold(index, examples.prompts, texts)
    found["gold"] = float(ours.mean())
    if any(examples.references):
        found |= text_metrics.win_rate(ours, gold(index, examples.prompts, examples.references))
    return found


def exact(texts: list[str], examples: Examples) -> dict[str, float]:
    """{'exact': share of right answers}, where the split has answers."""
    if not any(examples.answers):
        return {}
    score = rewards.exact(examples)
    return {"exact": float(np.mean(score(np.arange(len(texts)), examples.prompts, texts)))}


def drawing(policy: Policy, how: rollout.Sampler, mesh: Mesh) -> Callable[..., jax.Array]:
    """(weights, rows with 'prompt' and 'prompt_mask', key) -> tokens [P, 1, N]."""
    draw = lambda weights, rows, key: rollout.draw(weights, policy, rows, key, how)["tokens"]  # noqa: E731
    return jax.jit(draw, out_shardings=replicated(mesh))


def sampled(
    draw: Callable[..., jax.Array], how: rollout.Sampler, examples: Examples, tokeniser: Tokeniser, options: ConfigDict,
    mesh: Mesh,
) -> Callable[[dict], tuple]:  # fmt: skip
    """weights -> (tokens [n, N], blocks of ids and mask of prompt + response, texts): one response a prompt, fixed keys."""
    blocks = blocked(data.prompt_rows(examples.prompts, tokeniser, how.lengths).arrays, options.rows)

    def run(weights: dict) -> tuple:
        tokens, ids, mask = [], [], []
        for number, rows in enumerate(blocks):
            prompts = models.spread_rows({name: rows[name] for name in ("prompt", "prompt_mask")}, mesh)
            drawn = np.asarray(draw(weights, prompts, key_for(0, number, "evaluation")))[:, 0]
            real = np.asarray(masks.response_masks(drawn, tokeniser.pad).mask)
            tokens.append(drawn)
            ids.append(np.concatenate([rows["prompt"], drawn], 1))
            mask.append(np.concatenate([rows["prompt_mask"], real], 1))
        tokens = np.concatenate(tokens)[: len(examples.prompts)]
        return tokens, ids, mask, tokeniser.decode_batch(tokens)

    return run


def response_logps(policy: Policy, mesh: Mesh) -> Callable[..., np.ndarray]:
    """(weights, ids [B, T], mask) -> log-probs float32 [B, T] of all tokens, at temperature 1 however they were drawn."""
    run = jax.jit(
        lambda weights, ids, mask: decoder.token_logprobs(weights, policy.cfg, ids, mask), out_shardings=replicated(mesh)
    )

    def call(weights: dict, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.asarray(run(weights, *models.spread_rows((ids, mask), mesh)))

    return call


def nll_of_texts(
    logps: Callable[..., np.ndarray], examples: Examples, tokeniser: Tokeniser, how: rollout.Sampler, rows: int
) -> Callable[[dict], float]:
    """weights -> mean of -log p over the tokens of the human completions (nats a token). logps: `response_logps`."""
    blocks = blocked(data.pieces(examples.prompts, examples.references, tokeniser, how.lengths), rows)

    def run(weights: dict) -> float:
        total = count = 0.0
        for part in blocks:
            found = logps(weights, part["ids"], part["mask"])
            total -= np.where(part["loss"], found, 0).sum()
            count += part["loss"].sum()
        return float(total / count)

    return run


STYLES = ("rl4lms", "stackllama")  # texts joined by blank lines, tokens weighted alike; closed by EOS, mean of windows


def perplexity_of_texts(
    logps: Callable[..., np.ndarray], texts: list[str], tokeniser: Tokeniser, options: ConfigDict
) -> Callable[[dict], dict[str, float]]:
    """weights -> {'ppl_corpus'} of the first `options.corpus.texts` texts, read as one; {} for none."""
    corpus = options.corpus
    if not corpus.texts:
        return lambda weights: {}
    if corpus.style not in STYLES:
        raise UserError(f"eval.corpus.style {corpus.style!r} is unknown: use one of {', '.join(STYLES)}")
    blank = corpus.style == "rl4lms"
    ids = text_metrics.join_texts(texts[: corpus.texts], tokeniser.encode, None if blank else tokeniser.eos)
    shape = {"window": corpus.window, "stride": corpus.stride, "batch": options.rows, "weighted": blank}
    read = lambda weights: text_metrics.corpus_perplexity(ids, lambda i, m: logps(weights, i, m), **shape)  # noqa: E731
    return lambda weights: {"ppl_corpus": read(weights)}


def blocked(arrays: dict[str, np.ndarray], rows: int) -> list[dict[str, np.ndarray]]:
    """Blocks of `rows` rows, so that one program serves all; the last is filled up with rows without 'loss'."""
    n = len(next(iter(arrays.values())))
    rows = min(rows, n)
    place = np.arange(-(-n // rows) * rows)
    filled = {name: x[np.minimum(place, n - 1)] for name, x in arrays.items()}
    if "loss" in filled:
        filled["loss"] = filled["loss"] & (place < n)[:, None]
    return [{name: x[start : start + rows] for name, x in filled.items()} for start in range(0, len(place), rows)]


def show(prompts: list[str], columns: dict[str, list[str]]) -> str:
    """The first continuations of each column, for the report."""
    lines = []
    for i, prompt in enumerate(prompts[:SHOWN]):
        lines.append(f"prompt: {prompt[-300:]!r}")
        lines += [f"  {name}: {texts[i]!r}" for name, texts in columns.items()]
    return "\n".join(lines)
