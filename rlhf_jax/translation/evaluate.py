"""Evaluation of the pair: how well it translates (task), and how far its English has moved (drift).

    bleu_de    BLEU of French -> English -> German against the reference (the task)
    bleu_en    BLEU of the message against the English reference (drift: it falls)
    nll_lm     nats a token of the messages under a language model of captions (drift: it rises)
    nll_en     nats a token of the English references under the sender (forgetting: it rises)
    kl         KL(sender || pretrained sender), nats a message, summed over the places of sampled messages

BLEU is sacrebleu's with tokenize='none' on lower-case Moses tokens. Published numbers are nltk-like BLEU on the same text. The
papers' recall@1 of the image that belongs to a message is not here: it needs images, and Multi30k's text comes without them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from sacrebleu.metrics import BLEU

from rlhf_jax.translation import losses, nets, search
from rlhf_jax.translation.corpus import Corpus, Held
from training.method import EvalRun, TrainState
from training.metrics import Text
from training.rng import key_for


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU of tokenised texts, 0 to 100."""
    return BLEU(tokenize="none", force=True).corpus_score(list(hypotheses), [list(references)]).score


def translate(agent: dict, source: jax.Array, *, beams: int, length: int, exponent: float, shortest: int = 1) -> jax.Array:
    """Translations int32 [B, length] of source, by beam search or, with one beam, greedily. Options: those of `search.beam`."""
    memory = nets.encode(agent, source)
    if beams == 1:
        return search.greedy(agent, memory, length=length, shortest=shortest)
    return search.beam(agent, memory, beams=beams, length=length, exponent=exponent, shortest=shortest)


def token_nll(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum of -log p over the tokens of each row, number of its tokens), [B] each."""
    mask = nets.present(target)
    return jnp.where(mask, -losses.log_prob(logits, target), 0).sum(1), mask.sum(1)


def supervised_nll(agent: dict, source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`token_nll` of `target` as a translation of `source` by the agent."""
    feeds = nets.force(agent, nets.encode(agent, source), target).feeds
    return token_nll(nets.logits(agent["decoder"], feeds), target)


def in_chunks(function: Callable, size: int) -> Callable:
    """A function that applies `function(fixed, *rows)` to `size` rows at a time and joins its results, as numpy."""

    @jax.jit
    def replicated(fixed: Any, *rows: jax.Array) -> Any:
        return jax.lax.with_sharding_constraint(function(fixed, *rows), P())  # every process reads all of it

    def run(fixed: Any, *tables: np.ndarray) -> Any:
        n, chunks = len(tables[0]), []
        for start in range(0, n, size):
            index = np.minimum(np.arange(start, start + size), n - 1)  # the last chunk repeats the last row
            chunks.append(jax.device_get(replicated(fixed, *(table[index] for table in tables))))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *chunks)

    return run


def game_eval(config: ConfigDict, corpus: Corpus, part: str, beams: int) -> EvalRun:
    """Evaluation of the game on the held-out part 'val' or 'test', with `beams` (1: greedy)."""
    options, held = config.eval, first(corpus.held[part], config.eval.sentences)
    search_options = {"beams": beams, "exponent": options.exponent}
    message = {"length": config.message.longest, "shortest": config.message.shortest}

    def evaluate(state: TrainState, fr: jax.Array, en: jax.Array) -> dict:
        pair, start_pair, lm = (nets.cast(x, config.net.dtype) for x in (state.params, state.extra["start"], state.extra["lm"]))
        english = translate(pair["sender"], fr, **search_options, **message)
        german = translate(pair["receiver"], english, length=config.data.length, **search_options)
        memory = nets.encode(pair["sender"], fr)
        sampled = search.sample(pair["sender"], memory, key_for(state.seed, state.step, "evaluation"), **message)
        places = [message_logits(agents["sender"], fr, sampled, config.message.shortest) for agents in (pair, start_pair)]
        kl = jnp.where(nets.present(sampled), losses.divergence(*places), 0).sum(1)
        fluency = token_nll(nets.lm_logits(lm, english), english)
        human = supervised_nll(pair["sender"], fr, en)
        return {"english": english, "german": german, "kl": kl, "lm": fluency, "human": human}

    chunks = in_chunks(evaluate, options.batch)

    start: dict[str, Any] = {}

    def run(state: TrainState, consts: Any, step: int) -> dict[str, Any]:
        """Numbers of the pair, those of the pretrained pair as '<name>_at_start', and samples of both pairs' messages."""
        if not start:
            numbers, words = measure(state.replace(params={**state.params, **state.extra["start"]}))
            start.update({"numbers": {f"{name}_at_start": x for name, x in numbers.items()}, "english": words["english"]})
        numbers, words = measure(state)
        rows = {"French": held.text["fr"], "English": held.text["en"], "before": start["english"], "message": words["english"]}
        rows |= {"German": held.text["de"], "output": words["german"]}
        return numbers | start["numbers"] | ({"samples": samples(rows, options.samples)} if options.samples else {})

    def measure(state: TrainState) -> tuple[dict[str, float], dict[str, Sequence[str]]]:
        """(numbers of the pair, its translations)."""
        outputs = chunks(state, held.ids["fr"], held.ids["en"])
        words = {name: corpus.vocabulary[lang].decode(outputs[name]) for name, lang in WRITTEN.items()}
        values = {
            "bleu_de": bleu(words["german"], held.text["de"]),
            "bleu_en": bleu(words["english"], held.text["en"]),
            "nll_lm": _rate(outputs["lm"]),
            "nll_en": _rate(outputs["human"]),
            "kl": float(outputs["kl"].mean()),
            "length": float(outputs["lm"][1].mean()),
        }
        return values, words

    return run


WRITTEN = {"english": "en", "german": "de"}


def pretrain_eval(config: ConfigDict, corpus: Corpus, part: str, beams: int) -> EvalRun:
    """Evaluation of the three pretrained models: BLEU of each agent on human input, nats a token of all."""
    options, held = config.eval, first(corpus.held[part], config.eval.sentences)
    search_options = {"beams": beams, "exponent": options.exponent, "length": config.data.length}

    def evaluate(params: dict, fr: jax.Array, en: jax.Array, de: jax.Array) -> dict:
        params = nets.cast(params, config.net.dtype)
        return {
            "english": translate(params["sender"], fr, **search_options),
            "german": translate(params["receiver"], en, **search_options),
            "nll_sender": supervised_nll(params["sender"], fr, en),
            "nll_receiver": supervised_nll(params["receiver"], en, de),
            "nll_lm": token_nll(nets.lm_logits(params["lm"], en), en),
        }

    chunks = in_chunks(evaluate, options.batch)

    def run(state: TrainState, consts: Any, step: int) -> dict[str, Any]:
        output = chunks(state.params, *(held.ids[lang] for lang in ("fr", "en", "de")))
        english, german = (corpus.vocabulary[lang].decode(output[name]) for name, lang in (("english", "en"), ("german", "de")))
        rows = {"French": held.text["fr"], "English": held.text["en"], "sender": english, "German": held.text["de"]}
        values = {"bleu_en": bleu(english, held.text["en"]), "bleu_de": bleu(german, held.text["de"])}
        values |= {name: _rate(output[name]) for name in ("nll_sender", "nll_receiver", "nll_lm")}
        return {**values, "samples": samples({**rows, "receiver": german}, options.samples)} if options.samples else values

    return run


def message_logits(sender: dict, fr: jax.Array, message: jax.Array, shortest: int) -> jax.Array:
    """The sender's logits [B, T, V] at each place of a message int32 [B, T] sampled with `shortest`, END forbidden alike."""
    feeds = nets.force(sender, nets.encode(sender, fr), message).feeds
    return nets.logits(sender["decoder"], feeds, jnp.arange(message.shape[1]) < shortest - 1)


def first(held: Held, rows: int) -> Held:
    """The first `rows` rows; 0: all."""
    end = rows or None
    return Held({k: v[:end] for k, v in held.ids.items()}, {k: v[:end] for k, v in held.text.items()})


def samples(columns: dict[str, Sequence[str]], count: int) -> Text:
    """The first `count` sentences of all columns as a text, those of one row below each other."""
    return Text("\n\n".join("\n".join(block) for block in _blocks(columns, count)))


def _blocks(columns: dict[str, Sequence[str]], count: int) -> Iterator[list[str]]:
    for row in list(zip(*columns.values(), strict=True))[:count]:
        yield [f"{name:>8}: {text}" for name, text in zip(columns, row, strict=True)]


def _rate(sums: tuple[np.ndarray, np.ndarray]) -> float:
    """Nats a token over all rows."""
    return float(sums[0].sum() / max(sums[1].sum(), 1))
