"""One epoch against a textbook's; selection and learning rate by hand; that it learns; that seeds are independent."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kbc_jax import complete
from kbc_jax.facts import embeddings, negatives
from kbc_jax.facts.data import phrase_means
from kbc_jax.facts.source import TripleSource, open_knowledge
from kbc_jax.scoring import metrics
from training import config as configs
from training import population
from training.data import DatasetStream
from training.errors import UserError
from training.rng import key_for
from training.sharding import batch_spec, make_mesh, replicated

ROOT = Path(__file__).parents[2]


def load(variant="tiny", **overrides):
    text = {k.replace("__", "."): str(v) for k, v in {"mesh__data": 1, **overrides}.items()}
    return configs.load(f"{ROOT}/configs/kbc/complete.py:{variant}", text)


def replace_sections(config, **sections):
    """A copy of the config with whole sections replaced, which no command line can do."""
    copy = config.copy_and_resolve_references().unlock()
    for name, value in sections.items():
        section, _, key = name.partition("__")
        copy[section][key] = value
    return copy.lock()


class Run:
    """A method with its stream, constants and jitted step, before the first step."""

    def __init__(self, config):
        self.config, self.mesh = population.measured(config), make_mesh(1)
        self.method = population.make(self.config, self.mesh)
        self.knowledge = open_knowledge(config.data)
        self.net = complete.build_net(config, 200)
        self.consts = self.method.consts()
        self.stream = self.method.stream(self.consts)
        self.init = jax.jit(self.method.init)
        self.step = jax.jit(self.method.step, out_shardings=replicated(self.mesh))

    def start(self, seed=None):
        state = self.method.warm(self.init(jnp.uint32(self.config.seed if seed is None else seed)), self.consts)
        return jax.device_put(state, replicated(self.mesh))

    def epochs(self, n, state, stream=None):
        """(last state, metrics of every epoch)."""
        history = []
        with jax.set_mesh(self.mesh):
            for _ in range(n):
                state, values = self.step(state, (stream or self.stream).next(state), self.consts)
                history.append(jax.tree.map(np.asarray, values))
        return state, history


# One epoch


def textbook(run, state, batch):
    """Reference epoch: gradients of the whole table, each of 4B triples scored by itself, Adagrad by hand.

    The keys, and which rows they draw, are all that is taken from the code under test.
    """
    config, words = run.config, run.consts["words"]
    B, K = config.batch, len(batch) // config.batch
    i = jnp.arange(4 * B)

    def logits(params, rows):
        mask = words > 0
        h, t = ((params["words"][words[p]] * mask[p][..., None]).sum(1) / mask[p].sum(1, keepdims=True) for p in rows[:, ::2].T)
        ask = lambda m, h, t: m.rows(m.slots(h, t), i, rows[:, 1], i)  # noqa: E731
        return run.net.model.apply({"params": params["net"]}, h, t, method=ask)

    def loss_of(params, rows, touched):
        raw = z = logits(params, rows)
        if config.net.bn:
            z = (z - z.mean()) / jnp.sqrt(z.var() + 1e-3) * params["norm"]["scale"] + params["norm"]["bias"]
        if config.loss.kind == "bce":
            p = 1 / (1 + jnp.exp(-z))
            loss = -(jnp.log(p[:B]).sum() + jnp.log(1 - p[B:]).sum()) / (4 * B)
        else:
            loss = jnp.maximum(1 - z[jnp.arange(3 * B) % B] + z[B:], 0).mean()
        penalty = 0.0
        for name, weight in config.l2.net.items():
            x = functools.reduce(lambda tree, key: tree[key], name.split("/"), params["net"])
            x = x[rows[:B, 1]] - jnp.eye(x.shape[-1]) if name == "matrices" else x
            penalty += weight * (x**2).sum()
        total = config.loss.scale * loss + penalty
        return total + config.l2.words * (params["words"] ** 2).sum(1) @ touched, (total, raw)

    gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    draw = jax.jit(lambda key, rows: negatives.draw(jax.random.split(key)[0], config.negatives, rows, None, None))
    params, sums = (jax.tree.map(np.asarray, tree) for tree in (state.params, state.opt_state))
    mean, variance, losses = 0.0, 1.0, []
    for k, key in enumerate(jax.random.split(key_for(state.seed, state.step, "epoch"), K)):
        positives = np.asarray(batch)[k::K]
        swaps = np.asarray(draw(key, positives))[0]
        rows = np.concatenate([positives] * 4)
        for slot, column in enumerate((1, 0, 2)):  # relations, heads, tails
            rows[(slot + 1) * B :][:B, column] = positives[swaps[:, slot], column]
        touched = np.ones(len(params["words"]), np.float32)
        if config.l2.mode == "lazy":
            touched[np.setdiff1d(np.arange(len(touched)), np.asarray(words)[positives[:, ::2]])] = 0
        (_, (loss, z)), grads = jax.tree.map(np.asarray, gradient(params, rows, touched))
        losses.append(loss)
        mean, variance = 0.99 * mean + 0.01 * z.mean(), 0.99 * variance + 0.01 * z.var()
        sums = jax.tree.map(lambda s, g: s + g**2, sums, grads)
        params = jax.tree.map(lambda p, s, g: p - config.optim.lr * g / (np.sqrt(s) + 1e-7), params, sums, grads)
    return params, sums, (mean, variance), np.mean(losses)


CASES = {
    "factorized, dense L2": load("tiny_dense", updates=2, l2__words=1e-2, seed=3),
    "bilinear, lazy L2, hinge loss": load("tiny_bilinear", updates=2, loss__kind="hinge"),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_an_epoch_is_the_textbooks(config):
    run = Run(config)
    state, batch = run.start(), run.stream.next()
    words = state.params["words"] * 10  # scores far apart: some of the hinges are slack
    state = state.replace(step=jnp.int32(2), params={**state.params, "words": words})
    new, measures = jax.jit(functools.partial(complete.epoch, net=run.net, config=config))(state, batch, run.consts)
    params, sums, moments, loss = textbook(run, state, batch)
    assert new.step == 3
    np.testing.assert_allclose(measures["loss"], loss, rtol=1e-4)
    leaves = zip(*map(jax.tree_util.tree_leaves_with_path, (new.params, params, new.opt_state, sums)), strict=True)
    for (path, p), (_, expected), (_, s), (_, square) in leaves:
        np.testing.assert_allclose(s, square, rtol=5e-3, atol=1e-5 * np.max(square), err_msg=str(path))
        clear = square > 1e-6 * np.max(square)  # the step of a rounding error is lr too, either way
        np.testing.assert_allclose(np.asarray(p)[clear], expected[clear], atol=2e-5, err_msg=str(path))
        assert np.mean(clear) > 0.01 and np.abs(p - expected).max() < 4.1 * config.optim.lr
    if config.net.bn:
        measures = new.extra["stats"]["norm"]
        np.testing.assert_allclose([measures["mean"][0], measures["var"][0]], moments, rtol=1e-3)
    else:
        assert new.extra["stats"] == {}


def test_padding_and_frozen_words():
    """The vector of padding moves only where it leaks into means; words that are not trained do not move at all."""
    for option, padding, others in (("words__mask_pad", True, True), ("words__trainable", False, False)):
        config = load("tiny_dnn", updates=1, **{option: False})
        run = Run(config)
        state = run.start()
        new, _ = jax.jit(functools.partial(complete.epoch, net=run.net, config=config))(state, run.stream.next(), run.consts)
        moved = np.asarray(new.params["words"] != state.params["words"]).any(1)
        assert (moved[0], moved[1:].any()) == (padding, others), option


# Selection


def plateau(values, **options):
    """The scale after each value."""
    state, scales = {"best": jnp.float32(-1), "wait": jnp.int32(0), "scale": jnp.float32(1)}, []
    for value in values:
        state = complete.plateau(state, jnp.float32(value), **options)
        scales.append(float(state["scale"]))
    return scales


def test_plateau_by_hand():
    options = {"patience": 2, "factor": 0.5}
    assert plateau([0.5, 0.6, 0.6, 0.7, 0.7, 0.69, 0.7, 0.7, 0.8], **options) == [1, 1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]
    assert plateau([0.5, 0.50005, 0.5001], **options) == [1, 1, 0.5]  # a gain of 1e-4 or less is none
    assert plateau([0.5, 0.50005, 0.5002], **options) == [1, 1, 1]  # ... and the best stays what it was


@pytest.fixture(scope="module")
def tiny():
    """All toy facts an epoch, in 12 updates, at the learning rate of the tiny variants."""
    return Run(load(batch=116, updates=0))


def test_selection_keeps_the_best_of_each_split(tiny):
    """Four random networks as four epochs: each split keeps the first with its best dev2 accuracy at its dev1 threshold."""
    select = jax.jit(functools.partial(complete.select, net=tiny.net, config=tiny.config))
    splits, start = tiny.knowledge.splits, tiny.start()
    assert list(splits) == ["official", "redrawn"] and not np.asarray(start.extra["best"]["official"]["params"]["words"]).any()
    accuracies, thresholds, states = {name: [] for name in splits}, {name: [] for name in splits}, []
    state = start
    for epoch, seed in enumerate((5, 1, 2, 1)):  # the last is the second again
        other = tiny.start(seed)
        state = state.replace(step=jnp.int32(epoch + 1), params={**other.params, "words": start.params["words"] * (seed + 1)})
        states.append(state.params)
        state, measures = select(state, tiny.consts)
        for name, split in splits.items():
            ids = [tiny.knowledge.lexicon.ids(part) for part in split]
            means = phrase_means(np.asarray(state.params["words"]), np.asarray(tiny.consts["words"]))
            weights = complete.variables(state.params, state.extra["stats"])
            dev1, dev2 = (
                tiny.net.apply(weights, means[rows[:, 0]], means[rows[:, 2]], index, rows[:, 1], index, train=False)
                for index, rows in ((np.arange(len(rows)), rows) for rows in ids[1:3])
            )
            threshold, accuracy = metrics.best_threshold(dev1, split.dev1.label)
            assert measures[f"dev1_{name}"] == pytest.approx(accuracy, abs=0.011)  # a tie may fall either way
            assert measures[f"dev2_{name}"] == pytest.approx(metrics.accuracy(dev2, split.dev2.label, threshold), abs=0.011)
            accuracies[name].append(float(measures[f"dev2_{name}"]))
            thresholds[name].append(threshold)
    assert len({tuple(values) for values in accuracies.values()}) == 2
    for name, best in state.extra["best"].items():
        epoch = int(np.argmax(accuracies[name]))
        assert best["epoch"] == epoch + 1 and best["dev2"] == max(accuracies[name])
        assert float(best["threshold"]) == pytest.approx(thresholds[name][epoch], abs=1e-5)
        jax.tree.map(np.testing.assert_array_equal, best["params"], states[epoch])
    assert state.extra["plateau"]["best"] == max(accuracies["official"])


# Whole runs


def test_it_learns_facts_and_nothing_from_shuffled_ones(tiny):
    """Toy facts: far above chance; trained on the same relations, heads and tails in random company: chance."""
    start = tiny.start()
    words = np.asarray(start.params["words"])
    np.testing.assert_array_equal(words, embeddings.word_vectors("random", tiny.knowledge.lexicon, tiny.knowledge.train))
    start.extra["plateau"]["scale"] *= 30  # a learning rate of 0.03
    ids = tiny.knowledge.lexicon.ids(tiny.knowledge.train)
    shuffled = np.stack([np.random.default_rng(k).permutation(column) for k, column in enumerate(ids.T)], 1)
    spec = batch_spec(jax.ShapeDtypeStruct((3,), np.int32), len(ids), tiny.mesh)
    streams = (DatasetStream(TripleSource(rows), spec, seed=0) for rows in (ids, shuffled))
    (state, history), (_, control) = (tiny.epochs(10, start, stream) for stream in streams)
    late, late_control = (np.mean([values["dev2_official"] for values in epochs[-5:]]) for epochs in (history, control))
    assert late > 0.8 and 0.4 < late_control < 0.6
    assert history[-1]["loss"] < history[0]["loss"] - 0.1 and history[0]["lr"] == pytest.approx(0.03)
    tested = tiny.method.evals["test"].run(state, tiny.consts, 10)
    assert set(tested) == {f"{name}_{split}" for name in ("accuracy", "f1", "auc") for split in ("official", "redrawn")}
    assert all(value > 0.8 for value in tested.values())
    for best in state.extra["best"].values():
        assert best["dev2"] > 0.8 and best["epoch"] > 1 and (np.asarray(best["params"]["words"]) != words).any()


def test_a_population_is_its_members(tiny):
    config = load(batch=116, updates=0, population=3)
    many = Run(config)
    states, values = jax.tree.map(np.asarray, many.epochs(2, many.start()))
    for i in range(3):
        one = Run(load(batch=116, updates=0, seed=i))
        one.init, one.step = tiny.init, tiny.step  # the seed is part of the state: the program is the same
        state, expected = one.epochs(2, one.start())
        for a, b in zip(values, expected, strict=True):
            for name in b:  # one triple of dev2 may fall either way
                assert a[name][i] == pytest.approx(b[name], rel=1e-3, abs=0.011 if name.startswith("dev") else 0), name
        pairs = zip(jax.tree_util.tree_leaves_with_path(population.member(states, i)), jax.tree.leaves(state), strict=True)
        for (path, a), b in pairs:
            if "best" not in str(path):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=str(path))


# Mistakes


@pytest.mark.parametrize(
    "config, message",
    [
        (
            replace_sections(load(), l2__net={"relations": 1e-6, "map": 1.0}),
            r"l2.net names 'map', which the network has not; .*maps_a/kernel",
        ),
        (load(l2__mode="denze"), "l2.mode 'denze' is unknown: use 'lazy' or 'dense'"),
        (load(loss__kind="mse"), "loss.kind 'mse' is unknown: use 'bce' or 'hinge'"),
        (load(negatives__kind="hard"), "negatives.kind 'hard' is unknown"),
        (load(net__kind="transe"), "net.kind 'transe' is unknown"),
        (load(words__kind="glove"), "no word vectors 'glove'"),
        (load(batch=2000, updates=0), "1392 training triples do not fill one batch of 2000; lower config.batch"),
        (load(data__splits="[offical]"), "no split 'offical'"),
        (load(data__splits="[official, random]"), "different training triples"),
        (load(data__dir="no/such/folder"), "no data folder no/such/folder"),
        (load(data__splits="[]"), "at least one split"),
        (load(data__width=0), "a width of 1 word or more"),
        (load(batch=0), "must be 1 or more"),
        (load(updates=-1), "config.updates 0 or more"),
        (load(negatives__each=0), "must be 1 or more"),
        (load(net__kind="dnn"), "net.kind 'dnn' has no merge, normalise"),
        (load(net__terms="[hx]"), "net.terms .* are not terms"),
        (load(net__terms="[]"), "net.terms .* are not terms"),
        (load(sources__init="runs/x"), "drop sources.init"),
    ],
    ids=lambda x: x.split()[0] if isinstance(x, str) else "",
)
def test_mistakes_are_named(config, message):
    with pytest.raises(UserError, match=message):
        method = complete.make(population.measured(config), make_mesh(1))
        state = jax.eval_shape(lambda: method.init(jnp.uint32(0)))
        jax.eval_shape(method.step, state, method.spec, method.consts_spec)


def test_sizes_of_the_data_and_a_plan_without_them():
    config = population.measured(load())
    assert config.data.sizes.to_dict() == {
        "words": 116, "phrases": 302, "train": 1392, "dev1": (100, 100), "dev2": (100, 100), "vector": 200, "sentence": 0,
    }  # fmt: skip
    method = complete.make(config, make_mesh(1))
    as_spec = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert as_spec(method.consts()) == as_spec(method.consts_spec)
    with pytest.raises(UserError, match=r"data.sizes.words is 117, but the data have 116"):
        population.measured(replace_sections(load(), data__sizes={**load().data.sizes, "words": 117}))
    plan = complete.make(load("fusion_cn82k"), make_mesh(1))
    words = jax.eval_shape(plan.init, jnp.uint32(0)).params["words"]
    assert words.shape == (20_006, 200) and plan.consts_spec["sentences"].shape == (69_418, 384)


def test_published_sizes_are_those_of_the_files():
    if not os.environ.get("QUINTET_DATA"):
        pytest.skip("QUINTET_DATA is not set: conceptnet100k")
    for variant, name in (("factorized", "cn100k"), ("dnn_random", "cn100k"), ("dnn_cn82k", "cn82k")):
        sizes = population.measured(load(variant)).data.sizes
        assert {key: sizes[key] for key in complete.PUBLISHED[name]} == complete.PUBLISHED[name]
        assert set(sizes.dev1) == set(sizes.dev2) == {complete.DEV}
