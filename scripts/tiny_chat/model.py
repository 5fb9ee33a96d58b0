"""The network: a llama, whose tensors have the names and the layout of Hugging Face's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tiny_chat.layout import VOCAB_SIZE


@dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    width: int = 192
    layers: int = 5
    heads: int = 6
    feed_forward: int = 352
    context: int = 2048
    rope_base: float = 10_000.0
    epsilon: float = 1e-5


class Layer(nn.Module):
    """Attention with rotary positions, then a gated feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, wide = shape.width, shape.feed_forward
        self.input_layernorm = nn.Parameter(torch.ones(width))
        self.qkv_proj = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.o_proj = nn.Parameter(torch.zeros(width, width))
        self.post_attention_layernorm = nn.Parameter(torch.ones(width))
        self.gate_up_proj = nn.Parameter(torch.randn(2 * wide, width) * width**-0.5)
        self.down_proj = nn.Parameter(torch.zeros(width, wide))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """`x` of shape [rows, length, width]; `cos` and `sin` of [rows, 1, length, width / heads]."""
        rows, length, width = x.shape
        heads, epsilon = self.shape.heads, self.shape.epsilon
        y = F.linear(F.rms_norm(x, (width,), self.input_layernorm, epsilon), self.qkv_proj)
        y = y.view(rows, length, 3 * heads, width // heads).transpose(1, 2)
        qk, v = y[:, : 2 * heads], y[:, 2 * heads :]
        qk = qk * cos + torch.cat(tuple(reversed(qk.chunk(2, -1))), -1) * sin
        y = F.scaled_dot_product_attention(qk[:, :heads], qk[:, heads:], v, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).reshape(rows, length, width), self.o_proj)
        y = F.rms_norm(x, (width,), self.post_attention_layernorm, epsilon)
        gate, up = F.linear(y, self.gate_up_proj).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down_proj)


class Model(nn.Module):
    """Embedding, layers, norm; the output shares the embedding."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Parameter(torch.randn(VOCAB_SIZE, shape.width) * 0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.width))
        half = shape.width // shape.heads // 2
        angles = torch.arange(shape.context)[:, None] * shape.rope_base ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", torch.cat((-angles.sin(), angles.sin()), 1), persistent=False)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Logits of shape [rows, length, vocabulary] for `ids` at `positions`, both of [rows, length]."""
        cos, sin = self.get_buffer("cos")[positions][:, None], self.get_buffer("sin")[positions][:, None]
        x = F.embedding(ids, self.embed_tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return F.linear(F.rms_norm(x, (self.shape.width,), self.norm, self.shape.epsilon), self.embed_tokens)


def tensors(model: Model) -> dict[str, torch.Tensor]:
    """By Hugging Face's names: `model.layers.0.self_attn.q_proj.weight`, …"""
    width, wide = model.shape.width, model.shape.feed_forward
    found = {"model.embed_tokens.weight": model.embed_tokens, "model.norm.weight": model.norm}
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        q, k, v = layer.qkv_proj.split(width)
        gate, up = layer.gate_up_proj.split(wide)
        named = {
            "input_layernorm": layer.input_layernorm, "self_attn.q_proj": q, "self_attn.k_proj": k,
            "self_attn.v_proj": v, "self_attn.o_proj": layer.o_proj,
            "post_attention_layernorm": layer.post_attention_layernorm, "mlp.gate_proj": gate, "mlp.up_proj": up,
            "mlp.down_proj": layer.down_proj,
        }  # fmt: skip
        found |= {f"model.layers.{number}.{name}.weight": tensor for name, tensor in named.items()}
    return {name: tensor.detach().float().clone().contiguous() for name, tensor in found.items()}
