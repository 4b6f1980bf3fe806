"""Rows and columns of attention without the T×T matrix agree with float64."""

import pytest
import torch
from torch import Tensor

from tokenlens.recording.attention import AttentionCall

B, H, T, D = 2, 3, 13, 8
EVERY = range(T)


def qkv(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, B, H, T, D, generator=generator).mul(2).to(dtype).unbind(0))


def exact(q: Tensor, k: Tensor, scale: float = D**-0.5, bias: Tensor | float = 0.0) -> Tensor:
    return (q.double() @ k.double().mT * scale + bias).softmax(-1)


def test_rows_sum_to_one_and_equal_float64():
    q, k, v = qkv()
    rows = AttentionCall(q, k, v, 0.3).rows(EVERY)
    torch.testing.assert_close(rows.sum(-1), torch.ones(B, H, T))
    torch.testing.assert_close(rows.double(), exact(q, k, 0.3), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows_at_once", [1, 5, 13, 100])
def test_log_sum_exp_in_blocks_of_rows(rows_at_once):
    call = AttentionCall(*qkv(), 0.3, bias=torch.randn(1, H, T, T))
    q, k, bias = call.q_BHTd, call.k_BHTd, call.bias
    call.lse_BHT = lse = call.log_sum_exp(rows_at_once)
    expected = (q.double() @ k.double().mT * 0.3 + bias).logsumexp(-1)
    torch.testing.assert_close(lse.double(), expected, atol=1e-5, rtol=1e-5)
    columns = call.columns(EVERY)
    torch.testing.assert_close(columns.double(), exact(q, k, 0.3, bias), atol=1e-6, rtol=1e-4)


def test_large_scores_do_not_overflow():
    q, k, v = qkv()
    call = AttentionCall(q * 100, k, v)
    assert call.log_sum_exp().isfinite().all()
    columns = call.columns(EVERY)
    torch.testing.assert_close(columns.sum(-1), torch.ones(B, H, T), atol=1e-3, rtol=0)
