"""Exact attention rows and columns from the arguments of the attention kernel, without the T×T matrix.

Fused kernels stay on: the call is seen as it reaches the kernel, after q/k norms, rotary embedding and casts. Models
that compute softmax(QKᵀ) themselves are read at the softmax instead.
"""

# Shapes: B images, H heads, T tokens, R chosen tokens, d channels of one head.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def as_float(x: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def exact(x: Tensor) -> Tensor:
    """``x`` in float64 where the user lets matrix products run in TF32 or bfloat16, which ours must not."""
    return x if torch.get_float32_matmul_precision() == "highest" else x.double()


def dots(x_BHTd: Tensor, y_BH1d: Tensor, scratch_BHTd: Tensor | None = None) -> Tensor:
    """Inner products of one vector a head with every token's, (B, H, T); ``scratch_BHTd`` is memory to compute in."""
    # Multiply and sum: three times faster on CPU than a matmul with a transposed, strided operand.
    return torch.mul(x_BHTd, y_BH1d, out=scratch_BHTd).sum(-1)


Dots = Callable[[Tensor, Tensor], Tensor]
"""A way to compute ``dots``."""


def attention_rows(
    q_BHTd: Tensor,
    k_BHTd: Tensor,
    positions: Sequence[int],
    scale: float,
    bias: Tensor | None = None,
    dots: Dots = dots,
) -> Tensor:
    """How some tokens attend to all: softmax(q_r·Kᵀ·scale + bias), (B, H, R, T), each row sums to 1.

    Cost O(R·T·d). ``bias`` is what the kernel adds to the scores, broadcastable to (B, H, T, T).
    """
    k_BHTd = as_float(k_BHTd)
    rows = []
    for position in positions:
        query_BH1d = as_float(q_BHTd[..., position : position + 1, :]) * scale
        scores_BHT = dots(k_BHTd, query_BH1d)
        if bias is not None:
            scores_BHT = scores_BHT + bias[..., position, :]
        rows.append(scores_BHT.softmax(-1))
    return torch.stack(rows, dim=-2)


def log_sum_exp(
    q_BHTd: Tensor, k_BHTd: Tensor, scale: float, bias: Tensor | None = None, rows_at_once: int = 128
) -> Tensor:
    """log Σ_j exp(q_i·k_j·scale + bias_ij) for every query i, (B, H, T), from blocks of rows.

    The way for kernels that do not return it; memory is B·H·rows_at_once·T.
    """
    q_BHTd, k_BHTd = as_float(q_BHTd), as_float(k_BHTd)
    dtype = q_BHTd.dtype
    q_BHTd, k_BHTd = exact(q_BHTd), exact(k_BHTd)
    tokens = q_BHTd.shape[-2]
    parts = []
    for start in range(0, tokens, rows_at_once):
        scores = (q_BHTd[..., start : start + rows_at_once, :] * scale) @ k_BHTd.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias[..., start : start + rows_at_once, :]
        parts.append(scores.logsumexp(-1).to(dtype))
    return torch.cat(parts, dim=-1)


def attention_columns(
    q_BHTd: Tensor,
    k_BHTd: Tensor,
    positions: Sequence[int],
    scale: float,
    lse_BHT: Tensor,
    bias: Tensor | None = None,
    dots: Dots = dots,
) -> Tensor:
    """How much every token attends to some: exp(q_i·k_r·scale + bias − lse_i), (B, H, T, R), in [0, 1].

    Cost O(R·T·d), with ``lse_BHT`` the log of each row's softmax denominator, which flash kernels return.
    """
    q_BHTd = as_float(q_BHTd)
    columns = []
    for position in positions:
        key_BH1d = as_float(k_BHTd[..., position : position + 1, :]) * scale
        scores_BHT = dots(q_BHTd, key_BH1d)
        if bias is not None:
            scores_BHT = scores_BHT + bias[..., :, position]
        columns.append((scores_BHT - lse_BHT).exp())
    return torch.stack(columns, dim=-1)


@dataclass
class AttentionCall:
    """One call of attention: what the kernel got, and its log-sum-exp or, if the model made one, the pattern itself.

    Where no fused kernel runs, ``pattern_BHTT`` is given, and ``q_BHTd`` and ``k_BHTd`` may carry the scale already.
    """

    q_BHTd: Tensor
    k_BHTd: Tensor
    v_BHTd: Tensor
    scale: float = 1.0
    bias: Tensor | None = None
    lse_BHT: Tensor | None = None
    pattern_BHTT: Tensor | None = None

    def rows(self, positions: Sequence[int], dots: Dots = dots) -> Tensor:
        """How the tokens at ``positions`` attend to all, (B, H, R, T)."""
        if self.pattern_BHTT is not None:
            return as_float(self.pattern_BHTT[..., list(positions), :])
        return attention_rows(self.q_BHTd, self.k_BHTd, positions, self.scale, self.bias, dots)

    def columns(self, positions: Sequence[int], dots: Dots = dots) -> Tensor:
        """How much every token attends to those at ``positions``, (B, H, T, R)."""
        if self.pattern_BHTT is not None:
            return as_float(self.pattern_BHTT[..., list(positions)])
        if self.lse_BHT is None:
            self.lse_BHT = log_sum_exp(self.q_BHTd, self.k_BHTd, self.scale, self.bias)
        return attention_columns(self.q_BHTd, self.k_BHTd, positions, self.scale, self.lse_BHT, self.bias, dots)

    def row_blocks(self, rows_at_once: int = 32) -> Iterator[tuple[slice, Tensor]]:
        """The whole pattern as blocks of rows: which rows, and (B, H, rows_at_once, T); the last may have fewer.

        Cost O(T²·d), memory B·H·rows_at_once·T.
        """
        tokens = self.q_BHTd.shape[-2]
        q_BHTd = as_float(self.q_BHTd)
        # Laid out once for all blocks: a strided K takes a ViT-S twice as long.
        k_BHdT = exact(as_float(self.k_BHTd)).transpose(-1, -2).contiguous() if self.pattern_BHTT is None else None
        for start in range(0, tokens, rows_at_once):
            rows = slice(start, min(start + rows_at_once, tokens))
            if k_BHdT is None:
                assert self.pattern_BHTT is not None
                yield rows, as_float(self.pattern_BHTT[..., rows, :])
                continue
            scores_BHRT = (exact(q_BHTd[..., rows, :]) * self.scale) @ k_BHdT
            if self.bias is not None:
                scores_BHRT = scores_BHRT + self.bias[..., rows, :]
            yield rows, scores_BHRT.softmax(-1).to(q_BHTd.dtype)

    def pattern(self) -> Tensor:
        """The whole pattern, (B, H, T, T); for a few images only, its size is quadratic in the tokens."""
        if self.pattern_BHTT is not None:
            return self.pattern_BHTT
        scores = (as_float(self.q_BHTd) * self.scale) @ as_float(self.k_BHTd).transpose(-1, -2)
        if self.bias is not None:
            scores = scores + self.bias
        return scores.softmax(-1)


# Fused kernels: the position of the log-sum-exp among their outputs (None: not returned).
_FUSED: dict[Any, int | None] = {}
for _name, _lse_index in {
    "_scaled_dot_product_flash_attention_for_cpu": 1,
    "_scaled_dot_product_flash_attention": 1,
    "_scaled_dot_product_efficient_attention": 1,
    "_scaled_dot_product_cudnn_attention": 1,
    "_scaled_dot_product_fused_attention_overrideable": 1,
    "_scaled_dot_product_attention_math_for_mps": None,
}.items():
    if hasattr(aten, _name):
        _FUSED[getattr(aten, _name)] = _lse_index
_SOFTMAX = {aten._softmax, aten._safe_softmax}


def _by_name(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


class AttentionCapture(TorchDispatchMode):
    """Sees the attention kernel's call while it is on, for one forward of one attention module.

    Args:
        batch: number of images of the forward.
        tokens: number of tokens of a sequence.

    ``call`` is the AttentionCall afterwards, or None if no attention over ``tokens`` tokens was seen.

    Raises:
        ValueError: if attention runs twice, with a causal mask, or with fewer key heads than query heads.
    """

    def __init__(self, batch: int, tokens: int) -> None:
        super().__init__()
        self.batch = batch
        self.tokens = tokens
        self.call: AttentionCall | None = None
        self._product: tuple[Tensor, Tensor] | None = None
        self._pattern: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet in _FUSED:
            return self._fused(func, packet, args, kwargs)
        out = func(*args, **kwargs)
        if packet is aten._native_multi_head_attention:
            self._native(_by_name(func, args, kwargs))
        if packet is aten.bmm:
            if self._pattern is not None and args[0].shape[-1] == self.tokens:
                self._explicit(args[1])
            self._product = (args[0], args[1])
        elif packet in _SOFTMAX and out.shape[-2:] == (self.tokens, self.tokens) and self._product is not None:
            self._pattern = out
        return out

    def _keep(self, call: AttentionCall) -> None:
        if self.call is not None:
            raise ValueError("attention ran twice inside one attention module; tokenlens expects one call a block")
        self.call = call

    def _fused(self, func: Any, packet: Any, args: Any, kwargs: Any) -> Any:
        given = _by_name(func, args, kwargs)
        if "compute_log_sumexp" in given:
            # The same kernel then also writes the log-sum-exp that it has computed anyway.
            given["compute_log_sumexp"] = True
            out = func(**given)
        else:
            out = func(*args, **kwargs)
        q, k, v = given["query"], given["key"], given["value"]
        if q.shape[-2] != self.tokens:
            return out
        if given.get("is_causal"):
            raise ValueError("attention with a causal mask is not attention of a Vision Transformer; not supported")
        if k.shape[1] != q.shape[1]:
            raise ValueError(
                f"{q.shape[1]} query heads share {k.shape[1]} key heads; grouped attention is not supported"
            )
        if k.shape[-2] != self.tokens:
            raise ValueError(
                f"{self.tokens} tokens attend to {k.shape[-2]} keys; attention to anything but the tokens is "
                "not supported"
            )
        lse_index = _FUSED[packet]
        lse = None if lse_index is None else out[lse_index]
        if lse is not None:
            # The memory-efficient kernel pads T to a multiple of 32, cuDNN's adds a last axis.
            lse = lse.reshape(*lse.shape[:2], -1)[..., : self.tokens] if lse.numel() else None
        scale = given.get("scale")
        bias = given.get("attn_mask", given.get("attn_bias"))
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=torch.float32).masked_fill_(~bias, -math.inf)
        if bias is not None:
            bias = bias.expand(torch.broadcast_shapes(bias.shape, (1, 1, self.tokens, self.tokens)))
        self._keep(
            AttentionCall(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale, bias=bias, lse_BHT=lse)
        )
        return out

    def _native(self, given: dict[str, Any]) -> None:
        """``nn.MultiheadAttention``'s fast path is one kernel from tokens to tokens: project q, k, v once more."""
        x_BTD = given["query"]
        if x_BTD.shape[-2] != self.tokens:
            return
        if given.get("mask") is not None:
            raise ValueError("attention with a mask is not attention of a Vision Transformer; not supported")
        qkv_BT3D = linear(x_BTD, given["qkv_weight"], given["qkv_bias"])
        q, k, v = qkv_BT3D.unflatten(-1, (3, given["num_head"], -1)).permute(2, 0, 3, 1, 4)
        self._keep(AttentionCall(q, k, v, scale=q.shape[-1] ** -0.5))

    def _explicit(self, value: Tensor) -> None:
        assert self._pattern is not None
        assert self._product is not None
        heads = self._pattern.numel() // (self.batch * self.tokens * self.tokens)

        def by_head(x: Tensor) -> Tensor:
            return x.reshape(self.batch, heads, *x.shape[-2:])

        query, key_transposed = self._product
        self._keep(
            AttentionCall(
                by_head(query),
                by_head(key_transposed).transpose(-1, -2),
                by_head(value),
                pattern_BHTT=by_head(self._pattern),
            )
        )
        self._pattern = None


_PROPERTIES = ("shape", "dtype", "device", "is_cuda", "requires_grad")
_NO_ATTENTION = {vars(torch._C.TensorBase)[name].__get__ for name in _PROPERTIES} | {
    linear,
    dropout,
    Tensor.reshape,
    Tensor.view,
    Tensor.permute,
    Tensor.transpose,
    Tensor.unbind,
    Tensor.flatten,
    Tensor.unflatten,
    Tensor.chunk,
    Tensor.contiguous,
    Tensor.size,
    Tensor.dim,
    Tensor.to,
    Tensor.unsqueeze,
    Tensor.squeeze,
}
"""What the capture need not see, because no attention hides in it: seeing all of it costs 1 to 2 % of a ViT-S."""


class AttentionWatch(TorchFunctionMode):
    """Turns an ``AttentionCapture`` on around the calls of one attention module that may be attention."""

    def __init__(self, capture: AttentionCapture) -> None:
        super().__init__()
        self.capture = capture

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _NO_ATTENTION:
            return func(*args, **(kwargs or {}))
        with self.capture:
            return func(*args, **(kwargs or {}))
