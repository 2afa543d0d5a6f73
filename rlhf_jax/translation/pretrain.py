"""Supervised pretraining for the translation game: French-English sender, English-German receiver, English caption model.

The three share no parameter and each has its own gradient clipping, so training them side by side equals three runs; one run is
one command, one checkpoint to start the game from, and one set of vocabularies.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.translation import losses, nets
from rlhf_jax.translation.corpus import SUBWORDS, Corpus, Pair, SupervisedSource, open_run
from rlhf_jax.translation.data import LANGUAGES
from rlhf_jax.translation.evaluate import pretrain_eval
from training import optim
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, EvalRun, Method, TrainState, on_first_run
from training.rng import key_for
from training.runs import Run
from training.sharding import batch_spec, path_name
from training.step import make_step

AGENTS = ("sender", "receiver")
MODELS = (*AGENTS, "lm")


# Subwords of each language in Multi30k by config.data.bpe, for plans without the data.
PUBLISHED = {25_000: {"en": 8361, "fr": 9196, "de": 12_304}, 3000: {"en": 1857, "fr": 1948, "de": 2108}}


def sizes(config: ConfigDict) -> dict[str, int]:
    """Sizes of the vocabularies, {key in the config: subwords}."""
    return {f"data.vocabulary.{lang}": words.size for lang, words in open_run(config).vocabulary.items()}


def planned_sizes(data: ConfigDict) -> dict[str, int]:
    """Sizes of the vocabularies to build for, {language: subwords}.

    Those of the config; where it has a 0, those of Multi30k, or for another BPE its upper limit.
    """
    published = PUBLISHED.get(data.bpe, dict.fromkeys(LANGUAGES, data.bpe))
    return {lang: data.vocabulary[lang] or published[lang] for lang in LANGUAGES}


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """Pretraining of the three models that `config.net` describes, on part A of the data."""
    if config.sources.init:
        raise UserError("translation pretraining starts from random weights: drop sources.init")
    tx = optim.build(**{**config.optim, "groups": {name: {"match": f"^{name}/"} for name in MODELS}})
    sentence = jax.ShapeDtypeStruct((config.data.length,), np.int32)
    pair = Pair(sentence, sentence)
    spec = batch_spec({"sender": pair, "receiver": pair, "captions": sentence}, config.batch, mesh)

    def init(seed: jax.Array) -> TrainState:
        params, extra = init_models(config, seed), {"corpus": jnp.uint32(0)}
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params), extra=extra)

    def warm(state: TrainState, consts: Any) -> TrainState:
        """The state with the fingerprint of the data, which the game checks; the weights stay random."""
        return state.replace(extra={"corpus": jnp.uint32(open_run(config).fingerprint)})

    def evaluation(part: str, beams: int) -> EvalRun:
        return on_first_run(lambda: pretrain_eval(config, open_run(config), part, beams))

    return Method(
        spec=spec,
        init=init,
        step=make_step(functools.partial(loss_fn, config=config), tx),
        stream=lambda consts: DatasetStream(SupervisedSource(open_run(config)), spec, seed=config.seed),
        evals={"val": Eval(config.eval.every, evaluation("val", 1)), "test": Eval(0, evaluation("test", config.eval.beams))},
        warm=warm,
        files=lambda: {SUBWORDS: open_run(config).subwords},
    )


def init_models(config: ConfigDict, seed: jax.Array) -> dict:
    """Random parameters of both agents and the caption model."""
    size, E, H = planned_sizes(config.data), config.net.embed, config.net.hidden
    keys = {name: key_for(seed, 0, "init", name) for name in MODELS}
    return {
        "sender": nets.init_agent(keys["sender"], nets.Sizes(size["fr"], size["en"], E, H)),
        "receiver": nets.init_agent(keys["receiver"], nets.Sizes(size["en"], size["de"], E, H)),
        "lm": nets.init_lm(keys["lm"], size["en"], E, H),
    }


def loss_fn(params: dict, batch: dict, key: jax.Array, extra: dict, consts: Any, *, config: ConfigDict) -> Any:
    """Sum of the three cross-entropies, nats a token, and (metrics, extra)."""
    params = nets.cast(params, config.net.dtype)
    metrics = {}
    for number, name in enumerate(MODELS):
        model_key, rate = jax.random.fold_in(key, number), config.dropout[name]
        if name == "lm":
            metrics[f"nll_{name}"] = lm_loss(params[name], batch["captions"], key=model_key, rate=rate)
        else:
            metrics[f"nll_{name}"] = translation_loss(params[name], *batch[name], key=model_key, rate=rate)
    return sum(metrics.values()), (metrics, extra)


def translation_loss(
    agent: dict, source: jax.Array, target: jax.Array, *, key: jax.Array | None = None, rate: float = 0.0
) -> jax.Array:
    """Cross-entropy of an agent, nats a target token; with dropout if there is a key."""
    keys = (None, None) if key is None else jax.random.split(key)
    feeds = nets.force(agent, nets.encode(agent, source, key=keys[0], rate=rate), target, key=keys[1], rate=rate).feeds
    return losses.cross_entropy(nets.logits(agent["decoder"], feeds), target)


def lm_loss(lm: dict, text: jax.Array, *, key: jax.Array | None = None, rate: float = 0.0) -> jax.Array:
    """Cross-entropy of the caption model, nats a token; with dropout if there is a key."""
    return losses.cross_entropy(nets.lm_logits(lm, text, key=key, rate=rate), text)


def read_pretrained(run: Run, shapes: dict, corpus: Corpus) -> dict:
    """Parameters of the models of a pretraining run, as numpy.

    Args:
      shapes: parameters of this run, {'sender': ..., 'receiver': ..., 'lm': ...}.

    Raises:
      UserError: another kind of run, another corpus, other sizes.
    """
    arrays = run.needs("rlhf_jax.translation.pretrain").arrays(only=("params", "extra/corpus"))
    if int(arrays["extra"]["corpus"]) != corpus.fingerprint:
        raise UserError(f"sources.init {run.path} was trained on other data; config.data (all but length) must be its own")
    saved, expected = (
        {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (arrays["params"], shapes)
    )
    for name in sorted(set(saved) | set(expected)):
        if saved.get(name) != expected.get(name):
            raise UserError(
                f"sources.init {run.path}: {name} is {saved.get(name)} there and {expected.get(name)} here; use its config.net"
            )
    run.announce()
    return arrays["params"]
