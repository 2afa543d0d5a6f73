"""Published decoders by name."""

from models.decoder import TransformerConfig


def gpt2(layers: int, width: int, heads: int) -> TransformerConfig:
    """GPT-2 (Radford et al. 2019)."""
    return TransformerConfig(50257, layers, width, heads, 1024)


def pythia(layers: int, width: int, heads: int, vocab: int = 50304) -> TransformerConfig:
    """Pythia (Biderman et al. 2023), a GPT-NeoX."""
    return TransformerConfig(
        vocab, layers, width, heads, 2048, position="rotary", rotary_fraction=0.25, parallel=True, activation="gelu", tie=False
    )


def llama(layers: int, width: int, heads: int, context: int, **other: object) -> TransformerConfig:
    """Llama (Touvron et al. 2023) and its kin."""
    kind = {"norm": "rms", "position": "rotary", "activation": "silu", "gated": True, "bias": False, "tie": False}
    return TransformerConfig(**{"vocab": 32000, **kind, **other}, layers=layers, width=width, heads=heads, context=context)


PRESETS = {
    "gpt2": gpt2(12, 768, 12),
    "gpt2-medium": gpt2(24, 1024, 16),
    "gpt2-large": gpt2(36, 1280, 20),
    "gpt2-xl": gpt2(48, 1600, 25),
    "pythia-70m": pythia(6, 512, 8),
    "pythia-160m": pythia(12, 768, 12),
    "pythia-410m": pythia(24, 1024, 16),
    "pythia-1b": pythia(16, 2048, 8),
    "pythia-1.4b": pythia(24, 2048, 16),
    "pythia-2.8b": pythia(32, 2560, 32),
    "pythia-6.9b": pythia(32, 4096, 32, vocab=50432),
    "tinyllama": llama(22, 2048, 32, 2048, kv_heads=4, ffn=5632, eps=1e-5),
    "rho-1b": llama(22, 2048, 32, 2048, kv_heads=4, ffn=5632, eps=1e-5),
    "llama-7b": llama(32, 4096, 32, 2048, ffn=11008, eps=1e-6),
    "llama-3.1-8b": llama(
        32, 4096, 32, 131072, vocab=128256, kv_heads=8, ffn=14336, eps=1e-5, rotary_theta=5e5,
        rotary_scaling=(8.0, 1.0, 4.0, 8192),
    ),
}  # fmt: skip
