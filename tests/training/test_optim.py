"""Groups, clipping, freezing, schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training import optim
from training.errors import UserError

PARAMS = {"encoder": {"w": jnp.ones((2, 2))}, "head": {"w": jnp.ones((2,)), "b": jnp.ones((2,))}}


def one_update(tx, grads=None):
    grads = jax.tree.map(jnp.ones_like, PARAMS) if grads is None else grads
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    return updates


def test_groups_have_their_own_rates_and_freezing():
    groups = {"encoder": {"match": "^encoder/", "scale": 0.0}, "bias": {"match": "/b$", "scale": 0.3}}
    updates = one_update(optim.build(lr=1e-2, groups=groups))
    assert float(jnp.abs(updates["encoder"]["w"]).max()) == 0
    np.testing.assert_allclose(updates["head"]["w"], -1e-2, rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["b"], -3e-3, rtol=1e-5)


def test_clipping_is_by_group():
    # A clipped gradient of Adam's first step shows only through a large eps: update = lr * g / (|g| + eps).
    groups = {"head": {"match": "^head/", "clip": 0.1}}
    grads = jax.tree.map(lambda p: 100.0 * jnp.ones_like(p), PARAMS)
    updates = one_update(optim.build(lr=1.0, eps=1.0, groups=groups), grads)
    np.testing.assert_allclose(updates["encoder"]["w"], -100 / 101, rtol=1e-5)
    np.testing.assert_allclose(updates["head"]["w"], -0.05 / 1.05, rtol=1e-5)  # 0.1 over four equal numbers


def test_weight_decay_spares_vectors():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates = one_update(optim.build(lr=0.1, weight_decay=0.5), zero)
    np.testing.assert_allclose(updates["encoder"]["w"], -0.05, rtol=1e-5)
    assert float(jnp.abs(updates["head"]["w"]).max()) == 0
    layers = {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2)), "scale": jnp.ones((3, 2))}  # stacked, one a layer
    assert optim.decays(layers) == {"kernel": True, "bias": False, "scale": False}


@pytest.mark.parametrize(("schedule", "expected"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_schedules(schedule, expected):
    found = optim._schedule(1.0, schedule, warmup=10, steps=110)
    assert float(found(5)) == 0.5 and abs(float(found(60)) - expected) < 1e-6


def test_mistakes():
    with pytest.raises(UserError, match="match no parameter"):
        one_update(optim.build(lr=1.0, groups={"x": {"match": "nothing"}}))
    with pytest.raises(UserError, match="unknown schedule"):
        optim.build(lr=1.0, schedule="sawtooth")
    with pytest.raises(UserError, match=r"needs config\.optim\.steps"):
        optim.build(lr=1.0, schedule="cosine")
