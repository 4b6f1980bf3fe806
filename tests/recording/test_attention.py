"""Rows and columns of attention without the T×T matrix agree with float64."""

import pytest
import torch
from torch import Tensor

from tokenlens.recording.attention import attention_columns, attention_rows, log_sum_exp

B, H, T, D = 2, 3, 13, 8
EVERY = range(T)


def qkv(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, B, H, T, D, generator=generator).mul(2).to(dtype).unbind(0))


def exact(q: Tensor, k: Tensor, scale: float = D**-0.5, bias: Tensor | float = 0.0) -> Tensor:
    return (q.double() @ k.double().mT * scale + bias).softmax(-1)


def test_rows_sum_to_one_and_equal_float64():
    q, k, _ = qkv()
    rows = attention_rows(q, k, EVERY, 0.3)
    torch.testing.assert_close(rows.sum(-1), torch.ones(B, H, T))
    torch.testing.assert_close(rows.double(), exact(q, k, 0.3), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rows_at_once", [1, 5, 13, 100])
def test_log_sum_exp_in_blocks_of_rows(rows_at_once):
    q, k, _ = qkv()
    bias = torch.randn(1, H, T, T)
    lse = log_sum_exp(q, k, 0.3, bias, rows_at_once)
    expected = (q.double() @ k.double().mT * 0.3 + bias).logsumexp(-1)
    torch.testing.assert_close(lse.double(), expected, atol=1e-5, rtol=1e-5)
    columns = attention_columns(q, k, EVERY, 0.3, lse, bias)
    torch.testing.assert_close(columns.double(), exact(q, k, 0.3, bias), atol=1e-6, rtol=1e-4)


def test_large_scores_do_not_overflow():
    q, k, _ = qkv()
    lse = log_sum_exp(q * 100, k, 1.0)
    assert lse.isfinite().all()
    columns = attention_columns(q * 100, k, EVERY, 1.0, lse)
    torch.testing.assert_close(columns.sum(-1), torch.ones(B, H, T), atol=1e-3, rtol=0)
