"""Every scorer against its formula, coded again one triple at a time: `rows`, `batch` and the grids of `tails` and `heads`."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kbc_jax.facts import negatives
from kbc_jax.scoring import nets
from training.errors import UserError

R, D, F = 5, 6, 8  # relations, width of a phrase vector, hidden width
KEY = jax.random.key(0)
RELATION = jnp.array([3, 0, 4, 3, 1, 1, 2])  # of 7 heads, and of 7 tails


def vectors(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)


def noise(shapes):
    """Random parameters; those of a fresh model have zeros and ones that hide mistakes."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


def start(model, h, t):
    i = jnp.zeros(1, int)
    return noise(jax.eval_shape(lambda: model.init(KEY, h, t, method=lambda m, h, t: m.rows(m.slots(h, t), i, i, i)))["params"])


def ask(model, params, h, t, question):
    answer = model.apply({"params": params}, h, t, method=lambda m, h, t: question(m, m.slots(h, t)))
    return jax.tree.map(np.asarray, answer)


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


# The formulas, for one triple


def factorized(model, p, h, r, t):
    map_of = {  # share -> the map of a term's left or right member
        0: lambda term, side, name: f"maps_{side}_{term}",
        1: lambda term, side, name: f"maps_{side}",
        3: lambda term, side, name: "maps_a",
        4: lambda term, side, name: None if name == "r" else f"maps_{side}",
        5: lambda term, side, name: None if name == "r" else "maps_a",
    }[model.share]
    member = {"h": h, "r": p["relations"][r], "t": t}

    def feature(term, side, name):
        y = (
            member[name]
            if map_of(term, side, name) is None
            else np.maximum(dense(p[map_of(term, side, name)], member[name]), 0)
        )
        return y / math.sqrt(max(y @ y, 1e-12)) if model.normalise else y

    terms = [feature(term, "a", term[0]) @ feature(term, "b", term[1]) for term in model.terms]
    if model.weighted:
        terms = [w * x for w, x in zip(p["weights"], terms, strict=True)]
    z = {"add": sum, "max": max, "average": np.mean}[model.merge](terms)
    return p["w"] * z + p.get("c", 0)


def dnn(model, p, h, r, t):
    w1 = np.concatenate([p[f"w1_{slot}"]["kernel"] for slot in "hrt"])
    hidden = np.maximum(np.concatenate([h, p["relations"][r], t]) @ w1 + p["w1_r"]["bias"], 0)
    return p["w2"] @ hidden + p["b2"]


def bilinear(model, p, h, r, t):
    return np.tanh(dense(p["map"], h)) @ p["matrices"][r] @ np.tanh(dense(p["map"], t))


def fusion(model, p, h, r, t):
    pairs = nets.Factorized(R, D, F)
    product = np.tanh(dense(p["u"], h)) * p["gates"][r] * np.tanh(dense(p["v"], t))
    return factorized(pairs, p["pairs"], h, r, t) + product.sum() + dnn(None, p["deep"], h, r, t)


SHARES = (0, 1, 3, 4, 5)


def models():
    for k, (share, merge) in enumerate(itertools.product(SHARES, ("add", "max", "average"))):
        yield factorized, nets.Factorized(R, D, F, share=share, merge=merge, normalise=k % 2 == 0)
    for k, share in enumerate(SHARES):
        merge, terms = ("average", "add", "max")[k % 3], (("hr", "rt"), ("ht",))[k % 2]
        yield factorized, nets.Factorized(R, D, F, share=share, terms=terms, merge=merge, normalise=k % 2 == 1, weighted=True)
    yield factorized, nets.Factorized(R, D, F, weighted=True, shift=None)
    yield dnn, nets.DNN(R, D, F, relation_width=3)
    yield bilinear, nets.Bilinear(R, D, F)
    yield fusion, nets.Fusion(R, D, F, product=4)


@pytest.mark.parametrize("formula, model", list(models()), ids=lambda x: "" if isinstance(x, nn.Module) else x.__name__)
def test_every_question_has_the_answer_of_the_formula(formula, model, monkeypatch):
    monkeypatch.setattr(nets, "BLOCK", 3)  # grids of several blocks, the last one not full
    h, t = vectors(7, 2), vectors(4, 3)
    params = start(model, h, t)
    one = np.array([[[formula(model, params, a, r, b) for b in t] for r in range(R)] for a in h])  # [heads, R, tails]
    of_heads, of_tails = jnp.array([3, 0, 4, 3, 1, 1, 2]), jnp.array([2, 2, 0, 4])
    i, r, j = (jnp.asarray(x) for x in np.random.default_rng(0).integers((7, R, 4), size=(28, 3)).T)
    rows, batch, tails, heads = ask(
        model,
        params,
        h,
        t,
        lambda m, s: (
            m.rows(s, i, r, j),
            getattr(m, "batch", m.rows)(s, i, r, j),
            m.tails(s, of_heads),
            m.heads(s, of_tails),
        ),
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(rows, one[i, r, j], err_msg="rows")
    close(batch, one[i, r, j], err_msg="batch")
    close(tails, one[np.arange(7), of_heads], err_msg="tails")
    close(heads, one[:, of_tails, np.arange(4)].T, err_msg="heads")


def test_four_rows_a_positive_by_hand():
    """`batch` scores the rows that the index arrays of in-batch corruptions name."""
    h, t, swaps = vectors(3, 2), vectors(3, 3), jnp.array([[[1, 2, 0], [0, 0, 2], [2, 1, 1]]])
    relation = jnp.array([3, 0, 4])
    index = negatives.index(relation, swaps)
    triples = [(0, 3, 0), (1, 0, 1), (2, 4, 2), (0, 0, 0), (1, 3, 1), (2, 4, 2), (2, 3, 0), (0, 0, 1), (1, 4, 2), (0, 3, 0)]
    triples += [(1, 0, 2), (2, 4, 1)]
    model = nets.Factorized(R, D, F)
    params = start(model, h, t)
    scores = ask(model, params, h, t, lambda m, s: m.batch(s, *index))
    expected = [factorized(model, params, h[i], r, t[j]) for i, r, j in triples]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_feature_of_zeros_has_cosine_zero_and_finite_gradients():
    model = nets.Factorized(R, D, F)
    h, t = vectors(1), vectors(1, 1)
    params = {**start(model, h, t), "maps_a": {"kernel": np.zeros((D, F), np.float32), "bias": -np.ones(F, np.float32)}}
    i = jnp.zeros(1, int)

    def score(params):
        return model.apply({"params": params}, h, t, method=lambda m, h, t: m.rows(m.slots(h, t), i, i, i))[0]

    value, grads = jax.jit(jax.value_and_grad(score))(params)
    assert value == params["c"] and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_prototypical_never_sees_whether_head_and_tail_fit():
    h, t = vectors(6), vectors(6, 1)
    r = jnp.full(6, 2)

    def spread(terms):
        """By how much the difference of two tails' scores differs from head to head."""
        model = nets.Factorized(R, D, F, terms=terms)
        grid = ask(model, {**start(model, h, t), "w": 1.0}, h, t, lambda m, s: m.tails(s, r))
        return np.ptp(grid - grid[:, :1], axis=0).max()

    assert spread(("hr", "rt")) < 2e-6 and spread(("ht", "hr", "rt")) > 0.1


# Where training starts


def extreme(x):
    return np.abs(np.asarray(x)).max()


def initial(*models):
    """Fresh parameters of each model, for vectors of its width."""
    i = jnp.zeros(1, int)

    def one(model):
        x = jnp.zeros((1, model.width))
        return model.init(KEY, x, x, method=lambda m, h, t: m.rows(m.slots(h, t), i, i, i))["params"]

    return jax.tree.map(np.asarray, jax.jit(lambda: [one(model) for model in models])())


def test_initial_values():
    paired, raw, deep, narrow, product = initial(
        nets.Factorized(34, 40, 60),
        nets.Factorized(34, 40, 60, share=4, scale=3.0, shift=None, weighted=True),
        nets.DNN(34, 40, 60, relation_width=50),
        nets.DNN(34, 40, 60, std=0.01),
        nets.Bilinear(34, 40, 30),
    )
    limit = math.sqrt(6 / (40 + 60))  # Glorot
    assert 0.95 * limit < extreme(paired["maps_a"]["kernel"]) <= limit and not extreme(paired["maps_b"]["bias"])
    assert paired["relations"].shape == (34, 40) and 0.045 < extreme(paired["relations"]) <= 0.05
    assert (float(paired["w"]), float(paired["c"])) == (1, 0) and set(paired) == {"relations", "w", "c", "maps_a", "maps_b"}
    assert raw["relations"].shape == (34, 60) and float(raw["w"]) == 3 and "c" not in raw and raw["weights"].tolist() == [1] * 3
    assert deep["relations"].shape == (34, 50) and 0.018 < extreme(deep["relations"]) <= 0.02
    sd = np.std(np.concatenate([np.ravel(deep[f"w1_{slot}"]["kernel"]) for slot in "hrt"]))
    assert 0.048 < sd < 0.052 and 0.035 < np.std(deep["w2"]) < 0.065 and deep["b2"] == 0 and not extreme(deep["w1_r"]["bias"])
    assert 0.0096 < np.std(narrow["w1_h"]["kernel"]) < 0.0104  # Li et al.
    for x in (product["map"]["kernel"], product["map"]["bias"], product["matrices"] - np.eye(30)):
        assert 0.18 < extreme(x) <= 0.2 and abs(np.mean(x)) < 0.1
    assert product["matrices"].shape == (34, 30, 30)


# The scorer around a model


def test_batch_normalisation_of_the_logit():
    """Training: mean and variance of the batch, and running ones at momentum 0.99; else the running ones."""
    scorer = nets.build("factorized", relations=R, width=D, bn=True, hidden=F, shift=None)
    h, t, i = vectors(7), vectors(7, 1), jnp.arange(7)
    stats = jax.jit(lambda: scorer.init(KEY, h, t, i, RELATION, i, train=True)["batch_stats"])()
    params = {"model": start(scorer.model, h, t), "norm": {"scale": jnp.array([1.7]), "bias": jnp.array([-0.3])}}
    z = ask(scorer.model, params["model"], h, t, lambda m, s: m.rows(s, i, RELATION, i))
    assert jax.tree.map(lambda x: x.tolist(), stats) == {"norm": {"mean": [0], "var": [1]}}
    apply = {"params": params, "batch_stats": stats}
    logits, new = scorer.apply(apply, h, t, i, RELATION, i, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(logits, (z - z.mean()) / math.sqrt(z.var() + 1e-3) * 1.7 - 0.3, rtol=1e-4, atol=1e-5)
    new = new["batch_stats"]["norm"]
    np.testing.assert_allclose(new["mean"], [0.01 * z.mean()], rtol=1e-4)
    np.testing.assert_allclose(new["var"], [0.99 + 0.01 * z.var()], rtol=1e-4)
    apply["batch_stats"] = {"norm": {"mean": jnp.array([0.4]), "var": jnp.array([2.0])}}
    expected = (z - 0.4) / math.sqrt(2 + 1e-3) * 1.7 - 0.3
    rows = scorer.apply(apply, h, t, i, RELATION, i, train=False)
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)
    for question in ("tails", "heads"):
        grid = scorer.apply(apply, h, t, method=lambda m, h, t, q=question: getattr(m, q)(m.slots(h, t), RELATION))
        np.testing.assert_allclose(np.diagonal(grid), expected, rtol=1e-4, atol=1e-5, err_msg=question)


def test_no_batch_normalisation_leaves_the_logit():
    scorer = nets.build("dnn", relations=R, width=D, bn=False, hidden=F)
    h, t, i = vectors(7), vectors(7, 1), jnp.arange(7)
    variables = noise(jax.eval_shape(lambda: scorer.init(KEY, h, t, i, RELATION, i, train=True)))
    assert set(variables) == {"params"} and set(variables["params"]) == {"model"}
    logits = scorer.apply(variables, h, t, i, RELATION, i, train=True)
    expected = [dnn(None, variables["params"]["model"], h[k], RELATION[k], t[k]) for k in range(7)]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def test_dropout_needs_a_key():
    """Half of the hidden units, the rest doubled: right on average, and off without a key."""
    scorer = nets.build("fusion", relations=R, width=D, bn=False, hidden=F, dropout=0.5, product=4)
    h, t, i = vectors(7), vectors(7, 1), jnp.arange(7)
    params = {"model": start(scorer.model, h, t)}

    def score(**rngs):
        return scorer.apply({"params": params}, h, t, i, RELATION, i, train=True, rngs=rngs)

    off = score()
    np.testing.assert_array_equal(off, score())
    draws = jax.jit(jax.vmap(lambda key: score(dropout=key)))(jax.random.split(KEY, 2000))
    assert np.std(draws, axis=0).min() > 1e-3
    error = np.std(draws, axis=0) / math.sqrt(2000)
    assert (np.abs(np.mean(draws, axis=0) - off) < 5 * error).all()


def test_unknown_options_are_refused():
    with pytest.raises(UserError, match=r"net.kind 'transe' is unknown: use one of factorized, dnn"):
        nets.build("transe", relations=R, width=D, bn=False)
    for options, message in (
        ({"share": 2}, r"net.share 2 .*\[0, 1, 3, 4, 5\]"),
        ({"merge": "mean"}, "net.merge 'mean' .*average"),
    ):
        scorer = nets.build("factorized", relations=R, width=D, bn=False, **options)
        with pytest.raises(UserError, match=message):
            initial(scorer.model)


# Phrases


def test_phrase_mean_by_hand():
    rows = jnp.asarray([[2, 4, 0], [3, 0, 0], [0, 0, 0]])
    table = jnp.asarray([[9.0, 9], [7, 7], [1, 2], [3, 4], [5, 8]])
    assert nets.phrase_mean(table[rows], rows).tolist() == [[3, 5], [3, 4], [0, 0]]
    leaking = nets.phrase_mean(table[rows], rows, mask_pad=False)  # up to the longest, two words
    assert leaking.tolist() == [[3, 5], [12, 13], [18, 18]]


def test_phrase_means_depend_on_longer_batch_mates_only_without_a_mask():
    mean = jax.jit(nets.phrase_mean, static_argnames="mask_pad")
    table = vectors(6)  # the vector of padding is not 0
    short, long = np.array([[1, 2, 0, 0, 0], [3, 0, 0, 0, 0]]), np.array([[1, 2, 0, 0, 0], [1, 2, 3, 4, 0]])
    for mask_pad in (True, False):
        alone, among = (mean(table[rows], rows, mask_pad=mask_pad)[0] for rows in (short, long))
        assert (np.abs(alone - among).max() < 1e-6) == mask_pad
    zeros = np.where(long[..., None] > 0, table[long], 0)
    np.testing.assert_allclose(mean(zeros, long, mask_pad=False), mean(table[long], long, mask_pad=True), atol=1e-6)
