"""How well the pair translates (task), and what became of its English (drift).

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
from training.method import TrainState
from training.metrics import Text
from training.rng import key_for


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0 to 100, of tokenised text."""
    return BLEU(tokenize="none", force=True).corpus_score(list(hypotheses), [list(references)]).score


def translate(agent: dict, source: jax.Array, *, beams: int, length: int, exponent: float, shortest: int = 1) -> jax.Array:
    """int32 [B, length]: by beam search, or greedily with one beam."""
    memory = nets.encode(agent, source)
    if beams == 1:
        return search.greedy(agent, memory, length=length, shortest=shortest)
    return search.beam(agent, memory, beams=beams, length=length, exponent=exponent, shortest=shortest)


def token_nll(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """-log p summed over each row, and the number of its tokens: [B] each."""
    mask = nets.present(target)
    return jnp.where(mask, -losses.log_prob(logits, target), 0).sum(1), mask.sum(1)


def supervised_nll(agent: dict, source: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`token_nll` of a translation."""
    feeds = nets.force(agent, nets.encode(agent, source), target).feeds
    return token_nll(nets.logits(agent["decoder"], feeds), target)


def in_chunks(function: Callable, size: int) -> Callable:
    """`function(fixed, *rows)` over `size` rows at a time; the result's rows as numpy, for any number of rows."""

    @jax.jit
    def replicated(fixed: Any, *rows: jax.Array) -> Any:
        return jax.lax.with_sharding_constraint(function(fixed, *rows), P())  # every process reads all of it

    def run(fixed: Any, *tables: np.ndarray) -> Any:
        n, found = len(tables[0]), []
        for start in range(0, n, size):
            index = np.minimum(np.arange(start, start + size), n - 1)  # the last chunk repeats the last row
            found.append(jax.device_get(replicated(fixed, *(table[index] for table in tables))))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *found)

    return run


def game_eval(config: ConfigDict, corpus: Corpus, part: str, beams: int) -> Callable[[TrainState, int], dict[str, Any]]:
    """An `Eval.run` of the game on one held-out part."""
    options, held = config.eval, first(corpus.held[part], config.eval.sentences)
    how = {"beams": beams, "exponent": options.exponent}
    message = {"length": config.message.longest, "shortest": config.message.shortest}

    def look(state: TrainState, fr: jax.Array, en: jax.Array) -> dict:
        now, old, lm = (nets.cast(x, config.net.dtype) for x in (state.params, state.extra["start"], state.extra["lm"]))
        english = translate(now["sender"], fr, **how, **message)
        german = translate(now["receiver"], english, length=config.data.length, **how)
        memory = nets.encode(now["sender"], fr)
        sampled = search.sample(now["sender"], memory, key_for(state.seed, state.step, "evaluation"), **message)
        places = [message_logits(pair["sender"], fr, sampled, config.message.shortest) for pair in (now, old)]
        kl = jnp.where(nets.present(sampled), losses.divergence(*places), 0).sum(1)
        fluency = token_nll(nets.lm_logits(lm, english), english)
        human = supervised_nll(now["sender"], fr, en)
        return {"english": english, "german": german, "kl": kl, "lm": fluency, "human": human}

    chunks = in_chunks(look, options.batch)

    start: dict[str, Any] = {}

    def run(state: TrainState, step: int) -> dict[str, Any]:
        """Every number also exists for the pretrained pair ('<name>_at_start'), whose messages are shown too."""
        if not start:
            found, words = measure(state.replace(params={**state.params, **state.extra["start"]}))
            start.update({"numbers": {f"{name}_at_start": x for name, x in found.items()}, "english": words["english"]})
        found, words = measure(state)
        rows = {"French": held.text["fr"], "English": held.text["en"], "before": start["english"], "message": words["english"]}
        rows |= {"German": held.text["de"], "output": words["german"]}
        return found | start["numbers"] | ({"samples": samples(rows, options.samples)} if options.samples else {})

    def measure(state: TrainState) -> tuple[dict[str, float], dict[str, Sequence[str]]]:
        """Numbers, and the translations."""
        found = chunks(state, held.ids["fr"], held.ids["en"])
        words = {name: corpus.vocabulary[lang].decode(found[name]) for name, lang in WRITTEN.items()}
        values = {
            "bleu_de": bleu(words["german"], held.text["de"]),
            "bleu_en": bleu(words["english"], held.text["en"]),
            "nll_lm": _rate(found["lm"]),
            "nll_en": _rate(found["human"]),
            "kl": float(found["kl"].mean()),
            "length": float(found["lm"][1].mean()),
        }
        return values, words

    return run


WRITTEN = {"english": "en", "german": "de"}


def pretrain_eval(config: ConfigDict, corpus: Corpus, part: str, beams: int) -> Callable[[TrainState, int], dict[str, Any]]:
    """An `Eval.run` of the three models: BLEU of each agent on human input, nats a token of all."""
    options, held = config.eval, first(corpus.held[part], config.eval.sentences)
    how = {"beams": beams, "exponent": options.exponent, "length": config.data.length}

    def look(params: dict, fr: jax.Array, en: jax.Array, de: jax.Array) -> dict:
        params = nets.cast(params, config.net.dtype)
        return {
            "english": translate(params["sender"], fr, **how),
            "german": translate(params["receiver"], en, **how),
            "nll_sender": supervised_nll(params["sender"], fr, en),
            "nll_receiver": supervised_nll(params["receiver"], en, de),
            "nll_lm": token_nll(nets.lm_logits(params["lm"], en), en),
        }

    chunks = in_chunks(look, options.batch)

    def run(state: TrainState, step: int) -> dict[str, Any]:
        found = chunks(state.params, *(held.ids[lang] for lang in ("fr", "en", "de")))
        english, german = (corpus.vocabulary[lang].decode(found[name]) for name, lang in (("english", "en"), ("german", "de")))
        rows = {"French": held.text["fr"], "English": held.text["en"], "sender": english, "German": held.text["de"]}
        values = {"bleu_en": bleu(english, held.text["en"]), "bleu_de": bleu(german, held.text["de"])}
        values |= {name: _rate(found[name]) for name in ("nll_sender", "nll_receiver", "nll_lm")}
        return {**values, "samples": samples({**rows, "receiver": german}, options.samples)} if options.samples else values

    return run


def message_logits(sender: dict, fr: jax.Array, message: jax.Array, shortest: int) -> jax.Array:
    """The sender's logits [B, T, V] at each place of a message, with the constraint it was sampled under."""
    feeds = nets.force(sender, nets.encode(sender, fr), message).feeds
    return nets.logits(sender["decoder"], feeds, jnp.arange(message.shape[1]) < shortest - 1)


def first(held: Held, rows: int) -> Held:
    """The first so many rows; 0: all."""
    end = rows or None
    return Held({k: v[:end] for k, v in held.ids.items()}, {k: v[:end] for k, v in held.text.items()})


def samples(columns: dict[str, Sequence[str]], count: int) -> Text:
    """The first sentences of each column, one below the other."""
    return Text("\n\n".join("\n".join(block) for block in _blocks(columns, count)))


def _blocks(columns: dict[str, Sequence[str]], count: int) -> Iterator[list[str]]:
    for row in list(zip(*columns.values(), strict=True))[:count]:
        yield [f"{name:>8}: {text}" for name, text in zip(columns, row, strict=True)]


def _rate(sums: tuple[np.ndarray, np.ndarray]) -> float:
    """Nats a token over all rows."""
    return float(sums[0].sum() / max(sums[1].sum(), 1))
