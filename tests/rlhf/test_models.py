"""rlhf_jax.policy: which weights a config takes from a folder, and which it refuses."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from models import decoder, distilbert, tokenisers
from models.hub import folder as hub
from rlhf_jax import policy
from rlhf_jax.rollouts import judges
from rlhf_jax.tasks import Examples
from training import config as configs
from training.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "rlhf"
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


def test_presets_take_their_own_tokeniser(monkeypatch):
    config = ConfigDict({"model": {"preset": "gpt2", "vocab": 0, "dtype": "float32", "remat": False}})
    config.tokeniser = {"kind": "file", "path": ""}

    def vocab(size, pad):
        monkeypatch.setattr(policy, "open_tokeniser", lambda _: type("Other", (), {"size": size, "pad": pad}))
        return policy.sizes(config)["model.vocab"]

    assert policy.model_config(config).vocab == 50257  # planned without it
    assert (vocab(50257, 1), vocab(50000, 1), vocab(50258, 50257)) == (50257, 50257, 50258)
    for size in (60000, 32000):  # another model's
        with pytest.raises(UserError, match="use its own tokeniser"):
            vocab(size, 1)
    config.tokeniser.kind = "characters"
    assert vocab(4, 1) == 50257
    config.model.preset = "gpt5"
    with pytest.raises(UserError, match="'gpt5' is unknown"):
        policy.model_config(config)


def test_the_vocabulary_of_equations_is_known_beforehand():
    config = configs.load(f"{CONFIGS}/sft.py:small_arithmetic", {"data.dir": "toy", "data.ops": "+*"})
    assert policy.sizes(config) == {"model.vocab": 15} == {"model.vocab": policy.model_config(config).vocab}
    config = configs.load(f"{CONFIGS}/sft.py:small_imdb", {"tokeniser.kind": "characters"})
    with pytest.raises(UserError, match=r"model\.vocab is 0"):
        policy.model_config(config)


def test_a_classifier_folder_judges_prompt_and_completion(tmp_path):
    """Against `encoder.classify` on one unpadded text at a time, with the tokens around it."""
    tokeniser = tokenisers.characters("abcdefgh ")
    cfg = distilbert.EncoderConfig(vocab=tokeniser.size, layers=1, width=8, heads=2, context=12)
    params = distilbert.init(jax.random.key(0), cfg)
    hub.save(tmp_path, cfg, jax.tree.map(np.asarray, params), tokeniser=tokeniser)
    judge = judges.open_judge("classifier", str(tmp_path))(Examples([], [], []))
    prompts, completions = ["ab", "c", "abcdefgh abc"], [" def", "", "defgh"]
    expected = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = np.int32([tokeniser.encode(prompt + completion)[-12:]])
        z = distilbert.classify(params, cfg, ids, np.ones_like(ids, bool))
        expected.append(float(jax.nn.softmax(z)[0, -1]))
    np.testing.assert_allclose(judge(np.arange(3), prompts, completions), expected, atol=1e-5)
