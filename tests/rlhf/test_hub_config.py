"""config.json: the published ones are our presets, what we cannot run or express is refused."""

import dataclasses
import json

import pytest

from models import decoder
from models.hub import config
from models.presets import PRESETS
from tests.rlhf import tiny_models
from training.errors import UserError

PUBLISHED = {  # the config.json files on the hub, without what makes no difference
    "gpt2": {"model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768,
             "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257},
    "pythia-410m": {"model_type": "gpt_neox", "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096,
                    "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 16,
                    "num_hidden_layers": 24, "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
                    "use_parallel_residual": True, "vocab_size": 50304},
    "tinyllama": {"model_type": "llama", "attention_bias": False, "hidden_act": "silu", "hidden_size": 2048,
                  "intermediate_size": 5632, "max_position_embeddings": 2048, "num_attention_heads": 32,
                  "num_hidden_layers": 22, "num_key_value_heads": 4, "rms_norm_eps": 1e-05, "rope_scaling": None,
                  "rope_theta": 10000.0, "tie_word_embeddings": False, "vocab_size": 32000},
    "llama-7b": {"model_type": "llama", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
                 "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 32, "rms_norm_eps": 1e-06,
                 "tie_word_embeddings": False, "vocab_size": 32000},
    "llama-3.1-8b": {"model_type": "llama", "attention_bias": False, "hidden_act": "silu", "hidden_size": 4096,
                     "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False,
                     "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
                     "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                      "original_max_position_embeddings": 8192, "rope_type": "llama3"},
                     "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256},
}  # fmt: skip


def read(folder, keys):
    (folder / "config.json").write_text(json.dumps(keys))
    return config.read(folder / "config.json")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_the_presets(name, tmp_path):
    assert read(tmp_path, PUBLISHED[name]) == (PUBLISHED[name]["model_type"], PRESETS[name])


def test_rotary_keys_of_transformers_5_and_none_at_all(tmp_path):
    old = PUBLISHED["llama-3.1-8b"]
    rope = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    bare = {key: value for key, value in old.items() if not key.startswith("rope")}
    assert read(tmp_path, {**bare, "rope_parameters": rope})[1] == PRESETS["llama-3.1-8b"]
    bare = {key: value for key, value in PUBLISHED["pythia-410m"].items() if not key.startswith("rotary")}
    assert read(tmp_path, bare)[1] == PRESETS["pythia-410m"]
    rope = {"rope_type": "default", "rope_theta": 500, "partial_rotary_factor": 0.5}
    found = read(tmp_path, {**bare, "rope_parameters": rope})[1]
    assert (found.rotary_theta, found.rotary_fraction, found.rotary_scaling) == (500, 0.5, None)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_config(name):
    family, keys = config.write(dataclasses.replace(PRESETS[name], dtype="bfloat16", remat=True))
    assert config.FAMILIES[family].read(json.loads(json.dumps(keys))) == PRESETS[name]


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gpt2", {"norm": "rms"}, "gpt2 can express this model's norm"),
        ("gpt2", {"head_dim": 8}, "gpt2 can express this model's head_dim"),
        ("llama", {}, "llama can express this model's norm"),
        (None, {"norm": "rms"}, "no family can express this model's"),
        ("distilbert", {}, "distilbert can express this model's TransformerConfig"),
        ("opt", {}, "family 'opt' is unknown"),
    ],
)
def test_models_that_a_family_cannot_express(family, changes, message):
    cfg = dataclasses.replace(decoder.TransformerConfig(11, 2, 8, 2, 16), **changes)
    with pytest.raises(UserError, match=message):
        config.write(cfg, family)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "of type 'linear' are not supported"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor, high_freq_factor"),
        ("llama", {"attention_bias": True}, "attention_bias and mlp_bias differ"),
        ("llama", {"num_key_value_heads": 3}, "not a multiple of kv_heads"),
        ("gpt_neox", {"attention_bias": False}, "attention_bias False: not supported"),
        ("distilbert", {"activation": "relu"}, "activation 'relu': not supported"),
        ("distilbert", {"n_heads": 3}, "does not split into 3 heads"),
    ],
)
def test_kinds_that_we_cannot_run(name, changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, {**tiny_models.CONFIGS[name], **changes})
    assert str(tmp_path) in str(caught.value)
