"""Supervised pretraining for the translation game: French-English sender, English-German receiver, English caption model.

The three share no parameter and each has its own gradient clipping, so training them side by side equals three runs; one run is
one command, one checkpoint to start the game from, and one set of vocabularies.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rlhf_jax.translation import losses, nets
from rlhf_jax.translation.corpus import Corpus, SupervisedSource, open_corpus
from rlhf_jax.translation.evaluate import pretrain_eval
from training import optim
from training.checkpoint import read_arrays
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, Method, Stream, TrainState
from training.rng import key_for
from training.sharding import path_name
from training.step import make_step

AGENTS = ("sender", "receiver")
MODELS = (*AGENTS, "lm")


def make(config: ConfigDict, mesh: Mesh) -> tuple[Method, Stream]:
    """The three models that `config.net` describes, on part A of the data."""
    if config.init_from:
        raise UserError("translation pretraining starts from random weights: drop init_from")
    corpus = open_corpus(config.data)
    stream = DatasetStream(SupervisedSource(corpus), batch=config.batch, seed=config.seed, mesh=mesh)
    return make_method(config, corpus), stream


def make_method(config: ConfigDict, corpus: Corpus) -> Method:
    groups = {name: {"match": f"^{name}/"} for name in MODELS}
    tx = optim.build(**{**config.optim, "groups": groups})

    def init(seed: jax.Array, spec: Any) -> TrainState:
        params = init_models(config, corpus, seed)
        extra = {"corpus": jnp.uint32(corpus.fingerprint)}
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params), extra=extra)

    def evaluation(part: str, beams: int) -> Any:
        return pretrain_eval(config, corpus, part, beams)

    evals = {"val": Eval(config.eval.every, evaluation("val", 1)), "test": Eval(0, evaluation("test", config.eval.beams))}
    return Method(init=init, step=make_step(functools.partial(loss_fn, config=config), tx), evals=evals)


def init_models(config: ConfigDict, corpus: Corpus, seed: jax.Array) -> dict:
    """Random parameters of both agents and the caption model."""
    size = {lang: vocabulary.size for lang, vocabulary in corpus.vocabulary.items()}
    E, H = config.net.embed, config.net.hidden
    keys = {name: key_for(seed, 0, "init", name) for name in MODELS}
    return {
        "sender": nets.init_agent(keys["sender"], nets.Sizes(size["fr"], size["en"], E, H)),
        "receiver": nets.init_agent(keys["receiver"], nets.Sizes(size["en"], size["de"], E, H)),
        "lm": nets.init_lm(keys["lm"], size["en"], E, H),
    }


def loss_fn(params: dict, batch: dict, key: jax.Array, extra: dict, consts: Any, *, config: ConfigDict) -> Any:
    """Sum of the three cross-entropies, nats a token."""
    params = nets.cast(params, config.net.dtype)
    metrics = {}
    for number, name in enumerate(MODELS):
        own, rate = jax.random.fold_in(key, number), config.dropout[name]
        if name == "lm":
            metrics[f"nll_{name}"] = lm_loss(params[name], batch["captions"], key=own, rate=rate)
        else:
            metrics[f"nll_{name}"] = translation_loss(params[name], *batch[name], key=own, rate=rate)
    return sum(metrics.values()), (metrics, extra)


def translation_loss(
    agent: dict, source: jax.Array, target: jax.Array, *, key: jax.Array | None = None, rate: float = 0.0
) -> jax.Array:
    """Cross-entropy of an agent, nats a target token; with dropout where a key is given."""
    keys = (None, None) if key is None else jax.random.split(key)
    feeds = nets.force(agent, nets.encode(agent, source, key=keys[0], rate=rate), target, key=keys[1], rate=rate).feeds
    return losses.cross_entropy(nets.logits(agent["decoder"], feeds), target)


def lm_loss(lm: dict, text: jax.Array, *, key: jax.Array | None = None, rate: float = 0.0) -> jax.Array:
    return losses.cross_entropy(nets.lm_logits(lm, text, key=key, rate=rate), text)


def read_pretrained(workdir: str, shapes: dict, corpus: Corpus) -> dict:
    """The models of a pretraining run, as numpy.

    Args:
      shapes: parameters of this run, {'sender': ..., 'receiver': ..., 'lm': ...}.

    Raises:
      UserError: no run there, another corpus, other sizes.
    """
    arrays = read_arrays(workdir, only=("params", "extra/corpus"))
    if set(MODELS) - set(arrays["params"]) or "corpus" not in (arrays.get("extra") or {}):
        raise UserError(f"init_from {workdir} is no run of rlhf_jax.translation.pretrain; give one")
    if int(arrays["extra"]["corpus"]) != corpus.fingerprint:
        raise UserError(f"init_from {workdir} was trained on other data; config.data (all but length) must be its own")
    found = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(arrays["params"])}
    wanted = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)}
    for name in sorted(set(found) | set(wanted)):
        if found.get(name) != wanted.get(name):
            there, here = found.get(name), wanted.get(name)
            raise UserError(f"init_from {workdir}: {name} is {there} there and {here} here; use its config.net")
    return arrays["params"]
