"""A small GPT for text. Shape suffixes: B batch, T time, C width, H heads, K width of a head, V vocabulary."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distmem.errors import ModelError


class GptChar(nn.Module):
    """Pre-norm transformer, GELU, causal attention; weights initialised as GPT-2's (Radford et al. 2019, 2.3).

    tokens: (B, T) int64, T <= context -> logits (B, T, V). With tie the output uses the embedding's weight, so
    the state has it once, under embed.weight. Raises ModelError for widths that do not divide and for T > context.
    """

    def __init__(
        self,
        vocab_size: int = 256,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        context: int = 128,
        dropout: float = 0.0,
        position: Literal["rope", "learned"] = "rope",
        tie: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        _check(heads, width, position)
        self.context, self.head_width = context, width // heads
        self.embed = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(context, width) if position == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList([Block(width, heads, dropout, bias) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, bias=bias)
        self.head = None if tie else nn.Linear(width, vocab_size, bias=False)
        self.apply(_init)
        for name, weight in self.named_parameters():
            if name.endswith("out.weight"):  # both sums into the residual stream of a layer
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        steps = tokens_BT.shape[1]
        if steps > self.context:
            raise ModelError(f"{steps} tokens, but context is {self.context}", remedy=f"model.args.context={steps}")
        x_BTC = self.embed(tokens_BT)
        rope_TK = None
        if self.position is None:
            rope_TK = rope_angles(steps, self.head_width, tokens_BT.device)
        else:
            x_BTC = x_BTC + self.position(torch.arange(steps, device=tokens_BT.device))
        x_BTC = self.dropout(x_BTC)
        for layer in self.layers:
            x_BTC = layer(x_BTC, rope_TK)
        x_BTC = self.norm(x_BTC)
        return F.linear(x_BTC, self.embed.weight if self.head is None else self.head.weight)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). x: (B, T, C); rope: (T, K/2) or None."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, bias=bias)
        self.attention = Attention(width, heads, dropout, bias)
        self.norm2 = nn.LayerNorm(width, bias=bias)
        self.mlp = FeedForward(width, dropout, bias)

    def forward(self, x_BTC: Tensor, rope_TK: Tensor | None) -> Tensor:
        x_BTC = x_BTC + self.attention(self.norm1(x_BTC), rope_TK)
        return x_BTC + self.mlp(self.norm2(x_BTC))


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017, 3.2)."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool):
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor, rope_TK: Tensor | None) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = self.qkv(x_BTC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rope_TK is not None:
            q_BHTK, k_BHTK = rotate(q_BHTK, rope_TK), rotate(k_BHTK, rope_TK)
        rate = self.rate if self.training else 0.0
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, dropout_p=rate, is_causal=True)
        return self.dropout(self.out(y_BHTK.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """C -> 4C -> C with GELU."""

    def __init__(self, width: int, dropout: float, bias: bool):
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=bias)
        self.out = nn.Linear(4 * width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.dropout(self.out(F.gelu(self.up(x_BTC))))


def rope_angles(steps: int, head_width: int, device: torch.device) -> Tensor:
    """Angles (T, K/2), float32: t * 10000^(-2i/K) (Su et al. 2021, RoFormer, eq. 15)."""
    frequency_K = 10000.0 ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    return torch.arange(steps, device=device, dtype=torch.float32)[:, None] * frequency_K


def rotate(x_BHTK: Tensor, rope_TK: Tensor) -> Tensor:
    """Each pair (x[i], x[i + K/2]) turned by its angle, computed in at least float32; dtype of x."""
    first, second = x_BHTK.to(torch.promote_types(x_BHTK.dtype, torch.float32)).chunk(2, dim=-1)
    cos, sin = rope_TK.cos(), rope_TK.sin()
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).to(x_BHTK.dtype)


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _check(heads: int, width: int, position: str) -> None:
    if position not in ("rope", "learned"):
        raise ModelError(f'position is "{position}"', remedy="rope or learned")
    if width % heads:
        raise ModelError(
            f"width {width} is not a multiple of heads {heads}", remedy=f"width: {heads * (width // heads + 1)}"
        )
    if position == "rope" and (width // heads) % 2:
        raise ModelError(
            f"a head has width {width // heads}, which rope cannot pair",
            remedy="an even width / heads, or position: learned",
        )
