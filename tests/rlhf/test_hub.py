"""Hugging Face folders: logits of transformers from our reading of its files, files written back byte for byte, bad files."""

import dataclasses
import json
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import decoder, distilbert, lora, tokenisers
from models.hub import folder as hub
from tests.rlhf import tiny_models
from training.errors import UserError

NAMES = list(tiny_models.CONFIGS)


def answers(name, cfg, params):
    """What `tiny_models.LOGITS` has of a model."""
    ids, mask = tiny_models.IDS, tiny_models.MASK
    if name == "distilbert":
        return jax.jit(distilbert.classify, static_argnums=1)(params, cfg, ids, mask[:, ::-1])
    hidden = jax.jit(decoder.hidden, static_argnums=1)(params, cfg, ids, mask)[:, -1]
    return hidden @ params["score"]["kernel"] if name == "reward" else decoder.logits(params, cfg, hidden)


def rewrite(folder, change, file="model.safetensors"):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


def reconfigure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def equal_trees(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name, tmp_path):
    cfg, params = hub.load(tiny_models.write(tmp_path, name))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    np.testing.assert_allclose(answers(name, cfg, params), tiny_models.LOGITS[name], rtol=0, atol=2e-4)


@pytest.mark.parametrize("file_bytes", [2**30, 3000])
@pytest.mark.parametrize("name", NAMES)
def test_saving_gives_back_the_file_exactly(name, file_bytes, tmp_path):
    cfg, params = hub.load(tiny_models.write(tmp_path / "theirs", name))
    hub.save(tmp_path / "ours", cfg, jax.device_put(params), file_bytes=file_bytes)
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert (len(files) > 1) == (file_bytes == 3000)
    if len(files) > 1:
        assert all(file.stat().st_size < 2 * file_bytes for file in files)
    found = {key: array for file in files for key, array in load_file(file).items()}
    expected = tiny_models.weights(name)
    assert set(found) == set(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    again = hub.load(tmp_path / "ours")
    assert again[0] == cfg
    equal_trees(again[1], params)


def test_saving_replaces_what_was_there(tmp_path):
    cfg, params = hub.load(tiny_models.write(tmp_path / "theirs", "gpt2"))
    folder = tmp_path / "ours"
    hub.save(folder, cfg, params, file_bytes=3000)
    (folder / "notes.txt").write_text("mine")
    changed = jax.tree.map(lambda x: x + 1, params)
    hub.save(folder, cfg, changed)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    equal_trees(hub.load(folder)[1], changed)
    hub.save(folder, cfg, params, file_bytes=3000)
    equal_trees(hub.load(folder)[1], params)


def test_names_of_a_bare_trunk_masks_and_a_tied_head(tmp_path):
    expected = hub.load(tiny_models.write(tmp_path / "a", "gpt2"))[1]

    def strip(tensors):
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 16, 16), bool)
        tensors["h.1.attn.masked_bias"] = np.float32([-1e4])
        tensors["lm_head.weight"] = tensors["wte.weight"].copy()

    rewrite(tiny_models.write(tmp_path / "b", "gpt2"), strip)
    equal_trees(hub.load(tmp_path / "b")[1], expected)
    rewrite(tmp_path / "b", lambda tensors: tensors["lm_head.weight"].__iadd__(1))
    with pytest.raises(UserError, match=r"has lm_head\.weight beside a gpt2 model"):
        hub.load(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("gpt_neox", ["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"]),
        ("llama", ["self_attn.rotary_emb.inv_freq"]),
    ],
)
def test_buffers_are_ignored(name, buffers, tmp_path):
    expected = hub.load(tiny_models.write(tmp_path, name))[1]
    prefix = {"gpt_neox": "gpt_neox", "llama": "model"}[name]
    rewrite(tmp_path, lambda tensors: tensors.update({f"{prefix}.layers.0.{key}": np.ones(3, np.float32) for key in buffers}))
    equal_trees(hub.load(tmp_path)[1], expected)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_files_of_other_floats(kind, tmp_path):
    exact = hub.load(tiny_models.write(tmp_path, "llama"))[1]
    save_file({key: array.astype(kind) for key, array in tiny_models.weights("llama").items()}, tmp_path / "model.safetensors")
    params = hub.load(tmp_path)[1]
    equal_trees(params, jax.tree.map(lambda x: x.astype(kind).astype(np.float32), exact))


def test_bfloat16_parameters_and_files(tmp_path):
    cfg, params = hub.load(tiny_models.write(tmp_path / "a", "gpt_neox"), dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("bfloat16")}
    hub.save(tmp_path / "b", cfg, hub.load(tmp_path / "a")[1], dtype="bfloat16")
    assert {array.dtype for array in load_file(tmp_path / "b/model.safetensors").values()} == {np.dtype("bfloat16")}
    equal_trees(hub.load(tmp_path / "b", dtype="bfloat16")[1], params)


def test_a_model_never_exists_twice(tmp_path):
    cfg = decoder.TransformerConfig(64, 8, 64, 4, 16)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), jax.eval_shape(lambda: decoder.init(jax.random.key(0), cfg)))
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    assert size > 1_500_000
    tracemalloc.start()
    hub.save(tmp_path, cfg, params, file_bytes=size // 8)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    loaded = hub.load(tmp_path)
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written < 0.5 * size
    assert size < read < 1.5 * size and loaded[0] == cfg


def drop(*keys):
    return lambda folder: rewrite(folder, lambda tensors: [tensors.pop(key) for key in keys])


def put(key, array):
    return lambda folder: rewrite(folder, lambda tensors: tensors.update({key: array}))


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def split(folder):
    cfg, params = hub.load(folder)
    hub.save(folder, cfg, params, file_bytes=3000)
    return folder


def lose_shard(folder):
    next(split(folder).glob("model-00002-of-*")).unlink()


def spoil_index(folder):
    (split(folder) / "model.safetensors.index.json").write_text('{"metadata": {}}')


ATTENTION = "transformer.h.1.attn.c_attn"
DAMAGE = [
    ("cannot read .*config.json", lambda folder: (folder / "config.json").unlink()),
    ("config.json is damaged", lambda folder: (folder / "config.json").write_text("{")),
    ("model_type 'bert' is not supported; use one of gpt2, llama", lambda folder: reconfigure(folder, model_type="bert")),
    ("model_type None is not supported", lambda folder: reconfigure(folder, model_type=None)),
    (r"model_type \[1\] is not supported", lambda folder: (folder / "config.json").write_text("[1]")),
    ("n_layer is None, it must be", lambda folder: reconfigure(folder, n_layer=None)),
    ("n_embd is '8', it must be", lambda folder: reconfigure(folder, n_embd="8")),
    ("layer_norm_epsilon is 'small'", lambda folder: reconfigure(folder, layer_norm_epsilon="small")),
    ("does not split into 3 heads", lambda folder: reconfigure(folder, n_head=3)),
    ("activation_function 'relu' is not supported", lambda folder: reconfigure(folder, activation_function="relu")),
    ("scale_attn_weights False: not supported", lambda folder: reconfigure(folder, scale_attn_weights=False)),
    ("has neither model.safetensors nor", lambda folder: (folder / "model.safetensors").unlink()),
    ("cannot read the weights .*model.safetensors", cut),
    ("cannot read the weights .*model-00002-of-0000.\\.safetensors", lose_shard),
    ("index.json is damaged", spoil_index),
    (rf"lacks {ATTENTION}\.bias: its weights are not", drop(f"{ATTENTION}.bias")),
    (r"lacks (\S+, ){3}\S+ and 8 more", lambda folder: reconfigure(folder, n_layer=3)),
    (r"has transformer\.h\.1\S+(, \S+){3} and 8 more beside a gpt2", lambda folder: reconfigure(folder, n_layer=1)),
    (r"has v_head\.bias beside", put("v_head.bias", np.zeros(1, np.float32))),
    (r"c_attn.bias is F32 \[25\], the model takes floats \[24\]", put(f"{ATTENTION}.bias", np.zeros(25, np.float32))),
    (r"wte.weight is F32 \[11, 8\], the model takes floats \[12, 8\]", lambda folder: reconfigure(folder, vocab_size=12)),
    (r"c_attn.bias is I32 \[24\]", put(f"{ATTENTION}.bias", np.zeros(24, np.int32))),
    (r"score.weight is F32 \[2, 8\], the model takes floats \[1, 8\]", put("score.weight", np.zeros((2, 8), np.float32))),
    (r"lacks lm_head\.weight", lambda folder: reconfigure(folder, tie_word_embeddings=False)),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGE, ids=[message[:40] for message, _ in DAMAGE])
def test_files_that_do_not_fit_are_the_users_mistake(message, damage, tmp_path):
    damage(tiny_models.write(tmp_path, "gpt2"))
    with pytest.raises(UserError, match=message) as caught:
        hub.load(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_parameters_that_are_not_of_the_model(tmp_path):
    cfg, params = hub.load(tiny_models.write(tmp_path, "gpt2"))
    with pytest.raises(UserError, match=r"attn/q/a, .*; merge LoRA matrices first"):
        hub.save(tmp_path, cfg, lora.combine(params, lora.init(jax.random.key(0), params, 2), 4, 2))
    with pytest.raises(UserError, match="the parameters lack norm/bias, norm/scale"):
        hub.save(tmp_path, cfg, {name: tree for name, tree in params.items() if name != "norm"})
    with pytest.raises(UserError, match=r"not of this config: embed/tokens \(11, 8\), not \(12, 8\)"):
        hub.save(tmp_path, dataclasses.replace(cfg, vocab=12), params)
    equal_trees(hub.load(tmp_path)[1], params)  # untouched


def test_a_score_beside_the_language_model_head(tmp_path):
    cfg, params = hub.load(tiny_models.write(tmp_path / "a", "gpt_neox"))
    params["score"] = {"kernel": np.arange(16, dtype=np.float32)[:, None]}
    hub.save(tmp_path / "b", cfg, params)
    equal_trees(hub.load(tmp_path / "b")[1], params)
    assert json.loads((tmp_path / "b/config.json").read_text())["architectures"] == ["GPTNeoXForSequenceClassification"]


def test_vocabularies(tmp_path):
    cfg, params = hub.load(tiny_models.write(tmp_path, "gpt_neox"))
    added = dataclasses.replace(tokenisers.characters("0123456789"), pad=11)  # as if padding had been added at the end
    grown, wider = hub.add_padding(cfg, params)
    assert grown == dataclasses.replace(cfg, vocab=12)
    tokens, head = wider["embed"]["tokens"], wider["head"]["kernel"]
    np.testing.assert_array_equal(tokens[:11], params["embed"]["tokens"])
    np.testing.assert_allclose(tokens[11], params["embed"]["tokens"].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(head[:, 11], params["head"]["kernel"].mean(1), rtol=1e-5, atol=1e-6)
    assert head.shape == (16, 12)
    hub.save(tmp_path, grown, wider, tokeniser=added)
    assert hub.load(tmp_path)[0] == grown
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["eos_token_id"], saved["pad_token_id"]) == (0, 11)
    with pytest.raises(UserError, match="the tokeniser has 12 tokens, the model 11"):
        hub.save(tmp_path, cfg, params, tokeniser=added)
