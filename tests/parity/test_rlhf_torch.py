"""Loading, saving and running models against transformers: logits in float32 with left padding, cached decoding, tokenizers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder, decoding, distilbert, tokenisers
from models.hub import folder as hub
from tests.rlhf import tiny_models

torch = pytest.importorskip("torch", reason="the oracle: make parity installs it")
transformers = pytest.importorskip("transformers", reason="the oracle: make parity installs it")
pytestmark = pytest.mark.parity

SIZES = {"vocab_size": 37, "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
LLAMA = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 1}
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500.0}
NEOX = {**SIZES, "intermediate_size": 40, "rotary_pct": 0.25, "eos_token_id": 0}
DECODERS = {
    "gpt2": ("gpt2", {"vocab_size": 37, "n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 64}),
    "pythia": ("gpt_neox", NEOX),
    "pythia, half rotated": ("gpt_neox", {**NEOX, "rotary_pct": 0.5, "num_attention_heads": 2, "rotary_emb_base": 300}),
    "gpt-neox, one after the other": ("gpt_neox", {**NEOX, "use_parallel_residual": False, "hidden_act": "gelu_fast"}),
    "llama": ("llama", {**LLAMA, "num_key_value_heads": 4}),
    "tinyllama": ("llama", LLAMA),
    "llama 3.1": ("llama", {**LLAMA, "rope_parameters": {**ROPE, "original_max_position_embeddings": 32}}),
    "llama 3.2, tied, own size of heads": ("llama", {**LLAMA, "tie_word_embeddings": True, "head_dim": 12}),
    "llama with biases": ("llama", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
}
CLASSIFIER = {"vocab_size": 37, "n_layers": 3, "dim": 32, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 20}
RNG = np.random.default_rng(0)
IDS = RNG.integers(37, size=(5, 12)).astype(np.int32)
LENGTHS = np.array([12, 7, 1, 9, 3])[:, None]
LEFT = np.arange(12) >= 12 - LENGTHS
hidden = jax.jit(decoder.hidden, static_argnums=1)
prefill = jax.jit(decoding.prefill, static_argnums=1)
decode = jax.jit(decoding.decode, static_argnums=1)


def randomised(model):
    """Norms and biases too, which start where mistakes do not show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.5) + (weight.ndim == 1) * 0.5)
    return model.eval()


def oracle(kind, config, make):
    built = make.from_config(transformers.AutoConfig.for_model(kind, **config), attn_implementation="eager")
    return randomised(built.float())


def outputs(model, mask):
    """Logits of the oracle; positions as generate counts them."""
    extra = {}
    if model.config.model_type != "distilbert":
        extra["position_ids"] = torch.tensor(np.maximum(np.cumsum(mask, 1) - 1, 0))
    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS, dtype=torch.long), attention_mask=torch.tensor(mask), **extra).logits.numpy()


@pytest.fixture(scope="module", params=DECODERS)
def published(request, tmp_path_factory):
    """(oracle, its folder, what we read from it)."""
    model = oracle(*DECODERS[request.param], transformers.AutoModelForCausalLM)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model, folder, *hub.load(folder)


def test_logits_with_left_padding(published):
    model, _, cfg, params = published
    expected = outputs(model, LEFT)
    found = np.asarray(decoder.logits(params, cfg, hidden(params, cfg, IDS, LEFT)))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found[LEFT], expected[LEFT], rtol=0, atol=1e-4)


def test_prefill_and_cached_decode(published):
    model, _, cfg, params = published
    expected = outputs(model, LEFT)
    prompt, params = 8, decoding.unstack(params, cfg)
    state, cache = prefill(params, cfg, IDS[:, :prompt], LEFT[:, :prompt])
    cache = decoding.grow(cache, 14)
    for column in range(prompt, IDS.shape[1] + 1):
        found = np.asarray(decoder.logits(params, cfg, state))
        rows = LEFT[:, column - 1] & LEFT[:, :prompt].any(1)  # rows with a prompt
        assert rows.sum() == 3
        np.testing.assert_allclose(found[rows], expected[rows, column - 1], rtol=0, atol=1e-4)
        if column < IDS.shape[1]:
            state, cache = decode(params, cfg, cache, jnp.asarray(IDS[:, column]), column)


@pytest.mark.parametrize("file_bytes", [2**30, 20_000])
def test_transformers_reads_what_we_save(published, file_bytes, tmp_path):
    model, _, cfg, params = published
    hub.save(tmp_path, cfg, params, model.config.model_type, file_bytes=file_bytes)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    for (name, ours), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    np.testing.assert_allclose(outputs(again.eval(), LEFT)[LEFT], outputs(model, LEFT)[LEFT], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "pythia", "tinyllama"])
def test_reward_models(name, tmp_path):
    kind, config = DECODERS[name]
    model = oracle(kind, {**config, "num_labels": 1, "pad_token_id": 36}, transformers.AutoModelForSequenceClassification)
    model.save_pretrained(tmp_path / "theirs")
    cfg, params = hub.load(tmp_path / "theirs")
    right = np.arange(12) < LENGTHS
    ids = np.where(right, np.minimum(IDS, 35), 36)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(right)).logits.numpy()
    state = hidden(params, cfg, ids, right)[np.arange(5), LENGTHS[:, 0] - 1]
    np.testing.assert_allclose(state @ params["score"]["kernel"], expected, rtol=0, atol=1e-4)
    hub.save(tmp_path / "ours", cfg, params)
    again, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert again.config.num_labels == 1
    for (key, ours), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize("labels", [1, 2, 5])
def test_distilbert(labels, tmp_path):
    model = oracle("distilbert", {**CLASSIFIER, "num_labels": labels}, transformers.AutoModelForSequenceClassification)
    model.save_pretrained(tmp_path / "theirs")
    cfg, params = hub.load(tmp_path / "theirs")
    right = np.arange(12) < LENGTHS
    found = jax.jit(distilbert.classify, static_argnums=1)(params, cfg, IDS, right)
    assert found.shape == (5, labels)
    np.testing.assert_allclose(found, outputs(model, right), rtol=0, atol=1e-4)
    hub.save(tmp_path / "ours", cfg, params)
    again, report = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    np.testing.assert_allclose(outputs(again.eval(), right), outputs(model, right), rtol=0, atol=1e-5)


def test_half_precision_files(tmp_path):
    make = transformers.AutoModelForCausalLM
    oracle(*DECODERS["tinyllama"], make).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    model = make.from_pretrained(tmp_path / "theirs", dtype=torch.float32, attn_implementation="eager").eval()
    cfg, params = hub.load(tmp_path / "theirs")
    found = decoder.logits(params, cfg, hidden(params, cfg, IDS, LEFT))
    np.testing.assert_allclose(np.asarray(found)[LEFT], outputs(model, LEFT)[LEFT], rtol=0, atol=1e-4)
    hub.save(tmp_path / "ours", cfg, params, dtype="bfloat16")
    again = make.from_pretrained(tmp_path / "ours", dtype="auto")
    assert again.dtype == torch.bfloat16
    for (name, ours), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours.float(), theirs), name


@pytest.mark.parametrize("name", tiny_models.CONFIGS)
def test_checked_in_logits(name, tmp_path):
    tiny_models.write(tmp_path, name)
    classes = name in ("distilbert", "reward")
    make = transformers.AutoModelForSequenceClassification if classes else transformers.AutoModelForCausalLM
    model, report = make.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(report.values()), report
    ids, mask = torch.tensor(tiny_models.IDS, dtype=torch.long), tiny_models.MASK
    mask, extra = (mask[:, ::-1].copy(), {}) if name == "distilbert" else (mask, {"position_ids": np.cumsum(mask, 1) - 1})
    extra = {key: torch.tensor(np.maximum(value, 0)) for key, value in extra.items()}
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=torch.tensor(mask), **extra).logits.numpy()
    np.testing.assert_allclose(logits if classes else logits[:, -1], tiny_models.LOGITS[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_transformers_reads_our_tokenisers(kind, tmp_path):
    text = "the cat sat on the mat\n"
    made = tokenisers.train_bpe([text], 270) if kind == "bpe" else tokenisers.characters(sorted(set(text)))
    cfg = decoder.TransformerConfig(made.size, 1, 8, 2, 16)
    params = jax.jit(decoder.init, static_argnums=1)(jax.random.key(0), cfg)
    hub.save(tmp_path, cfg, params, tokeniser=made)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (made.eos, made.pad, made.size)
    assert theirs.encode(text) == made.encode(text)
    ids = made.encode(text)
    assert theirs.decode(ids) == made.decode(ids) == text
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.eos_token_id, config.pad_token_id) == (made.eos, made.pad)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]


def test_loading_their_tokenizer_folder(tmp_path):
    made = tokenisers.train_bpe(["the cat sat on the mat"], 270)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=made.tokenizer, eos_token="<|endoftext|>")
    theirs.save_pretrained(tmp_path)
    found = tokenisers.load(tmp_path)
    assert (found.eos, found.pad) == (0, 1)
    assert found.encode("the hat") == theirs.encode("the hat")
