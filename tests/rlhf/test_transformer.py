"""Decoders against the formulas of GPT-2, GPT-NeoX and Llama; gradients, masks, dtypes, shardings and published sizes.

The formulas are coded again in NumPy, for one text at a time.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.sharding import PartitionSpec as P

from models import attention, decoder, sampling
from models.decoder import TransformerConfig
from models.presets import PRESETS
from training.errors import UserError
from training.sharding import batch_sharding, make_mesh, path_name, state_shardings

V, T = 13, 7
GPT2 = TransformerConfig(V, 2, 12, 3, T + 1)
NEOX = TransformerConfig(
    V, 2, 16, 2, T, position="rotary", rotary_fraction=0.5, rotary_theta=50.0, parallel=True, activation="gelu", tie=False
)
LLAMA = TransformerConfig(
    V, 2, 16, 4, T, kv_heads=2, head_dim=6, ffn=20, norm="rms", eps=1e-3, position="rotary", rotary_theta=30.0,
    rotary_scaling=(8.0, 1.0, 4.0, 16), activation="silu", gated=True, bias=False, tie=False,
)  # fmt: skip
FAMILIES = {"gpt2": GPT2, "neox": NEOX, "llama": LLAMA}
# No padding; left; right; both; a single token
MASK = np.array([[1] * 7, [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1]], bool)
IDS = np.random.default_rng(5).integers(0, V, MASK.shape).astype(np.int32)

families = pytest.mark.parametrize("cfg", FAMILIES.values(), ids=FAMILIES)
token_logprobs = jax.jit(decoder.token_logprobs, static_argnames=("cfg", "chunk"))


@functools.cache
def noise(cfg):
    """Random parameters, float64; those of a fresh model have zeros and ones that hide mistakes."""
    shapes, rng = jax.eval_shape(lambda: decoder.init(jax.random.key(0), cfg)), np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape), shapes)


def single(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), params)


# The formulas, for one text without padding


def norm(p, cfg, x):
    if cfg.norm == "rms":
        return p["scale"] * x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.eps)
    return p["scale"] * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + cfg.eps) + p["bias"]


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


ACTIVATIONS = {
    "gelu": lambda x: x * (1 + scipy.special.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def frequency(cfg, i, rotated):
    """Of pair i; with the rescaling that Llama 3.1 has."""
    found = cfg.rotary_theta ** (-2 * i / rotated)
    if cfg.rotary_scaling is None:
        return found
    factor, low, high, original = cfg.rotary_scaling
    wave = 2 * math.pi / found
    if wave < original / high:
        return found
    if wave > original / low:
        return found / factor
    smooth = (original / wave - low) / (high - low)
    return (1 - smooth) * found / factor + smooth * found


def rotated(cfg, x, position):
    """One head at one position: entry i turns with entry i + R/2."""
    if cfg.position != "rotary":
        return x
    R, y = int(cfg.rotary_fraction * len(x)), np.array(x)
    for i in range(R // 2):
        turn, j = position * frequency(cfg, i, R), i + R // 2
        y[i], y[j] = x[i] * np.cos(turn) - x[j] * np.sin(turn), x[j] * np.cos(turn) + x[i] * np.sin(turn)
    return y


def attended(p, cfg, x):
    q, k, v = (linear(p[name], x).reshape(len(x), -1, cfg.head_dim or cfg.width // cfg.heads) for name in "qkv")
    out = np.zeros_like(q)
    for h in range(cfg.heads):
        shared = h // (cfg.heads // k.shape[1])
        for t in range(len(x)):
            query, seen = rotated(cfg, q[t, h], t), t + 1 if cfg.causal else len(x)
            scores = np.array([query @ rotated(cfg, k[s, shared], s) / math.sqrt(len(query)) for s in range(seen)])
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ v[:seen, shared] / weights.sum()
    return linear(p["o"], out.reshape(len(x), -1))


def fed(p, cfg, x):
    up = linear(p["up"], x)
    act = ACTIVATIONS[cfg.activation]
    return linear(p["down"], act(linear(p["gate"], x)) * up if cfg.gated else act(up))


def forward(params, cfg, ids):
    """[n, D] after the final norm, and logits [n, V], of ids [n]."""
    x = params["embed"]["tokens"][ids]
    if cfg.position == "learned":
        x = x + params["embed"]["positions"][: len(ids)]
    for l in range(cfg.layers):
        p = jax.tree.map(lambda y, l=l: y[l], params["blocks"])
        if cfg.parallel:
            x = x + attended(p["attn"], cfg, norm(p["norm_1"], cfg, x)) + fed(p["mlp"], cfg, norm(p["norm_2"], cfg, x))
        else:
            x = x + attended(p["attn"], cfg, norm(p["norm_1"], cfg, x))
            x = x + fed(p["mlp"], cfg, norm(p["norm_2"], cfg, x))
    x = norm(params["norm"], cfg, x)
    return x, x @ (params["embed"]["tokens"].T if cfg.tie else params["head"]["kernel"])


def logprobs(params, cfg, ids, temperature):
    """Log-probs of every token but the first of one text."""
    z = forward(params, cfg, ids)[1][:-1] / temperature
    return z[np.arange(len(z)), ids[1:]] - scipy.special.logsumexp(z, axis=1)


def of_rows(params, cfg, temperature):
    """`logprobs` of all rows where they mean something, else 0: [B, T]."""
    found = np.zeros(MASK.shape)
    for row, ids, mask in zip(found, IDS, MASK, strict=True):
        row[np.flatnonzero(mask)[1:]] = logprobs(params, cfg, ids[mask], temperature)
    return found


MEANT = MASK & (np.cumsum(MASK, 1) > 1)  # real tokens but the first


# Values


@families
def test_hidden_and_logits_have_the_formulas_values_whatever_the_padding(cfg):
    params = single(noise(cfg))
    hidden = jax.jit(decoder.hidden, static_argnames="cfg")(params, cfg, IDS, MASK)
    logits = decoder.logits(params, cfg, hidden)
    for b, (ids, mask) in enumerate(zip(IDS, MASK, strict=True)):
        x, z = forward(noise(cfg), cfg, ids[mask])
        np.testing.assert_allclose(hidden[b, mask], x, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(logits[b, mask], z, rtol=2e-4, atol=5e-4)
    assert np.isfinite(hidden).all()


@families
@pytest.mark.parametrize("queries", (1024, 3))
def test_without_causal_every_token_sees_the_whole_text(cfg, queries, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", queries)
    cfg = dataclasses.replace(cfg, causal=False)
    hidden = jax.jit(lambda params: decoder.hidden(params, cfg, IDS, MASK))(single(noise(cfg)))
    for b, (ids, mask) in enumerate(zip(IDS, MASK, strict=True)):
        np.testing.assert_allclose(hidden[b, mask], forward(noise(cfg), cfg, ids[mask])[0], rtol=2e-4, atol=2e-4)
    for predict in (
        lambda: decoder.token_logprobs(single(noise(cfg)), cfg, IDS, MASK),
        lambda: sampling.generate(
            single(noise(cfg)), cfg, IDS[:, :2], MASK[:, :2], jax.random.key(0), max_new=2, temperature=1.0, eos=0, pad=1
        ),
    ):
        with pytest.raises(UserError, match="this model is not causal"):
            predict()


def test_what_stands_in_padding_is_read_as_0():
    hidden = jax.jit(decoder.hidden, static_argnames="cfg")
    found = [hidden(single(noise(GPT2)), GPT2, np.where(MASK, IDS, other), MASK) for other in (0, 5, -100, V + 9)]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@families
@pytest.mark.parametrize("temperature", (1.0, 0.7))
def test_token_logprobs_have_the_formulas_values(cfg, temperature):
    found = token_logprobs(single(noise(cfg)), cfg, IDS, MASK, temperature)
    np.testing.assert_allclose(np.where(MEANT, found, 0), of_rows(noise(cfg), cfg, temperature), rtol=2e-4, atol=5e-4)
    assert found.dtype == jnp.float32 and not found[:, 0].any()


def test_temperature_zero_is_finite():
    found = np.asarray(token_logprobs(single(noise(GPT2)), GPT2, IDS, MASK, 0.0))
    assert np.isfinite(found).all() and found[MEANT].min() < -1e5


# Gradients


def weighted(params, cfg, temperature, **options):
    return (decoder.token_logprobs(params, cfg, IDS, MASK, temperature, **options) * WEIGHTS).sum()


WEIGHTS = np.where(MEANT, np.random.default_rng(6).normal(size=MASK.shape), 0)


@families
def test_gradients_have_the_formulas_slopes(cfg):
    """Of every array along a random direction, and of the temperature, against central differences of the float64 formulas."""
    params, T, step = noise(cfg), 0.7, 1e-5
    grads, of_temperature = jax.jit(jax.grad(weighted, (0, 2)), static_argnums=1)(single(params), cfg, T)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(3)

    def slope(change):
        return (change(step) - change(-step)) / (2 * step)

    def value(leaves, temperature=T):
        return (of_rows(jax.tree.unflatten(tree, leaves), cfg, temperature) * WEIGHTS).sum()

    for n, (x, g) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
        way = rng.normal(size=x.shape)
        expected = slope(lambda h, n=n, way=way: value([*leaves[:n], leaves[n] + h * way, *leaves[n + 1 :]]))
        allowed = 1e-3 * abs(expected) + 1e-4 * np.linalg.norm(g) * np.linalg.norm(way) + 1e-5
        assert abs((g * way).sum() - expected) < allowed, (n, x.shape)
    expected = slope(lambda h: value(leaves, T + h))
    assert abs(of_temperature - expected) < 1e-3 * abs(expected)


@functools.cache
def usual_gradients():
    return jax.jit(jax.grad(weighted), static_argnums=1)(single(noise(LLAMA)), LLAMA, 0.7)


@pytest.mark.parametrize("change", ("remat", "chunk", "queries", "unstacked"))
def test_other_ways_of_computing_have_the_same_gradients(change, monkeypatch):
    cfg, params, expected = LLAMA, single(noise(LLAMA)), usual_gradients()
    if change == "queries":
        monkeypatch.setattr(attention, "QUERIES", 3)
    if change == "unstacked":
        params, expected = (
            {**tree, "blocks": tuple(jax.tree.map(lambda x, l=l: x[l], tree["blocks"]) for l in range(2))}
            for tree in (params, expected)
        )
    other = dataclasses.replace(cfg, remat=True) if change == "remat" else cfg
    found = jax.jit(jax.grad(lambda p: weighted(p, other, 0.7, chunk=4 if change == "chunk" else None)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)


def residuals(cfg, **options):
    """Shapes of what the backward pass is handed."""
    back = jax.eval_shape(
        lambda p: jax.vjp(lambda p: decoder.token_logprobs(p, cfg, IDS, MASK, **options), p)[1], single(noise(cfg))
    )
    return [x.shape for x in jax.tree.leaves(back)]


def test_what_is_kept_for_the_gradient():
    """One array of the size of the logits, none of them with chunks; no attention weights; with remat no MLP either."""
    rows, inner = MASK.size, (GPT2.layers, MASK.size, 4 * GPT2.width)
    plain, chunked = residuals(GPT2), residuals(GPT2, chunk=2)
    of_logits = len(MASK) * (T - 1) * V
    assert [math.prod(s) for s in plain].count(of_logits) == 1
    assert of_logits not in [math.prod(s) for s in chunked]
    assert not [s for s in plain if s[-2:] == (T, T) and len(s) > 3]
    assert inner in plain and rows * GPT2.layers * 4 * GPT2.width not in [
        math.prod(s) for s in residuals(dataclasses.replace(GPT2, remat=True))
    ]


# Dtypes


def bfloat(x):
    return jnp.asarray(x, jnp.bfloat16)


def test_bfloat16_models_have_float32_logits_and_statistics():
    cfg = dataclasses.replace(GPT2, dtype="bfloat16")
    params = single(noise(cfg))
    hidden = jax.jit(decoder.hidden, static_argnames="cfg")(params, cfg, IDS, MASK)
    logits = decoder.logits(params, cfg, hidden)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    exact = np.where(MASK[..., None], decoder.hidden(params, GPT2, IDS, MASK), 0)
    assert 1e-4 < np.abs(np.where(MASK[..., None], hidden, 0) - exact).max() < 0.3

    x = bfloat(64 + np.random.default_rng(0).uniform(-1, 1, (2, 500)))  # its mean in bfloat16 would be off by up to 0.25
    found = decoder.normalise({"scale": np.ones(500, np.float32), "bias": np.zeros(500, np.float32)}, cfg, x)
    y = np.asarray(x, np.float64)
    np.testing.assert_allclose(
        found.astype(float), (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True), rtol=0.01, atol=0.01
    )


def test_bfloat16_attention_has_a_float32_softmax():
    rng = np.random.default_rng(0)
    q, k, v = (bfloat(scale * rng.normal(size=(1, 3, 2, 8))) for scale in (5, 5, 1))
    found = attention.attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), np.ones((1, 3, 3), bool))
    q, k, v = (np.asarray(x, np.float64)[0] for x in (q, k, v))
    scores = np.einsum("the,she->hts", q, k) / math.sqrt(8)
    assert np.abs(scores).max() > 16  # where bfloat16 has steps of 0.125
    expected = np.einsum("hts,she->the", scipy.special.softmax(scores, -1), v)
    np.testing.assert_allclose(found[0].astype(float), expected, rtol=0.015, atol=0.015)


def test_dense_with_lora_leaves_by_hand():
    p = {"kernel": np.array([[1.0, 2], [3, 4]]), "bias": np.array([10.0, 20])}
    x = jnp.array([[1.0, -1], [2, 0]])
    assert decoder.dense(p, x).tolist() == [[8, 18], [12, 24]]
    lora = {**p, "a": np.array([[1.0], [2]]), "b": np.array([[5.0, -1]]), "scale": np.float32(0.5)}
    assert decoder.dense(lora, x).tolist() == [[8 - 2.5, 18 + 0.5], [12 + 5, 24 - 1]]


# Sizes and starts


def test_initial_values():
    cfg = TransformerConfig(200, 8, 64, 4, 100)
    params, again = jax.jit(lambda keys: [decoder.init(key, cfg) for key in keys])(jax.random.split(jax.random.key(0)))
    sd = {path_name(path): float(jnp.std(x)) for path, x in jax.tree_util.tree_leaves_with_path(params)}
    small = {name for name in sd if name.endswith(("o/kernel", "down/kernel"))}
    normal = {name for name in sd if name.endswith(("kernel", "tokens", "positions"))} - small
    assert len(small) == 2 and len(normal) == 6
    assert all(0.0194 < sd[name] < 0.0206 for name in normal) and all(0.00485 < sd[name] < 0.00515 for name in small)
    assert all(not jnp.any(x) for path, x in jax.tree_util.tree_leaves_with_path(params) if path_name(path).endswith("bias"))
    assert all(jnp.all(x == 1) for path, x in jax.tree_util.tree_leaves_with_path(params) if path_name(path).endswith("scale"))
    assert not np.allclose(params["embed"]["tokens"], again["embed"]["tokens"])
    assert not np.allclose(params["blocks"]["attn"]["q"]["kernel"], params["blocks"]["attn"]["k"]["kernel"])


# Numbers of parameters that the models' owners publish
COUNTS = {
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "pythia-70m": 70_426_624, "pythia-160m": 162_322_944, "pythia-410m": 405_334_016, "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808, "pythia-2.8b": 2_775_208_960, "pythia-6.9b": 6_857_302_016, "tinyllama": 1_100_048_384,
    "rho-1b": 1_100_048_384, "llama-7b": 6_738_415_616, "llama-3.1-8b": 8_030_261_248,
}  # fmt: skip


def test_published_models_have_their_numbers_of_parameters():
    found = {
        name: sum(math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(lambda c=cfg: decoder.init(jax.random.key(0), c))))
        for name, cfg in PRESETS.items()
    }
    assert found == COUNTS


@pytest.mark.parametrize("name", ("gpt2", "pythia-2.8b", "llama-3.1-8b"))
def test_a_step_of_a_published_model_lowers_for_tpus(name):
    """Its matrices are multiplied in bfloat16, and the program does not grow with the layers."""
    cfg = dataclasses.replace(PRESETS[name], dtype="bfloat16", remat=True)
    tx = optax.adamw(1e-4)

    def step(params, opt_state, ids, mask):
        loss, grads = jax.value_and_grad(lambda p: -decoder.token_logprobs(p, cfg, ids, mask, 0.7, 128).mean())(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), cfg))
    rows = [jax.ShapeDtypeStruct((4, 565), dtype) for dtype in (jnp.int32, bool)]
    text = jax.jit(step).trace(params, jax.eval_shape(tx.init, params), *rows).lower(lowering_platforms=("tpu",)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert 20 < len(products) < 50
    assert not [line for line in products if line.split(" : (")[1].split(" -> ")[0].count("bf16") != 2]


# Shardings


def even(cfg, vocab):
    """Widths that a mesh of 2 x 2 x 2 divides."""
    return dataclasses.replace(cfg, width=16, heads=4, vocab=vocab)


@pytest.mark.parametrize("cfg", (even(GPT2, V), even(LLAMA, V + 3)), ids=("gpt2", "llama"))  # GPT-2's vocabulary is odd
def test_sharded_equals_unsharded(cfg):
    params, mesh = single(noise(cfg)), make_mesh(2, 2, 2)
    ids, mask, weights = (np.resize(x, (8, T)) for x in (IDS, MASK, WEIGHTS))
    shardings, rows = state_shardings(params, mesh, decoder.RULES), batch_sharding(mesh)
    specs = {path_name(path): x.spec for path, x in jax.tree_util.tree_leaves_with_path(shardings)}
    for name in ("attn/q", "attn/k", "mlp/up", "mlp/gate")[: 4 if cfg.gated else 3]:
        assert specs[f"blocks/{name}/kernel"] == P(None, "fsdp", "tensor")
    assert specs["blocks/attn/o/kernel"] == specs["blocks/mlp/down/kernel"] == P(None, "tensor", "fsdp")
    assert {specs[name] for name in ("embed/tokens", "head/kernel") if name in specs} == {P(None, ("fsdp", "tensor"))}
    assert specs["norm/scale"] == P()

    def value(params, ids, mask):
        return (decoder.token_logprobs(params, cfg, ids, mask, 0.7) * weights).sum()

    function = value if cfg.tie else jax.value_and_grad(value)
    sharded = jax.jit(function, in_shardings=(shardings, rows, rows))(params, ids, mask)
    expected = jax.jit(function)(params, ids, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), sharded, expected)


def test_rules_fit_a_training_state():
    """Names with the parts around them: parameters of a policy, and its moments."""
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), LLAMA))
    state = {"params": {"policy": shapes}, "opt_state": ({"mu": {"policy": shapes}},)}
    found = state_shardings(state, make_mesh(2, 2, 2), decoder.RULES[:2])
    assert found["opt_state"][0]["mu"]["policy"]["blocks"]["attn"]["q"]["kernel"].spec == P(None, "fsdp", "tensor")


# Mistakes


def test_configs_that_cannot_be_are_refused():
    for change, message in (
        ({"norm": "batch"}, "norm 'batch' is unknown: use one of layer, rms"),
        ({"position": "none"}, "position 'none' is unknown"),
        ({"activation": "relu"}, "activation 'relu' is unknown: use one of gelu_tanh, gelu, silu"),
        ({"heads": 5}, "width 12 does not split into 5 heads"),
        ({"kv_heads": 2}, "heads 3 is not a multiple of kv_heads 2"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(GPT2, **change)
    with pytest.raises(UserError, match="9 tokens do not fit the context of 8"):
        decoder.hidden(single(noise(GPT2)), GPT2, np.zeros((1, 9), np.int32), np.ones((1, 9), bool))
