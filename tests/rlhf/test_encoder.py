"""DistilBERT's shapes, padding and training; its logits against transformers' are in test_hub.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models import distilbert
from training.errors import UserError

start = jax.jit(distilbert.init, static_argnums=1)
CFG = distilbert.EncoderConfig(vocab=13, layers=2, width=8, heads=2, context=10, ffn=12, labels=3)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: distilbert.init(jax.random.key(0), CFG))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), shapes)


def classify(params, ids, mask):
    return np.asarray(jax.jit(distilbert.classify, static_argnums=1)(params, CFG, ids, mask))


def test_the_classifier_reads_the_first_column(params):
    ids, mask = np.array([[2, 5, 6, 3]]), np.ones((1, 4), bool)
    logits = classify(params, ids, mask)
    state = np.asarray(jax.jit(distilbert.hidden, static_argnums=1)(params, CFG, ids, mask))[0, 0]
    before = np.maximum(state @ params["pre_classifier"]["kernel"] + params["pre_classifier"]["bias"], 0)
    assert (before == 0).any() and (before > 0).any()
    np.testing.assert_allclose(logits[0], before @ params["classifier"]["kernel"] + params["classifier"]["bias"], atol=1e-5)


def test_padding_does_not_matter_and_order_does(params):
    short = classify(params, np.array([[2, 5, 6, 3]]), np.ones((1, 4), bool))
    mask = np.arange(7)[None] < 4
    np.testing.assert_allclose(classify(params, np.array([[2, 5, 6, 3, 0, 0, 0]]), mask), short, rtol=0, atol=1e-5)
    np.testing.assert_allclose(classify(params, np.array([[2, 5, 6, 3, 99, -1, 7]]), mask), short, rtol=0, atol=1e-5)
    assert np.abs(classify(params, np.array([[2, 6, 5, 3]]), np.ones((1, 4), bool)) - short).max() > 1e-2


def test_fresh_parameters():
    cfg = distilbert.EncoderConfig(vocab=300, layers=3, width=64, heads=4, context=50)
    params = jax.tree.map(np.asarray, start(jax.random.key(1), cfg))
    assert params["layers"]["intermediate"]["kernel"].shape == (3, 64, 256)
    assert params["classifier"]["kernel"].shape == (64, 2)
    kernels = [params["embeddings"]["word"], params["layers"]["query"]["kernel"], params["layers"]["output"]["kernel"]]
    for kernel in kernels:
        assert abs(float(kernel.std()) - 0.02) < 1e-3 and abs(float(kernel.mean())) < 1e-3
    assert not np.array_equal(params["layers"]["query"]["kernel"], params["layers"]["key"]["kernel"])
    assert not np.array_equal(*params["layers"]["query"]["kernel"][:2])
    assert (params["layers"]["output_norm"]["scale"] == 1).all() and (params["layers"]["output_norm"]["bias"] == 0).all()


def test_it_learns_which_texts_hold_a_token():
    rng = np.random.default_rng(0)
    ids = rng.integers(8, 13, size=(64, 8))
    ids[:, 0] = 2
    good = rng.random(64) < 0.5
    ids[good, rng.integers(1, 8, good.sum())] = 7
    mask, cfg = np.ones_like(ids, bool), distilbert.EncoderConfig(13, 1, 16, 2, 10)
    params, tx = start(jax.random.key(0), cfg), optax.adam(1e-2)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(
            distilbert.classify(params, cfg, ids, mask), good.astype(int)
        ).mean()

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state)
        return value, optax.apply_updates(params, updates), state

    state, losses = jax.jit(tx.init)(params), []
    for _ in range(60):
        value, params, state = step(params, state)
        losses.append(float(value))
    assert 0.6 < losses[0] < 0.8 and losses[-1] < 0.1


def test_mistakes(params):
    with pytest.raises(UserError, match="11 tokens do not fit the encoder's 10 positions"):
        classify(params, np.zeros((1, 11), int), np.ones((1, 11), bool))
    with pytest.raises(UserError, match="width 8 does not split into 3 heads"):
        distilbert.EncoderConfig(13, 2, 8, 3, 10)
