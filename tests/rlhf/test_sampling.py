"""The sampler against the learner's log-probs and a NumPy reference; what a row gets must not depend on anything around it."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from models import decoder, decoding, sampling
from models.decoder import TransformerConfig
from models.presets import PRESETS
from training.errors import UserError
from training.sharding import batch_sharding, make_mesh, state_shardings

V, PAD, EOS = 11, 0, 3
GPT2 = TransformerConfig(V, 1, 16, 2, 40)
LLAMA = TransformerConfig(
    V, 2, 16, 4, 40, kv_heads=2, norm="rms", position="rotary", activation="silu", gated=True, bias=False, tie=False
)
NEOX = TransformerConfig(V, 1, 16, 2, 40, position="rotary", rotary_fraction=0.25, parallel=True, activation="gelu", tie=False)
C, N = 5, 12
MASK = np.arange(C) >= np.array([0, 2, 4, 1, 3, 0])[:, None]
PROMPT = np.where(MASK, np.random.default_rng(1).integers(1, V, MASK.shape), PAD).astype(np.int32)
KEY = jax.random.key(1)


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Two sizes of the cache within these few tokens: 8 and 16."""
    monkeypatch.setattr(sampling, "SMALLEST", 4)


@functools.cache
def weights(cfg, spread=0.3):
    shapes, rng = jax.eval_shape(lambda: decoder.init(jax.random.key(0), cfg)), np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, spread, x.shape).astype(np.float32), shapes)


def sample(cfg=GPT2, prompt=PROMPT, mask=MASK, key=KEY, params=None, **options):
    options = {"max_new": N, "temperature": 1.0, "eos": EOS, "pad": PAD, **options}
    found = sampling.generate(weights(cfg) if params is None else params, cfg, prompt, mask, key, **options)
    return jax.tree.map(np.asarray, found)


token_logprobs = jax.jit(decoder.token_logprobs, static_argnames="cfg")


def learned(cfg, found, temperature, prompt=PROMPT, mask=MASK):
    """Log-probs of a learner that is given prompt and response, 0 after the end."""
    real = np.arange(found.tokens.shape[1]) < found.length[:, None]
    ids, mask = np.concatenate([prompt, found.tokens], 1), np.concatenate([mask, real], 1)
    return np.where(real, token_logprobs(weights(cfg), cfg, ids, mask, temperature)[:, prompt.shape[1] :], 0)


def wider(x, columns, value):
    """More padding on the left."""
    return np.pad(x, ((0, 0), (columns, 0)), constant_values=value)


# Log-probs


@pytest.mark.parametrize("cfg", (GPT2, LLAMA, NEOX), ids=("gpt2", "llama", "neox"))
def test_logps_are_those_of_the_learner(cfg):
    for temperature in (1.0, 0.7):
        found = sample(cfg, temperature=temperature)
        assert found.length.min() < N == found.length.max()
        np.testing.assert_allclose(found.logps, learned(cfg, found, temperature), rtol=0, atol=1e-4)
        assert (found.logps[found.tokens != PAD] < -1e-3).all()


def test_logps_of_a_bfloat16_model_are_those_of_its_learner():
    cfg = dataclasses.replace(NEOX, dtype="bfloat16")
    found = sample(cfg)
    np.testing.assert_allclose(found.logps, learned(cfg, found, 1.0), rtol=0, atol=0.1)
    assert np.abs(found.logps - learned(NEOX, found, 1.0)).max() > 1e-3  # it is computed in bfloat16


def test_greedy_takes_the_likeliest_token_of_the_whole_forward_pass():
    hidden = jax.jit(decoder.hidden, static_argnames="cfg")
    ids, mask = (np.pad(x, ((0, 0), (0, N))) for x in (PROMPT, MASK))
    for t in range(C, C + N):
        z = decoder.logits(weights(GPT2), GPT2, hidden(weights(GPT2), GPT2, ids, mask)[:, t - 1])
        ids[:, t], mask[:, t] = z.argmax(-1), True
    for temperature in (0.0, 1e-5):
        np.testing.assert_array_equal(sample(temperature=temperature, eos=None).tokens, ids[:, C:])
    assert (sample(temperature=0.3, eos=None).tokens != ids[:, C:]).any()
    tied = jax.tree.map(np.zeros_like, weights(GPT2))
    assert (sample(params=tied, temperature=9e-5, eos=None).tokens == 1).all()  # PAD is never drawn
    assert (sample(params=tied, temperature=1.1e-4, eos=None).tokens != 1).any()


def test_tokens_have_the_frequencies_of_the_tempered_softmax():
    n, T = 4000, 0.7
    prompt, mask = (np.repeat(x[1:2], n, 0) for x in (PROMPT, MASK))
    found = sample(prompt=prompt, mask=mask, max_new=2, temperature=T, eos=None)
    for column in range(2):  # the second is the first's continuation: compare among rows with the commonest first token
        rows = np.ones(n, bool) if column == 0 else found.tokens[:, 0] == np.bincount(found.tokens[:, 0]).argmax()
        same = np.concatenate([prompt[rows], found.tokens[rows]], 1)[:1]
        ids, real = np.repeat(same, V, 0), np.ones((V, C + 2), bool)
        real[:, :C] = mask[0]
        ids[:, C + column] = np.arange(V)
        p = np.exp(token_logprobs(weights(GPT2), GPT2, ids, real, T)[:, C + column])
        np.testing.assert_allclose(p.sum(), 1, rtol=1e-4)
        p[PAD] = 0  # never drawn
        p /= p.sum()
        seen, many = np.bincount(found.tokens[rows, column], minlength=V), rows.sum()
        assert (np.abs(seen - many * p) < 5 * np.sqrt(many * p * (1 - p)) + 1).all(), (column, seen, many * p)


# What a row gets depends on itself alone


def test_a_row_is_independent_of_batch_padding_and_lengths():
    rows = np.array([4, 9, 2, 7, 0, 5], np.int32)
    expected = sample(rows=rows)
    changes = {
        "fewer rows, more padding": ([2, 0], {"prompt": wider(PROMPT, 6, PAD), "mask": wider(MASK, 6, False)}),
        "other tokens in padding": (range(6), {"prompt": np.where(MASK, PROMPT, 8).astype(np.int32)}),
        "a longer response": (range(6), {"max_new": 29}),
    }
    for name, (which, options) in changes.items():
        which = list(which)
        options = {"prompt": PROMPT, "mask": MASK, **options}
        options |= {part: options[part][which] for part in ("prompt", "mask")}
        found = sample(rows=rows[which], **options)
        np.testing.assert_array_equal(found.tokens[:, :N], expected.tokens[which], err_msg=name)
        np.testing.assert_allclose(found.logps[:, :N], expected.logps[which], atol=1e-5, err_msg=name)


def test_rows_differ_by_their_numbers_and_steps_by_theirs():
    """With logits that never change (no weights), what differs is the randomness."""
    still = jax.tree.map(np.zeros_like, weights(GPT2))
    prompt, mask = (np.repeat(x[:1], 6, 0) for x in (PROMPT, MASK))
    numbers = np.array([0, 1, 0, 2, 5, 4], np.int32)
    found = sample(prompt=prompt, mask=mask, params=still, eos=None, rows=numbers).tokens
    assert (found[0] == found[2]).all() and len({tuple(row) for row in found.tolist()}) == 5
    assert all(len(set(row)) > 4 for row in found.tolist())
    default = sample(prompt=prompt, mask=mask, params=still, eos=None).tokens  # 0, 1, ..., 5
    np.testing.assert_array_equal(default[numbers], found)
    other = sample(prompt=prompt, mask=mask, params=still, eos=None, key=jax.random.key(8)).tokens
    assert (other != default).any(1).all()


def test_sharded_and_unstacked_weights_sample_the_same():
    expected, mesh = sample(LLAMA), make_mesh(1, 2, 4)
    unstacked = jax.jit(decoding.unstack, static_argnames="cfg")(weights(LLAMA), cfg=LLAMA)
    shardings = state_shardings(weights(LLAMA), mesh, decoder.RULES[:2])
    spread = jax.device_put(weights(LLAMA), shardings)
    prompt, mask = (jax.device_put(x, batch_sharding(mesh)) for x in (PROMPT, MASK))
    for found in (sample(LLAMA, params=unstacked), sample(LLAMA, prompt, mask, params=spread)):
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_allclose(found.logps, expected.logps, atol=1e-5)


def test_unstacked_weights_are_one_dict_a_layer_in_the_compute_dtype_but_for_norms():
    cfg = dataclasses.replace(LLAMA, dtype="bfloat16")
    found = decoding.unstack(weights(LLAMA), cfg)
    assert {str(x.dtype) for x in jax.tree.leaves([found["embed"], found["head"], found["blocks"][0]["attn"]])} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves([found["norm"], found["blocks"][0]["norm_1"]])} == {"float32"}
    for l, block in enumerate(found["blocks"]):
        np.testing.assert_array_equal(block["norm_2"]["scale"], weights(LLAMA)["blocks"]["norm_2"]["scale"][l])
    assert len(found["blocks"]) == 2
    jax.tree.map(np.testing.assert_array_equal, decoding.unstack(found, cfg), found)


# Ends


def test_the_first_eos_is_kept_and_everything_after_it_is_padding():
    free, found = sample(eos=None), sample()
    ends = [np.flatnonzero(row == EOS) for row in free.tokens]
    assert any(len(e) > 1 for e in ends) and any(len(e) == 0 for e in ends)
    for b, e in enumerate(ends):
        n = e[0] + 1 if len(e) else N
        assert found.length[b] == n and free.length[b] == N
        np.testing.assert_array_equal(found.tokens[b, :n], free.tokens[b, :n])
        assert (found.tokens[b, n:] == PAD).all() and not found.logps[b, n:].any() and found.logps[b, :n].all()
    assert free.logps.all()


def test_no_eos_before_min_new_tokens():
    eager = {**weights(LLAMA), "head": {"kernel": np.array(weights(LLAMA)["head"]["kernel"])}}
    eager["head"]["kernel"][:, EOS] *= 6
    count = lambda **options: sample(LLAMA, params=eager, rows=np.arange(6, dtype=np.int32), **options)  # noqa: E731
    assert count().length.min() < 4
    found = count(min_new=4)
    assert found.length.min() == 5 and (found.tokens[:, :4] != EOS).all()
    assert count(min_new=4, temperature=0.0).length.min() >= 5


def test_it_stops_when_all_rows_have_ended(monkeypatch):
    ran, real = [], decoding.decode

    def counting(*args):
        jax.debug.callback(lambda: ran.append(1))
        return real(*args)

    monkeypatch.setattr(decoding, "decode", counting)
    length = {}
    for name, rows in (("all", np.arange(6)), ("short", np.flatnonzero(sample().length < N))):
        rows = np.resize(rows, 7).astype(np.int32)  # no other test has 7 rows: this one's compiled sampler is its own
        length[name] = sample(prompt=PROMPT[rows], mask=MASK[rows], rows=rows).length.max()
        jax.effects_barrier()
        assert len(ran) == length[name] - 1  # the first token needs no decoding
        ran.clear()
    assert length["short"] < N == length["all"]


def test_one_token_needs_no_cache():
    found = sample(max_new=1)
    np.testing.assert_array_equal(found.tokens, sample().tokens[:, :1])
    assert found.length.tolist() == [1] * 6


# Caches and compilations


def test_cache_sizes_double_up_to_what_is_needed(monkeypatch):
    assert (
        list(sampling.sizes(5, 17)) == [8, 16, 17] and list(sampling.sizes(8, 16)) == [16] and list(sampling.sizes(3, 3)) == [3]
    )
    assert list(sampling.sizes(5, 6)) == [6]
    monkeypatch.setattr(sampling, "SMALLEST", 64)
    assert list(sampling.sizes(32, 159)) == [64, 128, 159] and list(sampling.sizes(512, 564)) == [564]


def test_attention_runs_over_each_size_in_turn(monkeypatch):
    seen, real = [], decoding.decode

    def watching(params, cfg, cache, *rest):
        seen.append(cache.keys[0].shape[2])
        return real(params, cfg, cache, *rest)

    monkeypatch.setattr(decoding, "decode", watching)
    prompt, mask = (np.resize(x, (9, C)) for x in (PROMPT, MASK))  # no other test has 9 rows
    options = {"max_new": N, "temperature": 1.0, "eos": EOS, "pad": PAD}
    jax.eval_shape(lambda: sampling.generate(weights(GPT2), GPT2, prompt, mask, KEY, **options))
    assert list(dict.fromkeys(seen)) == [8, 16]


def test_the_cache_is_written_in_place():
    """In the compiled program: one write of a token for each layer's keys and values in each loop, no copy of a whole cache."""

    def run(params, prompt, mask, key, temperature):
        return sampling.generate(params, GPT2, prompt, mask, key, max_new=N, temperature=temperature, eos=EOS, pad=PAD)

    text = jax.jit(run).lower(weights(GPT2), PROMPT, MASK, KEY, 1.0).compile().as_text()
    made = re.findall(r"= f32\[(?:\d+,)?6,2,(?:8|16),8\]\S* ([a-z-]+)\(", text)
    assert made.count("dynamic-update-slice") == 2 * 2 and not {"copy", "transpose", "dynamic-slice"} & set(made)


def test_a_hundred_batches_compile_once():
    sample(temperature=1)
    before = sampling._generate._cache_size()
    for i in range(100):
        prompt, mask = np.roll(PROMPT, i, 0), np.roll(MASK, i, 0)
        temperature = (0.5 + i / 100, jnp.float32(i / 100), np.float64(i / 100), i % 2)[i % 4]
        sample(prompt=prompt, mask=mask, key=jax.random.key(i), temperature=temperature)
    assert sampling._generate._cache_size() == before
    sample(max_new=N - 1)
    assert sampling._generate._cache_size() == before + 1  # the counter counts


def test_a_generation_of_a_published_model_lowers_for_tpus():
    cfg = dataclasses.replace(PRESETS["pythia-160m"], dtype="bfloat16")
    params = jax.eval_shape(lambda: decoder.init(jax.random.key(0), cfg))
    rows = [jax.ShapeDtypeStruct((4, 64), dtype) for dtype in (jnp.int32, bool)]

    def run(params, prompt, mask, temperature):
        return sampling.generate(params, cfg, prompt, mask, KEY, max_new=48, temperature=temperature, eos=0, pad=1)

    traced = jax.jit(run).trace(params, *rows, jax.ShapeDtypeStruct((), jnp.float32))
    products = [
        line for line in traced.lower(lowering_platforms=("tpu",)).as_text().splitlines() if "stablehlo.dot_general" in line
    ]
    assert len(products) > 12 * 8 and all(line.split(" : (")[1].split(" -> ")[0].count("bf16") == 2 for line in products)


# Filters


def reference(z, top_k, top_p):
    """Which tokens remain, one row: transformers' warpers, top k first."""
    order, kept = np.argsort(-z, kind="stable"), np.zeros(len(z), bool)
    chosen = order[: top_k or len(z)]
    p = scipy.special.softmax(z[chosen].astype(np.float64))
    mass = 0.0
    for token, share in zip(chosen, p, strict=True):
        if mass < top_p:
            kept[token] = True
        mass += share
    return kept


@pytest.mark.parametrize("top_k, top_p", ((0, 1.0), (1, 1.0), (5, 1.0), (0, 0.8), (0, 0.05), (7, 0.6), (50, 0.9), (50, 1.0)))
def test_filters_keep_what_the_reference_keeps(top_k, top_p):
    z = np.random.default_rng(2).normal(0, 2, (8, 30)).astype(np.float32)
    found = np.asarray(sampling.keep_top(jnp.asarray(z), top_k, top_p))
    expected = np.array([reference(row, top_k, top_p) for row in z])
    np.testing.assert_array_equal(np.isfinite(found), expected)
    np.testing.assert_array_equal(found[expected], z[expected])


def test_filtered_tokens_are_never_drawn_but_the_log_probs_are_unfiltered():
    n = 300
    prompt, mask = (np.repeat(x[:1], n, 0) for x in (PROMPT, MASK))
    found = sample(prompt=prompt, mask=mask, max_new=3, top_k=4, top_p=0.7, eos=None)
    ids, real = np.concatenate([prompt, found.tokens], 1), np.ones((n, C + 3), bool)
    x = jax.jit(decoder.hidden, static_argnames="cfg")(weights(GPT2), GPT2, ids, real)[:, C - 1 : -1]
    z = np.asarray(decoder.logits(weights(GPT2), GPT2, x))
    kept = np.array([[reference(row, 4, 0.7) for row in rows] for rows in z])
    assert np.take_along_axis(kept, found.tokens[..., None], 2).all()
    assert len(set(found.tokens[:, 0])) == kept[0, 0].sum() > 1
    np.testing.assert_allclose(found.logps, learned(GPT2, found, 1.0, prompt, mask), atol=1e-4)


def test_a_second_model_limits_the_choice():
    """NLPO: a nucleus of the older policy, not of the one that samples; log-probs stay whole."""
    n, older = 300, jax.tree.map(lambda x: x + 0.3, weights(GPT2))
    older = {**older, "embed": jax.tree.map(lambda x: x[::-1], weights(GPT2)["embed"])}
    prompt, mask = (np.repeat(x[:1], n, 0) for x in (PROMPT, MASK))
    found = sample(prompt=prompt, mask=mask, eos=None, limit=older, limit_p=0.6)
    ids, real = np.concatenate([prompt, found.tokens], 1), np.ones((n, C + N), bool)
    x = jax.jit(decoder.hidden, static_argnames="cfg")(older, GPT2, ids, real)[:, C - 1 : -1]
    z = np.asarray(decoder.logits(older, GPT2, x))
    kept = np.array([[reference(row, 0, 0.6) for row in rows] for rows in z])
    assert np.take_along_axis(kept, found.tokens[..., None], 2).mean() > 0.999  # rounding may move an edge
    assert len(set(found.tokens[:, 0])) == kept[0, 0].sum() > 1
    np.testing.assert_allclose(found.logps, learned(GPT2, found, 1.0, prompt, mask), atol=1e-4)


@pytest.mark.parametrize("size", (1, 2, 9, 10, 101))
def test_two_stage_draws_follow_the_softmax(size):
    n = 20_000
    z = np.random.default_rng(size).normal(0, 1.5, size).astype(np.float32)
    z[2:4] = -np.inf
    draws = jax.jit(lambda keys: sampling.draw(keys, jnp.broadcast_to(z, (n, size))))(jax.random.split(KEY, n))
    p, seen = scipy.special.softmax(z.astype(np.float64)), np.bincount(draws, minlength=size)
    assert len(seen) == size and not seen[2:4].any()
    assert (np.abs(seen - n * p) < 5 * np.sqrt(n * p * (1 - p)) + 1).all()


# Buckets and mistakes


def test_bucket_is_the_least_that_fits():
    assert [sampling.bucket(n, (128, 32, 64)) for n in (1, 32, 33, 128)] == [32, 32, 64, 128]
    with pytest.raises(UserError, match="a length of 129 fits none of 32, 64, 128; add a larger one"):
        sampling.bucket(129, (128, 32, 64))


def test_mistakes_have_one_line():
    for options, message in (
        ({"top_k": -1}, "top_k -1 and top_p 1.0"),
        ({"top_p": 0.0}, "top_k 0 and top_p 0.0: set"),
        ({"max_new": 0}, "max_new is 0"),
        ({"max_new": 36}, "5 prompt and 36 new tokens do not fit the context of 40"),
    ):
        with pytest.raises(UserError, match=message):
            sample(**options)
