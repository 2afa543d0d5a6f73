"""LoRA: starts as the base, merges into the same function, trains nothing but its matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, lora
from models.presets import PRESETS
from training.errors import UserError

CFG = decoder.TransformerConfig(
    11, 2, 8, 4, 16, kv_heads=2, ffn=12, norm="rms", position="rotary", activation="silu", gated=True, bias=False, tie=False
)
KEY = jax.random.key(0)
ALL = tuple(lora.PLACES)
IDS = np.array([[3, 5, 2, 7], [8, 1, 10, 6]], np.int32)
MASK = np.array([[0, 1, 1, 1], [1, 1, 1, 1]], bool)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def noise(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), tree)


@pytest.fixture(scope="module")
def base():
    return noise(jax.eval_shape(lambda: decoder.init(KEY, CFG)), 1)


@jax.jit
def hidden(params):
    return decoder.hidden(params, CFG, IDS, MASK)


def test_fresh_matrices_change_nothing(base):
    fresh = lora.init(KEY, base, 3, ("q", "down"))
    shapes = jax.tree.map(lambda x: x.shape, fresh)
    assert shapes == {
        "blocks": {"attn": {"q": {"a": (2, 8, 3), "b": (2, 3, 8)}}, "mlp": {"down": {"a": (2, 12, 3), "b": (2, 3, 8)}}}
    }
    np.testing.assert_array_equal(hidden(lora.combine(base, fresh, 16, 3)), hidden(base))
    for at, fan_in in ((fresh["blocks"]["attn"]["q"], 8), (fresh["blocks"]["mlp"]["down"], 12)):
        assert (at["b"] == 0).all()
        assert 0.5 * fan_in**-0.5 < float(jnp.abs(at["a"]).max()) <= fan_in**-0.5
        assert not np.array_equal(at["a"][0], at["a"][1])


def test_the_start_of_a_layer_does_not_depend_on_other_targets(base):
    alone, among = lora.init(KEY, base, 2, ("v",)), lora.init(KEY, base, 2, ("up", "v", "q"))
    np.testing.assert_array_equal(alone["blocks"]["attn"]["v"]["a"], among["blocks"]["attn"]["v"]["a"])
    assert not np.array_equal(among["blocks"]["attn"]["q"]["a"], among["blocks"]["attn"]["v"]["a"])


@pytest.mark.parametrize("targets", [("q", "v"), ALL])
def test_merged_and_combined_are_one_function(base, targets):
    matrices = noise(lora.init(KEY, base, 2, targets), 2)
    combined = lora.combine(base, matrices, 6, 2)
    merged = lora.merge(combined)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_allclose(hidden(merged), hidden(combined), rtol=0, atol=2e-5)
    assert np.abs(hidden(merged) - hidden(base)).max() > 0.1
    q = matrices["blocks"]["attn"]["q"]
    for l in range(2):  # W + alpha / rank a b
        expected = np.asarray(base["blocks"]["attn"]["q"]["kernel"][l]) + 3 * np.asarray(q["a"][l]) @ np.asarray(q["b"][l])
        np.testing.assert_allclose(merged["blocks"]["attn"]["q"]["kernel"][l], expected, rtol=0, atol=1e-5)
    same = "k" if "k" not in targets else None
    if same:
        np.testing.assert_array_equal(merged["blocks"]["attn"][same]["kernel"], base["blocks"]["attn"][same]["kernel"])


def test_combining_leaves_the_base_alone(base):
    before = jax.tree.structure(base)
    lora.combine(base, lora.init(KEY, base, 2), 4, 2)
    assert jax.tree.structure(base) == before


def test_merging_keeps_the_dtype_of_frozen_weights(base):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    merged = lora.merge(lora.combine(half, noise(lora.init(KEY, half, 2), 2), 4, 2))
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}


def test_gradients_reach_the_matrices_only(base):
    matrices = noise(lora.init(KEY, base, 2, ALL), 2)

    @jax.jit
    def loss(base, matrices):
        return jnp.square(hidden(lora.combine(base, matrices, 4, 2))).sum()

    frozen, trained = jax.jit(jax.grad(loss, argnums=(0, 1)))(base, matrices)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(frozen))
    assert all((np.abs(np.asarray(x)).max(axis=(1, 2)) > 0).all() for x in jax.tree.leaves(trained))
    a, values = matrices["blocks"]["attn"]["v"]["a"], []  # one entry by central differences
    for move in (1e-2, -1e-2):
        matrices["blocks"]["attn"]["v"]["a"] = a.at[1, 3, 0].add(move)
        values.append(float(loss(base, matrices)))
    np.testing.assert_allclose(trained["blocks"]["attn"]["v"]["a"][1, 3, 0], (values[0] - values[1]) / 2e-2, rtol=0.02)


def test_llama_7b_has_8388608_trained_parameters():
    shapes = jax.eval_shape(lambda: decoder.init(KEY, PRESETS["llama-7b"]))
    assert count(jax.eval_shape(lambda: lora.init(KEY, shapes, 16, ("q", "v")))) == 8_388_608
    assert count(shapes) == 6_738_415_616


def test_mistakes(base):
    for targets in ((), ("q", "w"), ("q", "q"), ("head",)):
        with pytest.raises(UserError, match="must be dense layers of this model, each once: q, k, v, o, up, gate, down"):
            lora.init(KEY, base, 2, targets)
    plain = jax.eval_shape(lambda: decoder.init(KEY, decoder.TransformerConfig(11, 1, 8, 2, 16)))
    with pytest.raises(UserError, match=r"lora.targets \['gate'\] .*: q, k, v, o, up, down"):
        lora.init(KEY, plain, 2, ("gate",))
    with pytest.raises(UserError, match=r"lora.rank 0 must be above 0"):
        lora.init(KEY, base, 0)
    with pytest.raises(UserError, match=r"of q have rank 2, lora.rank is 4"):
        lora.combine(base, lora.init(KEY, base, 2), 8, 4)
