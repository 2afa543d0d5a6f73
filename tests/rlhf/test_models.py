"""rlhf_jax.policy: which weights a config takes from a folder, and which it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from models import decoder, distilbert, tokenisers
from models.hub import folder as hub
from rlhf_jax import policy
from rlhf_jax.rollouts import judges
from rlhf_jax.tasks import Examples
from training.errors import UserError

CFG = decoder.TransformerConfig(60, 2, 16, 2, 32)


@pytest.fixture
def folder(tmp_path):
    hub.save(tmp_path, CFG, jax.tree.map(np.asarray, decoder.init(jax.random.key(0), CFG)))
    return tmp_path


def test_a_folder_is_loaded_as_it_is(folder):
    jax.tree.map(
        np.testing.assert_array_equal, policy.load(str(folder), CFG, ("policy",)), decoder.init(jax.random.key(0), CFG)
    )


def test_a_padding_token_of_our_own_gets_a_mean_row(folder):
    cfg = dataclasses.replace(CFG, vocab=61)
    tokens = policy.load(str(folder), cfg, ("policy",))["embed"]["tokens"]
    assert tokens.shape == (61, 16)
    np.testing.assert_allclose(tokens[60], tokens[:60].mean(0), atol=1e-6)


def test_another_model_is_refused_even_where_all_shapes_agree(folder):
    for change, says in (({"eps": 1e-6}, "eps is 1e-05 there"), ({"activation": "silu"}, "activation is gelu_tanh there")):
        with pytest.raises(UserError, match=says):
            policy.load(str(folder), dataclasses.replace(CFG, **change), ("policy",))
    policy.load(str(folder), dataclasses.replace(CFG, dtype="bfloat16", remat=True), ("policy",))  # these are ours to choose
    with pytest.raises(UserError, match="give a Hugging Face model folder"):
        policy.load(str(folder / "nothing"), CFG, ("policy",))


def test_presets_take_their_own_tokeniser():
    options = ConfigDict({"preset": "gpt2", "dtype": "float32", "remat": False})
    letters = tokenisers.characters("ab")
    assert policy.model_config(options, letters).vocab == 50257
    wide = type("Wide", (), {"size": 50258, "pad": 50257, "own": False})
    assert policy.model_config(options, wide).vocab == 50258
    for size in (60000, 32000):  # another model's
        with pytest.raises(UserError, match="use its own tokeniser"):
            policy.model_config(options, type("Other", (), {"size": size, "pad": 1, "own": False}))
    options.preset = "gpt5"
    with pytest.raises(UserError, match="'gpt5' is unknown"):
        policy.model_config(options, letters)


def test_a_classifier_folder_judges_prompt_and_completion(tmp_path):
    """Against `encoder.classify` on one unpadded text at a time, with the tokens around it."""
    tokeniser = tokenisers.characters("abcdefgh ")
    cfg = distilbert.EncoderConfig(vocab=tokeniser.size, layers=1, width=8, heads=2, context=12)
    params = distilbert.init(jax.random.key(0), cfg)
    hub.save(tmp_path, cfg, jax.tree.map(np.asarray, params), tokeniser=tokeniser)
    judge = judges.open_judge(ConfigDict({"kind": "classifier", "run": str(tmp_path)}), Examples([], [], []))
    prompts, completions = ["ab", "c", "abcdefgh abc"], [" def", "", "defgh"]
    expected = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = np.int32([tokeniser.encode(prompt + completion)[-12:]])
        z = distilbert.classify(params, cfg, ids, np.ones_like(ids, bool))
        expected.append(float(jax.nn.softmax(z)[0, -1]))
    np.testing.assert_allclose(judge(np.arange(3), prompts, completions), expected, atol=1e-5)
