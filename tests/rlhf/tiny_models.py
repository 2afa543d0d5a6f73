"""Small models in Hugging Face's format with random weights: config.json, names and shapes as transformers writes them."""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GPT2 = {
    "model_type": "gpt2", "vocab_size": 11, "n_layer": 2, "n_embd": 8, "n_head": 2, "n_positions": 16, "n_inner": 12,
    "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
}  # fmt: skip
SIZES = {"vocab_size": 11, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 16}
NEOX = {
    "model_type": "gpt_neox", **SIZES, "num_attention_heads": 2, "intermediate_size": 24, "hidden_act": "gelu",
    "layer_norm_eps": 1e-5, "rotary_pct": 0.5, "rotary_emb_base": 100, "use_parallel_residual": True,
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", **SIZES, "hidden_size": 32, "intermediate_size": 24, "num_key_value_heads": 2, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 100.0, "tie_word_embeddings": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 32},
}  # fmt: skip
TIED = {**LLAMA, "tie_word_embeddings": True, "rope_scaling": None, "head_dim": 6}
DISTILBERT = {
    "model_type": "distilbert", "vocab_size": 11, "n_layers": 2, "dim": 8, "n_heads": 2, "hidden_dim": 12,
    "max_position_embeddings": 16, "activation": "gelu", "id2label": {"0": "bad", "1": "good", "2": "neither"},
    "label2id": {"bad": 0, "good": 1, "neither": 2},
}  # fmt: skip
REWARD = {**NEOX, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "pad_token_id": 1}
CONFIGS = {"gpt2": GPT2, "gpt_neox": NEOX, "llama": LLAMA, "tied": TIED, "distilbert": DISTILBERT, "reward": REWARD}
DECODERS = ("gpt2", "gpt_neox", "llama", "tied")


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of one of CONFIGS."""
    config = CONFIGS[name]
    return {"gpt2": gpt2, "gpt_neox": gpt_neox, "llama": llama, "distilbert": distilbert}[config["model_type"]](config)


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def gpt2(c):
    D, F = c["n_embd"], c["n_inner"]
    found = {"transformer.wte.weight": (c["vocab_size"], D), "transformer.wpe.weight": (c["n_positions"], D)}
    for i in range(c["n_layer"]):
        for name, into, out in (("attn.c_attn", D, 3 * D), ("attn.c_proj", D, D), ("mlp.c_fc", D, F), ("mlp.c_proj", F, D)):
            at = f"transformer.h.{i}.{name}"
            found |= {f"{at}.weight": (into, out), f"{at}.bias": (out,)}
        found |= norm(f"transformer.h.{i}.ln_1", D) | norm(f"transformer.h.{i}.ln_2", D)
    return found | norm("transformer.ln_f", D)


def gpt_neox(c):
    V, D, F = c["vocab_size"], c["hidden_size"], c["intermediate_size"]
    found = {"gpt_neox.embed_in.weight": (V, D), **norm("gpt_neox.final_layer_norm", D)}
    found |= {"score.weight": (1, D)} if "id2label" in c else {"embed_out.weight": (V, D)}
    for i in range(c["num_hidden_layers"]):
        at = f"gpt_neox.layers.{i}"
        found |= linear(f"{at}.attention.query_key_value", 3 * D, D) | linear(f"{at}.attention.dense", D, D)
        found |= linear(f"{at}.mlp.dense_h_to_4h", F, D) | linear(f"{at}.mlp.dense_4h_to_h", D, F)
        found |= norm(f"{at}.input_layernorm", D) | norm(f"{at}.post_attention_layernorm", D)
    return found


def llama(c):
    V, D, F = c["vocab_size"], c["hidden_size"], c["intermediate_size"]
    size = c.get("head_dim", D // c["num_attention_heads"])
    Q, KV = c["num_attention_heads"] * size, c["num_key_value_heads"] * size
    found = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    found |= {} if c["tie_word_embeddings"] else {"lm_head.weight": (V, D)}
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        found |= {f"{at}.self_attn.{name}_proj.weight": (out, D) for name, out in (("q", Q), ("k", KV), ("v", KV))}
        found |= {f"{at}.self_attn.o_proj.weight": (D, Q), f"{at}.mlp.down_proj.weight": (D, F)}
        found |= {f"{at}.mlp.{name}_proj.weight": (F, D) for name in ("gate", "up")}
        found |= {f"{at}.{name}_layernorm.weight": (D,) for name in ("input", "post_attention")}
    return found


def distilbert(c):
    D, F, tables = c["dim"], c["hidden_dim"], "distilbert.embeddings"
    found = {f"{tables}.word_embeddings.weight": (c["vocab_size"], D), **norm(f"{tables}.LayerNorm", D)}
    found |= {f"{tables}.position_embeddings.weight": (c["max_position_embeddings"], D)}
    for i in range(c["n_layers"]):
        at = f"distilbert.transformer.layer.{i}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            found |= linear(f"{at}.attention.{name}", D, D)
        found |= norm(f"{at}.sa_layer_norm", D) | norm(f"{at}.output_layer_norm", D)
        found |= linear(f"{at}.ffn.lin1", F, D) | linear(f"{at}.ffn.lin2", D, F)
    return found | linear("pre_classifier", D, D) | linear("classifier", len(c["id2label"]), D)


def weights(name: str) -> dict[str, np.ndarray]:
    """{tensor: float32 array}; a tensor's values depend on its name and shape only."""
    return {
        key: np.random.default_rng(zlib.crc32(key.encode())).normal(0, 0.5, shape).astype(np.float32)
        for key, shape in shapes(name).items()
    }


def write(folder: Path, name: str) -> Path:
    """Write config.json and model.safetensors of one of CONFIGS."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    save_file(weights(name), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# What transformers 5.23.0 makes of these models in float32 (checked by tests/parity/test_rlhf_torch.py): logits at the last
# position; for 'reward' the score of a row; for 'distilbert' the classes, the mask being turned round.
IDS = np.array([[3, 5, 2, 7, 9, 4], [8, 1, 10, 6, 2, 3]], np.int32)
MASK = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], bool)
LOGITS = {
    "gpt2": [[1.6498, 1.4935, 1.4402, -0.7632, -1.2131, -0.6455, -1.6177, -0.4718, 1.8342, -1.2623, -1.4268],
             [1.4243, 1.3047, 1.3078, -0.6228, -1.3468, -0.7264, -1.6251, -0.208, 1.6256, -1.3099, -1.002]],
    "gpt_neox": [[-0.5746, 0.1802, -0.0348, -1.5119, -0.9664, -1.8531, 1.181, -1.1835, 1.9767, 1.3325, 0.0031],
                 [-0.561, 0.3542, -0.1334, -1.4662, -0.7656, -1.985, 1.1173, -1.089, 1.9563, 1.1491, -0.044]],
    "llama": [[0.3187, 0.4144, -0.4876, 1.366, -1.1985, -0.431, -0.0352, -0.9335, -0.7502, -0.7161, -0.4539],
              [-0.779, 0.5503, 0.9052, 1.177, -0.4371, -1.2339, -1.4974, 0.2416, -0.0571, 1.2071, -1.603]],
    "tied": [[-1.949, -0.9479, 0.1864, 0.9788, 0.1137, -0.8059, -0.1181, 0.8529, -0.5302, -0.1984, 1.8289],
             [1.1149, 0.7159, -0.7205, -0.826, 0.7962, 1.4527, -0.2987, -0.2828, -1.2272, 1.4777, -1.0064]],
    "distilbert": [[0.7012, 0.3324, 0.5735], [0.6905, 0.3373, 0.567]],
    "reward": [[-1.056], [-0.8515]],
}  # fmt: skip
