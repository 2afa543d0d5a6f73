"""The other side of benchmarks/rlhf.py: GPT-2 in PyTorch, sampling by `transformers` and training by a plain fused module.

Shapes: B rows, T tokens, D width, H heads.
"""

import torch
from torch import nn
from torch.nn import functional

STD = 0.02  # of weights; with normal(1) embeddings torch computes with denormal numbers, several times slower


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm_1(x)).split(D, -1))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(seen.transpose(1, 2).reshape(B, T, D))
        return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Decoder(nn.Module):
    """GPT-2 with tied embeddings: ids int [B, T] -> logits [B, T, V]."""

    def __init__(self, vocab: int, layers: int, width: int, heads: int, context: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks, self.norm = nn.ModuleList(Block(width, heads) for _ in range(layers)), nn.LayerNorm(width)
        for x in self.parameters():
            if x.ndim > 1:
                nn.init.normal_(x, std=STD)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T


def update(net: Decoder, optimiser: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    """One step of the mean cross-entropy of every next token of ids [B, T]."""
    optimiser.zero_grad()
    z = net(ids)[:, :-1]
    loss = functional.cross_entropy(z.reshape(-1, z.shape[-1]), ids[:, 1:].reshape(-1))
    loss.backward()
    optimiser.step()
    return loss.item()


def gpt2() -> nn.Module:
    """GPT-2 small of `transformers` with random weights, that never stops."""
    from transformers import GPT2Config, GPT2LMHeadModel

    net = GPT2LMHeadModel(GPT2Config(initializer_range=STD)).eval()
    net.generation_config.eos_token_id = None
    net.generation_config.pad_token_id = 0
    return net


@torch.inference_mode()
def sample(net: nn.Module, prompt: torch.Tensor, new: int) -> torch.Tensor:
    """`new` tokens after each row of prompt [B, C], from the whole softmax."""
    mask = torch.ones_like(prompt)
    return net.generate(prompt, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=new, use_cache=True)
