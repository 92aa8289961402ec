from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distmem.errors import ModelError
from distmem.models import build
from distmem.models.gpt import rope_angles, rotate


def small(**args) -> nn.Module:
    torch.manual_seed(0)
    return build("gpt_char", {"vocab_size": 11, "width": 24, "heads": 3, "layers": 3, "context": 16, **args}, {}).eval()


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_no_token_sees_a_later_one(position):
    model, tokens = small(position=position), torch.arange(12)[None] % 11
    before = model(tokens)
    for step in (1, 6, 11):
        changed = tokens.clone()
        changed[0, step] = (changed[0, step] + 1) % 11
        after = model(changed)
        assert torch.equal(after[:, :step], before[:, :step])
        assert not torch.allclose(after[:, step], before[:, step])


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_positions_matter(position):
    model = small(position=position)
    one, other = model(torch.tensor([[1, 2, 3, 4]])), model(torch.tensor([[2, 1, 3, 4]]))
    assert not torch.allclose(one[0, -1], other[0, -1], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 20), pairs=st.integers(1, 8), seed=st.integers(0, 99))
def test_rope_is_a_complex_rotation(steps, pairs, seed):
    x = np.random.default_rng(seed).standard_normal((2, 3, steps, 2 * pairs))
    ours = rotate(torch.from_numpy(x), rope_angles(steps, 2 * pairs, torch.device("cpu")))
    angle = np.outer(np.arange(steps), 10000.0 ** (-2 * np.arange(pairs) / (2 * pairs)))
    turned = (x[..., :pairs] + 1j * x[..., pairs:]) * np.exp(1j * angle)
    np.testing.assert_allclose(ours.numpy(), np.concatenate([turned.real, turned.imag], -1), atol=1e-5)


def test_rope_makes_scores_depend_on_distance_alone():
    angles = rope_angles(20, 8, torch.device("cpu"))
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(1)).double()
    turned_q, turned_k = rotate(q.expand(20, 8), angles), rotate(k.expand(20, 8), angles)
    scores = turned_q @ turned_k.T
    for distance in (0, 3, 7):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-5)
    assert not torch.allclose(scores[3, 0], scores[7, 0], atol=1e-3)


def by_hand(model: nn.Module, tokens: Tensor, heads: int) -> Tensor:
    """The network of the paper, sample by sample and head by head."""
    p = {name: weight.double() for name, weight in model.state_dict().items()}
    x = p["embed.weight"][tokens] + p["position.weight"][: len(tokens)]
    width = x.shape[1] // heads
    for layer in range(3):
        own = {k.removeprefix(f"layers.{layer}."): v for k, v in p.items() if k.startswith(f"layers.{layer}.")}
        normed = F.layer_norm(x, x.shape[1:], own["norm1.weight"], own["norm1.bias"])
        q, k, v = (normed @ own["attention.qkv.weight"].T + own["attention.qkv.bias"]).chunk(3, dim=1)
        outs = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T / math.sqrt(width)
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
            outs.append(scores.softmax(1) @ v[:, part])
        x = x + torch.cat(outs, 1) @ own["attention.out.weight"].T + own["attention.out.bias"]
        normed = F.layer_norm(x, x.shape[1:], own["norm2.weight"], own["norm2.bias"])
        inner = normed @ own["mlp.up.weight"].T + own["mlp.up.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + inner @ own["mlp.out.weight"].T + own["mlp.out.bias"]
    return F.layer_norm(x, x.shape[1:], p["norm.weight"], p["norm.bias"]) @ p["embed.weight"].T


def test_forward_equals_the_formulas():
    model = small(position="learned", bias=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
        assert torch.allclose(model(tokens)[0].double(), by_hand(model, tokens[0], 3), atol=1e-4)


def test_initial_spread_is_gpt2s():
    model = build("gpt_char", {"width": 256, "layers": 8, "bias": True}, {})
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            expected = 0.02 / 4 if name.endswith("out.weight") else 0.02
            assert weight.std().item() == pytest.approx(expected, rel=0.03), name
        elif name.endswith("bias"):
            assert not weight.any(), name


def test_untied_head_and_too_many_tokens():
    assert "head.weight" in small(tie=False).state_dict()
    with pytest.raises(ModelError, match="17 tokens, but context is 16"):
        small()(torch.zeros(1, 17, dtype=torch.long))


def test_bfloat16_weights_and_bfloat16_out():
    assert small().bfloat16()(torch.arange(8)[None]).dtype == torch.bfloat16
