"""Knowledge-base completion (Jastrzębski et al. 2018; Li et al. 2016): learn to tell true triples from corrupted ones.

One `Method.step` is a whole epoch on the device: a scan over minibatches with in-batch negatives, then the threshold on dev1
and the accuracy on dev2, which keeps the best parameters and cuts the learning rate on a plateau. Equations: docs/kbc.md.

Legend: K updates an epoch, B positives an update, W words a phrase, D width of a word vector.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from kbc_jax.facts import embeddings, negatives
from kbc_jax.facts.data import RELATIONS, phrase_means
from kbc_jax.facts.source import Knowledge, TripleSource, open_knowledge
from kbc_jax.scoring import adagrad, metrics, nets
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, Method, Stream, TrainState
from training.rng import key_for
from training.sharding import check_batch, path_name, place_replicated

CLIP = 16.118095  # logit of 1 - 1e-7, where Keras and Li et al. clip probabilities


def make(config: ConfigDict, mesh: Mesh) -> tuple[Method, Stream]:
    """The scorer that `config.net` describes, trained on the first of `config.data.splits`, selected on each of them."""
    check(config, mesh)
    knowledge = open_knowledge(config.data)
    source = TripleSource(knowledge.lexicon.ids(knowledge.train))
    updates = config.updates or len(source) // config.batch
    if not updates:
        raise UserError(f"{len(source)} training triples do not fill one batch of {config.batch}; lower config.batch")
    stream = DatasetStream(source, batch=config.batch * updates, seed=config.seed, mesh=mesh, prefetch=1)
    return make_method(config, knowledge, mesh), stream


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UserError for values that no run can have."""
    if config.batch < 1 or config.updates < 0 or config.negatives.each < 1:
        raise UserError("config.batch and negatives.each must be 1 or more, config.updates 0 or more")
    check_batch(config.batch, mesh)
    if config.l2.mode not in ("lazy", "dense"):
        raise UserError(f"l2.mode {config.l2.mode!r} is unknown: use 'lazy' or 'dense'")
    if config.init_from:
        raise UserError("completion runs start from word vectors (config.words.kind), not from another run: drop init_from")


def build_net(config: ConfigDict, width: int) -> nets.Scorer:
    """The network of a config, for phrase vectors of `width` numbers."""
    return nets.build(relations=len(RELATIONS), width=width, **config.net)


def make_method(config: ConfigDict, knowledge: Knowledge, mesh: Mesh) -> Method:
    lexicon = knowledge.lexicon
    seed = config.seed if config.words.kind == "random" else 0  # one skip-gram for all seeds: they vary in the scorer alone
    vectors = embeddings.word_vectors(config.words.kind, lexicon, knowledge.train, seed=seed, normalise=config.words.normalise)
    sentences = (
        embeddings.phrase_vectors(lexicon) if config.words.sentences else np.zeros((len(lexicon.phrases), 0), np.float32)
    )
    net = build_net(config, vectors.shape[1] + sentences.shape[1])
    shape = vectors.shape

    def init(seed: jax.Array, spec: Any) -> TrainState:
        x, i = jnp.zeros((1, shape[1] + sentences.shape[1])), jnp.zeros(1, jnp.int32)
        variables = net.init(key_for(seed, 0, "init"), x, x, i, i, i, train=True)
        params = {"net": variables["params"]["model"], "words": jnp.zeros(shape)}
        if config.net.bn:
            params["norm"] = variables["params"]["norm"]
        stats = variables.get("batch_stats", {})
        best = {"params": params, "stats": stats, "dev1": jnp.float32(0), "dev2": jnp.float32(-1), "threshold": jnp.float32(0)}
        extra = {
            "stats": stats,
            "best": {name: {**best, "epoch": jnp.int32(0)} for name in knowledge.splits},
            "plateau": {"best": jnp.float32(-1), "wait": jnp.int32(0), "scale": jnp.float32(1)},
        }
        sums = jax.tree.map(jnp.zeros_like, params)
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=sums, extra=extra)

    def warm(state: TrainState) -> TrainState:
        """Word vectors come from an embedding."""
        return state.replace(params={**state.params, "words": jnp.asarray(vectors)})

    def consts() -> dict:
        host = {"words": lexicon.phrase_words, "sentences": sentences, "dev": {}}
        if config.negatives.kind == "argsim":
            host["sums"] = phrase_means(vectors, lexicon.phrase_words) * (lexicon.phrase_words > 0).sum(1, keepdims=True)
        for name, split in knowledge.splits.items():
            parts = {"dev1": split.dev1, "dev2": split.dev2}
            host["dev"][name] = {part: (lexicon.ids(rows), rows.label) for part, rows in parts.items()}
        return place_replicated(host, mesh)

    def step(state: TrainState, batch: jax.Array, consts: Any) -> tuple[TrainState, dict]:
        state, losses = epoch(state, batch, consts, net=net, config=config)
        state, accuracies = select(state, consts, net=net, config=config)
        return state, {**losses, **accuracies}

    evals = {"test": Eval(0, lambda state, step: final_scores(state, knowledge, sentences, net=net))}  # once, at the end
    return Method(init=init, step=step, evals=evals, consts=consts, warm=warm)


def epoch(state: TrainState, batch: jax.Array, consts: Any, *, net: nets.Scorer, config: ConfigDict) -> tuple[TrainState, dict]:
    """K updates. batch int32 [K B, 3]; row r belongs to update r % K, so that each update's rows keep the rows' sharding.

    Metrics are means over the updates; `loss` leaves out the words' L2 and `grad_norm` the words.
    """
    K = len(batch) // config.batch
    triples_KB = batch.reshape(config.batch, K, 3).swapaxes(0, 1)
    keys = jax.random.split(key_for(state.seed, state.step, "epoch"), K)
    lr = config.optim.lr * state.extra["plateau"]["scale"]

    def update(carry: tuple, inputs: tuple) -> tuple:
        params, sums, stats, scratch = carry
        triples, key = inputs
        heads_tails = jnp.concatenate([triples[:, 0], triples[:, 2]])
        words = consts["words"][heads_tails]

        def loss_of(rest: dict, vectors: jax.Array) -> tuple:
            x = _phrases(vectors, words, consts["sentences"][heads_tails], config.words.mask_pad)
            h, t = jnp.split(x, 2)
            return loss_fn(rest, stats, h, t, triples, key, consts, net=net, config=config)

        rest = {name: value for name, value in params.items() if name != "words"}
        (loss, stats), (grads, dv) = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(rest, params["words"][words])
        rest, rest_sums = adagrad.update(rest, {name: sums[name] for name in rest}, grads, lr)
        table, table_sums, scratch = _update_words(params["words"], sums["words"], words, dv, scratch, lr, config)
        carry = {**rest, "words": table}, {**rest_sums, "words": table_sums}, stats, scratch
        return carry, (loss, jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(grads))))

    scratch = ()
    if config.words.trainable and config.l2.mode == "dense":
        scratch = jnp.zeros_like(state.params["words"]), jnp.zeros(2 * config.batch * consts["words"].shape[1], jnp.int32)
    carry = (state.params, state.opt_state, state.extra["stats"], scratch)
    (params, sums, stats, _), (losses, norms) = jax.lax.scan(update, carry, (triples_KB, keys))
    state = state.replace(step=state.step + 1, params=params, opt_state=sums, extra={**state.extra, "stats": stats})
    return state, {"loss": losses.mean(), "grad_norm": norms.mean(), "lr": lr}


def _update_words(
    table: jax.Array, sums: jax.Array, words: jax.Array, grads: jax.Array, scratch: tuple, lr: jax.Array, config: ConfigDict
) -> tuple[jax.Array, jax.Array, tuple]:
    """Word table and its sums after one batch; words [2B, W], grads [2B, W, D]. `scratch` is the dense update's own."""
    rows, grads = words.reshape(-1), grads.reshape(-1, grads.shape[-1])
    if not config.words.trainable:
        return table, sums, scratch
    if config.l2.mode == "lazy":
        return *adagrad.update_rows(table, sums, rows, grads, lr, config.l2.words), scratch
    buffer, before = scratch
    buffer = buffer.at[before].set(0).at[rows].add(grads)  # clearing rows is cheaper than a new table of zeros
    return *adagrad.update_table(table, sums, buffer, lr, config.l2.words), (buffer, rows)


def loss_fn(
    params: dict, stats: Any, h: jax.Array, t: jax.Array, triples: jax.Array, key: jax.Array, consts: Any,
    *, net: nets.Scorer, config: ConfigDict,
) -> tuple[jax.Array, Any]:  # fmt: skip
    """Loss of one minibatch of positives and their corruptions, and the new batch statistics.

    h, t: [B, D] vectors of the heads and tails of `triples` int32 [B, 3].
    """
    B, relation = len(triples), triples[:, 1]
    key, dropout = jax.random.split(key)
    swaps = negatives.draw(
        key, config.negatives, triples, consts.get("sums"), lambda: _frozen(net, variables(params, stats), h, t)
    )
    i, r, j = negatives.index(relation, swaps)
    logits, new = net.apply(
        variables(params, stats), h, t, i, r, j, train=True, mutable=["batch_stats"], rngs={"dropout": dropout}
    )
    if config.loss.kind == "bce":
        logits = jnp.clip(logits, -CLIP, CLIP)
        loss = (jax.nn.softplus(logits) - jnp.where(jnp.arange(len(logits)) < B, logits, 0)).mean()
    elif config.loss.kind == "hinge":  # Li et al.'s other objective adds the means of the three slots: loss.scale 3, lr 0.005
        loss = jax.nn.relu(1 - logits[None, :B] + logits[B:].reshape(-1, B)).mean()
    else:
        raise UserError(f"loss.kind {config.loss.kind!r} is unknown: use 'bce' or 'hinge'")
    return config.loss.scale * loss + _penalty(params["net"], relation, config.l2), new.get("batch_stats", {})


def _penalty(params: dict, relation: jax.Array, l2: ConfigDict) -> jax.Array:
    """L2 on the named arrays of the network; on relation matrices, the distance of those of the batch from I (Li et al.)."""
    total = jnp.float32(0)
    flat = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    for name, weight in l2.net.items():
        if name not in flat:
            raise UserError(f"l2.net names {name!r}, which the network has not; it has {', '.join(flat)}")
        x = flat[name]
        if name == "matrices":
            total += weight * (((x - jnp.eye(x.shape[-1])) ** 2).sum((1, 2))[relation]).sum()
        else:
            total += weight * (x * x).sum()
    return total


def _frozen(net: nets.Scorer, weights: dict, h: jax.Array, t: jax.Array) -> tuple:
    """(net bound to constants, slots): for negatives that the current model finds hardest."""
    bound = net.bind(jax.lax.stop_gradient(weights))
    return bound, bound.slots(*jax.lax.stop_gradient((h, t)))


def variables(params: dict, stats: Any) -> dict:
    """What `Scorer.apply` takes, from a run's parameters and batch statistics."""
    own = {"model": params["net"], **({"norm": params["norm"]} if "norm" in params else {})}
    return {"params": own, "batch_stats": stats}


def _phrases(vectors: jax.Array, words: jax.Array, sentences: jax.Array, mask_pad: bool) -> jax.Array:
    """Vectors [2 B, D] of heads, then tails: word means (each half padded to its own longest), then sentence vectors."""
    halves = zip(jnp.split(vectors, 2), jnp.split(words, 2), strict=True)
    return jnp.concatenate([jnp.concatenate([nets.phrase_mean(*half, mask_pad=mask_pad) for half in halves]), sentences], 1)


def score(params: dict, stats: Any, words: jax.Array, sentences: jax.Array, relation: jax.Array, net: nets.Scorer) -> jax.Array:
    """Logits [n]: words int32 [2, n, W] and sentences [2, n, S] of the heads and of the tails."""
    h, t = (jnp.concatenate([nets.phrase_mean(params["words"][w], w), s], 1) for w, s in zip(words, sentences, strict=True))
    i = jnp.arange(len(relation))
    return net.apply(variables(params, stats), h, t, i, relation, i, train=False)


def select(state: TrainState, consts: Any, *, net: nets.Scorer, config: ConfigDict) -> tuple[TrainState, dict]:
    """Threshold on dev1, accuracy on dev2; keep the best parameters of each split; the first split drives the plateau."""
    extra, best, seen = dict(state.extra), {}, {}
    for number, (name, dev) in enumerate(consts["dev"].items()):
        found = {}
        for part, (ids, label) in dev.items():
            pair = ids[:, [0, 2]].T
            logits = score(state.params, extra["stats"], consts["words"][pair], consts["sentences"][pair], ids[:, 1], net)
            if part == "dev1":
                threshold, found["dev1"] = metrics.best_threshold_device(logits, label)
            else:
                found["dev2"] = ((logits >= threshold) == label).mean()
        now = {"params": state.params, "stats": extra["stats"], **found, "threshold": threshold, "epoch": state.step}
        old = extra["best"][name]
        best[name] = jax.tree.map(lambda o, n, better=found["dev2"] > old["dev2"]: jnp.where(better, n, o), old, now)
        seen |= {f"{part}_{name}": value for part, value in found.items()}
        if number == 0:
            extra["plateau"] = plateau(extra["plateau"], found["dev2"], **config.optim.plateau)
    return state.replace(extra={**extra, "best": best}), seen


def final_scores(state: TrainState, knowledge: Knowledge, sentences: np.ndarray, *, net: nets.Scorer) -> dict[str, float]:
    """Accuracy, F1, AUC on the test triples of each split, at the epoch and threshold chosen for it."""
    found, words = {}, knowledge.lexicon.phrase_words
    run = jax.jit(lambda params, stats, *rest: score(params, stats, *rest, net))
    for name, split in knowledge.splits.items():
        best, ids = state.extra["best"][name], knowledge.lexicon.ids(split.test)
        pair = ids[:, [0, 2]].T
        logits = np.asarray(run(best["params"], best["stats"], words[pair], sentences[pair], ids[:, 1]))
        facts = metrics.summary(logits, split.test.label, float(best["threshold"]))
        found |= {f"{key}_{name}": facts[key] for key in ("accuracy", "f1", "auc")}
    return found


def plateau(state: dict, value: jax.Array, *, patience: int, factor: float) -> dict:
    """ReduceLROnPlateau: scale by `factor` after `patience` epochs without a gain above 1e-4 (Keras 2.1 may take one more)."""
    gain = value > state["best"] + 1e-4
    wait = jnp.where(gain, 0, state["wait"] + 1)
    cut = wait >= patience
    return {
        "best": jnp.where(gain, value, state["best"]),
        "wait": jnp.where(cut, 0, wait),
        "scale": jnp.where(cut, state["scale"] * factor, state["scale"]),
    }
