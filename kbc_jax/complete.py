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
from models import minilm
from training.data import DatasetStream
from training.errors import UserError
from training.method import Eval, Method, TrainState
from training.rng import key_for
from training.sharding import batch_spec, check_batch, path_name, place_replicated, replicated_spec

CLIP = 16.118095  # logit of 1 - 1e-7, where Keras and Li et al. clip probabilities
LEXICON, ENCODER = "lexicon.json", "minilm.sha256"  # saved with a run
# Sizes of the published data with the triples mined from Wikipedia, for plans without data (`sizes` counts the data at hand).
PUBLISHED = {
    "cn100k": {"words": 22_019, "phrases": 80_711, "train": 100_000},
    "cn82k": {"words": 20_006, "phrases": 69_418, "train": 81_920},
}
DEV = 1200  # triples of dev1, and of dev2


def sizes(config: ConfigDict) -> dict[str, Any]:
    """Sizes of the data at hand, {key in the config: size}; `dev1` and `dev2` are tuples, a number for each split."""
    knowledge = open_knowledge(config.data)
    lexicon, splits = knowledge.lexicon, knowledge.splits.values()
    counts = {
        "words": len(lexicon.words),
        "phrases": len(lexicon.phrases),
        "train": knowledge.train.size,
        "dev1": tuple(split.dev1.size for split in splits),
        "dev2": tuple(split.dev2.size for split in splits),
        "vector": embeddings.width(config.words.kind, lexicon),
        "sentence": embeddings.SENTENCE_SIZE if config.words.sentences else 0,
    }
    return {f"data.sizes.{name}": size for name, size in counts.items()}


def planned_sizes(config: ConfigDict) -> dict[str, Any]:
    """Sizes to build for: those of the config and, where it has a 0, those of the published data."""
    splits = config.data.splits
    published = PUBLISHED["cn82k" if "cn82k" in splits else "cn100k"]
    default = {**published, "dev1": (DEV,) * len(splits), "dev2": (DEV,) * len(splits)}
    default["vector"] = embeddings.SIZES.get(config.words.kind.partition(":")[0], embeddings.SIZES["skipgram"])
    default["sentence"] = embeddings.SENTENCE_SIZE if config.words.sentences else 0
    return {name: config.data.sizes[name] or size for name, size in default.items()}


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """Training of the scorer `config.net` on the first of `config.data.splits`, with selection on each of them."""
    check(config, mesh)
    size = planned_sizes(config)
    updates = config.updates or size["train"] // config.batch
    if not updates:
        raise UserError(f"{size['train']} training triples do not fill one batch of {config.batch}; lower config.batch")
    spec = batch_spec(jax.ShapeDtypeStruct((3,), np.int32), config.batch * updates, mesh)
    width = size["vector"] + size["sentence"]
    net = build_net(config, width)

    def init(seed: jax.Array) -> TrainState:
        x, i = jnp.zeros((1, width)), jnp.zeros(1, jnp.int32)
        variables = net.init(key_for(seed, 0, "init"), x, x, i, i, i, train=True)
        params = {"net": variables["params"]["model"], "words": jnp.zeros((size["words"], size["vector"]))}
        if config.net.bn:
            params["norm"] = variables["params"]["norm"]
        stats = variables.get("batch_stats", {})
        best = {"params": params, "stats": stats, "dev1": jnp.float32(0), "dev2": jnp.float32(-1), "threshold": jnp.float32(0)}
        extra = {
            "stats": stats,
            "best": {name: {**best, "epoch": jnp.int32(0)} for name in config.data.splits},
            "plateau": {"best": jnp.float32(-1), "wait": jnp.int32(0), "scale": jnp.float32(1)},
        }
        sums = jax.tree.map(jnp.zeros_like, params)
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=sums, extra=extra)

    def warm(state: TrainState, consts: Any) -> TrainState:
        """The state with word vectors from the embedding that `config.words` names."""
        return state.replace(params={**state.params, "words": jnp.asarray(word_vectors(config))})

    def step(state: TrainState, batch: jax.Array, consts: Any) -> tuple[TrainState, dict]:
        state, losses = epoch(state, batch, consts, net=net, config=config)
        state, accuracies = select(state, consts, net=net, config=config)
        return state, {**losses, **accuracies}

    def stream(consts: Any) -> DatasetStream:
        knowledge = open_knowledge(config.data)
        return DatasetStream(TripleSource(knowledge.lexicon.ids(knowledge.train)), spec, seed=config.seed, prefetch=1)

    def test(state: TrainState, consts: Any, step: int) -> dict[str, float]:
        return final_scores(state, open_knowledge(config.data), consts, net=net)

    return Method(
        spec=spec,
        init=init,
        step=step,
        stream=stream,
        evals={"test": Eval(0, test)},  # once, at the end
        consts=lambda: place_replicated(tables(config), mesh),
        consts_spec=replicated_spec(tables_spec(config), mesh),
        warm=warm,
        files=lambda: files(config),
    )


def files(config: ConfigDict) -> dict[str, bytes]:
    """What the weights depend on: the numbers of words and phrases, and the encoder of the sentence vectors."""
    saved = {LEXICON: open_knowledge(config.data).lexicon.to_json().encode()}
    return saved | ({ENCODER: minilm.fingerprint().encode()} if config.words.sentences else {})


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UserError for values that no run can have."""
    if config.batch < 1 or config.updates < 0 or config.negatives.each < 1:
        raise UserError("config.batch and negatives.each must be 1 or more, config.updates 0 or more")
    check_batch(config.batch, mesh)
    if config.l2.mode not in ("lazy", "dense"):
        raise UserError(f"l2.mode {config.l2.mode!r} is unknown: use 'lazy' or 'dense'")
    if config.sources.init:
        raise UserError("completion runs start from word vectors (config.words.kind), not from another run: drop sources.init")


def build_net(config: ConfigDict, width: int) -> nets.Scorer:
    """The network of a config, for phrase vectors of length `width`."""
    return nets.build(relations=len(RELATIONS), width=width, **config.net)


def word_vectors(config: ConfigDict) -> np.ndarray:
    """The word vectors that a run starts from, float32 [words, D]."""
    knowledge, words = open_knowledge(config.data), config.words
    seed = config.seed if words.kind == "random" else 0  # one skip-gram for all seeds: they vary in the scorer alone
    return embeddings.word_vectors(words.kind, knowledge.lexicon, knowledge.train, seed=seed, normalise=words.normalise)


def tables(config: ConfigDict) -> dict:
    """The constants of every step: words and sentence vectors of all phrases, dev sets, and sums of words for 'argsim'."""
    knowledge = open_knowledge(config.data)
    lexicon = knowledge.lexicon
    sentences = np.zeros((len(lexicon.phrases), 0), np.float32)
    if config.words.sentences:
        sentences = embeddings.phrase_vectors(lexicon)
    host = {"words": lexicon.phrase_words, "sentences": sentences, "dev": {}}
    if config.negatives.kind == "argsim":
        means = phrase_means(word_vectors(config), lexicon.phrase_words)
        host["sums"] = means * (lexicon.phrase_words > 0).sum(1, keepdims=True).astype(np.float32)
    for name, split in knowledge.splits.items():
        parts = {"dev1": split.dev1, "dev2": split.dev2}
        host["dev"][name] = {part: (lexicon.ids(rows), rows.label) for part, rows in parts.items()}
    return host


def tables_spec(config: ConfigDict) -> dict:
    """Shapes and types of `tables`, from the config alone."""
    size = planned_sizes(config)
    array = jax.ShapeDtypeStruct
    dev = {
        name: {part: (array((size[part][i], 3), np.int32), array((size[part][i],), bool)) for part in ("dev1", "dev2")}
        for i, name in enumerate(config.data.splits)
    }
    phrases = size["phrases"]
    spec = {
        "words": array((phrases, config.data.width), np.int32),
        "sentences": array((phrases, size["sentence"]), np.float32),
        "dev": dev,
    }
    return spec | ({"sums": array((phrases, size["vector"]), np.float32)} if config.negatives.kind == "argsim" else {})


def epoch(state: TrainState, batch: jax.Array, consts: Any, *, net: nets.Scorer, config: ConfigDict) -> tuple[TrainState, dict]:
    """The state after K updates, and metrics: their means over the updates.

    Row r of `batch` int32 [K B, 3] belongs to update r % K, so that each update's rows keep the rows' sharding. The metric
    `loss` leaves out the words' L2, `grad_norm` the words.
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
            phrases = _phrase_vectors(vectors, words, consts["sentences"][heads_tails], config.words.mask_pad)
            h, t = jnp.split(phrases, 2)
            return loss_fn(rest, stats, h, t, triples, key, consts, net=net, config=config)

        rest = {name: value for name, value in params.items() if name != "words"}
        (loss, stats), (grads, vector_grads) = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(rest, params["words"][words])
        rest, rest_sums = adagrad.update(rest, {name: sums[name] for name in rest}, grads, lr)
        table, table_sums, scratch = _update_words(params["words"], sums["words"], words, vector_grads, scratch, lr, config)
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
    """(word table, its sums, scratch) after one batch, with words [2B, W] and grads [2B, W, D].

    `scratch` is the dense update's buffer of gradients [V, D] and the rows that the last batch left in it.
    """
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
    """(loss of one minibatch of positives and their corruptions, new batch statistics).

    h, t: [B, D] vectors of the heads and tails of `triples` int32 [B, 3]. Raises UserError for an unknown `loss.kind`.
    """
    B, relation = len(triples), triples[:, 1]
    key, dropout = jax.random.split(key)
    swaps = negatives.draw(
        key, config.negatives, triples, consts.get("sums"), lambda: _bind_frozen(net, variables(params, stats), h, t)
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
    """L2 of the arrays named in `l2.net`; of relation matrices, the distance from I of those in the batch (Li et al.)."""
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


def _bind_frozen(net: nets.Scorer, weights: dict, h: jax.Array, t: jax.Array) -> tuple:
    """(net bound to its weights, slots of h and t), without gradients, to find the hardest negatives."""
    bound = net.bind(jax.lax.stop_gradient(weights))
    return bound, bound.slots(*jax.lax.stop_gradient((h, t)))


def variables(params: dict, stats: Any) -> dict:
    """The variables of `Scorer.apply`, from a run's parameters and batch statistics."""
    net = {"model": params["net"], **({"norm": params["norm"]} if "norm" in params else {})}
    return {"params": net, "batch_stats": stats}


def _phrase_vectors(vectors: jax.Array, words: jax.Array, sentences: jax.Array, mask_pad: bool) -> jax.Array:
    """Vectors [2 B, D] of heads, then tails: word means (each half padded to its own longest), then sentence vectors."""
    halves = zip(jnp.split(vectors, 2), jnp.split(words, 2), strict=True)
    return jnp.concatenate([jnp.concatenate([nets.phrase_mean(*half, mask_pad=mask_pad) for half in halves]), sentences], 1)


def score(params: dict, stats: Any, words: jax.Array, sentences: jax.Array, relation: jax.Array, net: nets.Scorer) -> jax.Array:
    """Logits [n] of triples.

    Args: words int32 [2, n, W] and sentences [2, n, S] of the heads and of the tails; relation int32 [n].
    """
    h, t = (jnp.concatenate([nets.phrase_mean(params["words"][w], w), s], 1) for w, s in zip(words, sentences, strict=True))
    i = jnp.arange(len(relation))
    return net.apply(variables(params, stats), h, t, i, relation, i, train=False)


def select(state: TrainState, consts: Any, *, net: nets.Scorer, config: ConfigDict) -> tuple[TrainState, dict]:
    """The state with the best parameters of each split so far, and the accuracies of the present ones.

    The threshold is that of dev1; the best are those with the highest accuracy on dev2. The first split drives the plateau.
    """
    extra, best, accuracies = dict(state.extra), {}, {}
    for number, (name, dev) in enumerate(consts["dev"].items()):
        measures = {}
        for part, (ids, label) in dev.items():
            pair = ids[:, [0, 2]].T
            logits = score(state.params, extra["stats"], consts["words"][pair], consts["sentences"][pair], ids[:, 1], net)
            if part == "dev1":
                threshold, measures["dev1"] = metrics.best_threshold_device(logits, label)
            else:
                measures["dev2"] = ((logits >= threshold) == label).mean()
        current = {"params": state.params, "stats": extra["stats"], **measures, "threshold": threshold, "epoch": state.step}
        old = extra["best"][name]
        best[name] = jax.tree.map(lambda o, n, better=measures["dev2"] > old["dev2"]: jnp.where(better, n, o), old, current)
        accuracies |= {f"{part}_{name}": value for part, value in measures.items()}
        if number == 0:
            extra["plateau"] = plateau(extra["plateau"], measures["dev2"], **config.optim.plateau)
    return state.replace(extra={**extra, "best": best}), accuracies


def final_scores(state: TrainState, knowledge: Knowledge, consts: Any, *, net: nets.Scorer) -> dict[str, float]:
    """Test accuracy, F1 and AUC of each split, at the epoch and threshold chosen for it: {'accuracy_official': ...}."""
    scores, words, sentences = {}, np.asarray(consts["words"]), np.asarray(consts["sentences"])
    logits_of = jax.jit(lambda params, stats, *rest: score(params, stats, *rest, net))
    for name, split in knowledge.splits.items():
        best, ids = state.extra["best"][name], knowledge.lexicon.ids(split.test)
        pair = ids[:, [0, 2]].T
        logits = np.asarray(logits_of(best["params"], best["stats"], words[pair], sentences[pair], ids[:, 1]))
        summary = metrics.summary(logits, split.test.label, float(best["threshold"]))
        scores |= {f"{key}_{name}": summary[key] for key in ("accuracy", "f1", "auc")}
    return scores


def plateau(state: dict, value: jax.Array, *, patience: int, factor: float) -> dict:
    """The next state of ReduceLROnPlateau, {best, wait, scale}: `patience` epochs without a gain above 1e-4 cut the scale.

    Keras 2.1 may take one epoch more.
    """
    gain = value > state["best"] + 1e-4
    wait = jnp.where(gain, 0, state["wait"] + 1)
    cut = wait >= patience
    return {
        "best": jnp.where(gain, value, state["best"]),
        "wait": jnp.where(cut, 0, wait),
        "scale": jnp.where(cut, state["scale"] * factor, state["scale"]),
    }
