"""Attention captured at every kind of kernel is the attention of the model."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tests.recording.test_attention import EVERY, B, D, H, T, exact, qkv
from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import AttentionCapture


def capture(q, k, v, **kwargs) -> tuple[AttentionCall, Tensor]:
    plain = scaled_dot_product_attention(q, k, v, **kwargs)
    with AttentionCapture(B, T) as seen:
        out = scaled_dot_product_attention(q, k, v, **kwargs)
    assert torch.equal(out, plain)
    assert seen.call is not None
    return seen.call, out


def check(call: AttentionCall, pattern: Tensor, atol: float = 1e-6) -> None:
    for positions in (EVERY, [0], [T - 1, 3]):
        rows, columns = call.rows(positions), call.columns(positions)
        assert rows.shape == (B, H, len(positions), T)
        assert columns.shape == (B, H, T, len(positions))
        torch.testing.assert_close(rows.double(), pattern[:, :, list(positions)], atol=atol, rtol=1e-4)
        torch.testing.assert_close(columns.double(), pattern[..., list(positions)], atol=atol, rtol=1e-4)
    torch.testing.assert_close(call.pattern().double(), pattern, atol=atol, rtol=1e-4)


@pytest.mark.parametrize("scale", [None, 0.1])
def test_fused_kernel(scale):
    q, k, v = qkv()
    call, out = capture(q, k, v, scale=scale)
    assert call.pattern_BHTT is None
    assert call.lse_BHT is not None
    pattern = exact(q, k, D**-0.5 if scale is None else scale)
    check(call, pattern)
    torch.testing.assert_close(out.double(), pattern @ v.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(B, H, T, T), (1, H, T, T), (B, 1, T, T), (T, T), (B, 1, 1, T)])
@pytest.mark.parametrize("boolean", [False, True])
def test_fused_kernel_with_a_bias(shape, boolean):
    q, k, v = qkv()
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if boolean:
        keep = bias > -1
        keep[..., 0] = True
        bias = torch.zeros(shape).masked_fill(~keep, -math.inf)
    call, _ = capture(q, k, v, attn_mask=keep if boolean else bias)
    check(call, exact(q, k, bias=bias))


def test_fused_kernel_in_bf16():
    q, k, v = qkv(torch.bfloat16)
    call, _ = capture(q, k, v)
    assert call.rows([0]).dtype == call.columns([0]).dtype == torch.float32
    check(call, exact(q, k), atol=1e-4)


def test_math_fallback():
    q, k, v = qkv()
    bias = torch.randn(1, H, T, T)
    with sdpa_kernel(SDPBackend.MATH):
        call, _ = capture(q, k, v, attn_mask=bias)
    assert call.pattern_BHTT is not None
    check(call, exact(q, k, bias=bias))
    check(AttentionCall(call.q_BHTd, call.k_BHTd, call.v_BHTd, bias=bias), exact(q, k, bias=bias))
    assert torch.equal(call.v_BHTd, v)


@pytest.mark.parametrize("flat", [False, True], ids=["by head", "heads in the batch axis"])
def test_explicit_softmax(flat):
    q, k, v = (x.flatten(0, 1) if flat else x for x in qkv())
    with AttentionCapture(B, T) as seen:
        out = ((q * D**-0.5) @ k.mT).softmax(-1) @ v
    q, k, v = (x.view(B, H, T, D) for x in (q, k, v))
    check(seen.call, exact(q, k))
    assert torch.equal(seen.call.v_BHTd, v)
    torch.testing.assert_close(out.view(B, H, T, D).double(), exact(q, k) @ v.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [2, 3], ids=["fast path", "odd heads take the slow path"])
def test_multihead_attention(heads):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(heads * D, heads, batch_first=True).eval()
    nn.init.normal_(module.in_proj_bias)
    x = torch.randn(B, T, heads * D)
    with torch.no_grad():
        plain, weights = module(x, x, x, need_weights=False)[0], module(x, x, x, average_attn_weights=False)[1]
        with AttentionCapture(B, T) as seen:
            out = module(x, x, x, need_weights=False)[0]
        assert torch.equal(out, plain)
        call = seen.call
        torch.testing.assert_close(call.rows(EVERY), weights)
        torch.testing.assert_close(call.columns(EVERY), weights)
        mixed = (weights @ call.v_BHTd).transpose(1, 2).flatten(2)
        torch.testing.assert_close(module.out_proj(mixed), out)


def test_attention_over_other_tokens_is_ignored():
    q, k, v = qkv()
    module = nn.MultiheadAttention(H * D, H, batch_first=True).eval()
    x = torch.randn(B, T - 1, H * D)
    with torch.no_grad(), AttentionCapture(B, T) as seen:
        scaled_dot_product_attention(q[:, :, :1], k, v)
        (q[:, :, 1:] @ k[:, :, 1:].mT).softmax(-1) @ v[:, :, 1:]
        module(x, x, x, need_weights=False)
    assert seen.call is None


def test_unsupported_attention_is_refused():
    q, k, v = qkv()
    with AttentionCapture(B, T):
        scaled_dot_product_attention(q, k, v)
        with pytest.raises(ValueError, match="ran twice"):
            scaled_dot_product_attention(q, k, v)
    with pytest.raises(ValueError, match="causal"), AttentionCapture(B, T):
        scaled_dot_product_attention(q, k, v, is_causal=True)
    module = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(B, T, 16)
    with pytest.raises(ValueError, match="mask"), torch.no_grad(), AttentionCapture(B, T):
        module(x, x, x, need_weights=False, attn_mask=torch.eye(T, dtype=torch.bool))


@pytest.mark.parametrize("keys", [5, 20])
def test_attention_to_other_keys_is_refused(keys):
    """Softmax over appended or pooled keys is not attention among the tokens."""
    q, k = torch.randn(1, 2, 17, 8), torch.randn(1, 2, keys, 8)
    with torch.no_grad(), pytest.raises(ValueError, match=f"17 tokens attend to {keys} keys"), AttentionCapture(1, 17):
        scaled_dot_product_attention(q, k, k)
