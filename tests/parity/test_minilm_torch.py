"""The BERT encoder against one of PyTorch's own layers: states, gradients, and sentence vectors of the real weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import bert, minilm
from training.errors import UserError

torch = pytest.importorskip("torch", reason="the oracle: make parity installs it")
pytestmark = pytest.mark.parity
NN = torch.nn

SMALL = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 12, "type_vocab_size": 2, "layer_norm_eps": 1e-3,
}  # fmt: skip
RENAMED = {  # PyTorch's encoder layer -> Hugging Face's
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}


class Bert(NN.Module):
    def __init__(self, config):
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.word_embeddings = NN.Embedding(config["vocab_size"], width)
        self.position_embeddings = NN.Embedding(config["max_position_embeddings"], width)
        self.token_type_embeddings = NN.Embedding(config["type_vocab_size"], width)
        self.LayerNorm = NN.LayerNorm(width, eps)
        self.layers = NN.ModuleList(
            NN.TransformerEncoderLayer(
                width, config["num_attention_heads"], config["intermediate_size"], dropout=0, activation=NN.functional.gelu,
                layer_norm_eps=eps, batch_first=True, norm_first=False,
            )
            for _ in range(config["num_hidden_layers"])
        )  # fmt: skip

    def forward(self, ids, mask, types):
        position = self.position_embeddings(torch.arange(ids.shape[1]))
        states = [self.LayerNorm(self.word_embeddings(ids) + position + self.token_type_embeddings(types))]
        for layer in self.layers:
            states.append(layer(states[-1], src_key_padding_mask=~mask))
        return states


def named(arrays):
    """{Hugging Face's name: array} of {the oracle's name: array}."""
    found = {}
    for name, array in arrays.items():
        array = array.detach().numpy()
        if not name.startswith("layers."):
            found[f"embeddings.{name}"] = array
            continue
        number, _, rest = name.removeprefix("layers.").partition(".")
        module, _, kind = rest.rpartition(".")
        if kind.startswith("in_proj_"):
            for part, rows in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                found[f"encoder.layer.{number}.attention.self.{part}.{kind.removeprefix('in_proj_')}"] = rows
        else:
            found[f"encoder.layer.{number}.{RENAMED[module]}.{kind}"] = array
    return found


def inputs(config, rows, tokens):
    rng = np.random.default_rng(1)
    ids = rng.integers(config["vocab_size"], size=(rows, tokens))
    mask = np.arange(tokens) < rng.integers(1, tokens + 1, size=rows)[:, None]
    types = np.where(np.arange(tokens) < tokens // 2, 0, 1) * np.ones_like(ids)
    return ids, mask, types


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The oracle with random weights, and what bert.py reads from its file; both in float64."""
    torch.manual_seed(0)
    oracle = Bert(SMALL).double()
    with torch.no_grad():
        for weight in oracle.parameters():  # norms start at 1 and 0, where scale and bias could hide
            weight += 0.2 * torch.randn_like(weight)
    folder = tmp_path_factory.mktemp("bert")
    weights = {name: np.ascontiguousarray(array, np.float32) for name, array in named(dict(oracle.named_parameters())).items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SMALL))
    config = bert.read_config(folder / "config.json")
    params = bert.read_params(folder / "model.safetensors", config)
    oracle.float().double()  # rounded as the file's are
    return oracle, config, params


def test_states_of_every_layer(pair):
    oracle, config, params = pair
    ids, mask, types = inputs(SMALL, 5, 9)
    expected = oracle(torch.tensor(ids), torch.tensor(mask), torch.tensor(types))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        places = [jnp.asarray(x) for x in (ids, mask, types)]
        found = jax.jit(bert.layer_outputs, static_argnums=1)(wide, config, *places)
        last = jax.jit(bert.encode_tokens, static_argnums=1)(wide, config, *places)
    assert len(found) == len(expected) == SMALL["num_hidden_layers"] + 1
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(ours)[mask], theirs.detach().numpy()[mask], rtol=0, atol=1e-10)
    np.testing.assert_allclose(last, found[-1], rtol=0, atol=1e-12)


def test_gradients_of_all_weights(pair):
    oracle, config, params = pair
    ids, mask, types = inputs(SMALL, 4, 7)
    weight = np.random.default_rng(2).normal(size=(*ids.shape, SMALL["hidden_size"])) * mask[..., None]
    oracle.zero_grad()
    (oracle(torch.tensor(ids), torch.tensor(mask), torch.tensor(types))[-1] * torch.tensor(weight)).sum().backward()
    expected = named({name: value.grad for name, value in oracle.named_parameters()})
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        places = [jnp.asarray(x) for x in (ids, mask, types)]
        gradients = jax.jit(jax.grad(lambda p: (bert.encode_tokens(p, config, *places) * weight).sum()))(wide)
    leaves = jax.tree_util.tree_leaves_with_path(bert.layout(config), is_leaf=lambda node: isinstance(node, bert.Tensor))
    assert {tensor.name for _, tensor in leaves} == set(expected)
    for (path, tensor), ours in zip(leaves, jax.tree.leaves(gradients), strict=True):
        theirs = expected[tensor.name]
        theirs = theirs.T if path[-1].key == "kernel" else theirs
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9, err_msg=tensor.name)


def test_sentence_vectors_of_the_real_weights():
    try:
        folder = minilm.find_directory()
    except UserError as error:
        pytest.skip(str(error))
    config = json.loads((folder / "config.json").read_text())
    oracle, model = Bert(config), minilm.load()
    weights = load_file(folder / "model.safetensors")
    theirs = named(dict(oracle.named_parameters()))  # views of the parameters
    for name, array in theirs.items():
        array[:] = weights[name]
    texts = ["dog", "go to a concert hall", "unhappiness", "a " * 40, "play chess with your grandfather on a rainy day"]
    encodings = model.tokenizer.encode_batch(texts)
    expected = []
    for encoding in encodings:
        ids = torch.tensor([encoding.ids])
        with torch.no_grad():
            mean = oracle(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids))[-1][0].mean(0)
        expected.append((mean / mean.norm()).numpy())
    np.testing.assert_allclose(minilm.encode(texts, model), expected, rtol=0, atol=2e-6)
