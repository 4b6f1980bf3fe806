"""Capture attention and norms at their kernels, with fused kernels left on.

A call of attention is seen as it reaches the kernel: after norms of queries and keys, rotary embedding and casts. In
models that compute softmax(QKᵀ) themselves, the softmax and the matrix products around it are captured.
"""

# Shapes: B images, T tokens, H heads, D channels.

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from tokenlens.recording.attention import AttentionCall, join_heads

aten = torch.ops.aten

_FUSED = {
    aten._scaled_dot_product_flash_attention_for_cpu: 1,
    aten._scaled_dot_product_flash_attention: 1,
    aten._scaled_dot_product_efficient_attention: 1,
    aten._scaled_dot_product_cudnn_attention: 1,
    aten._scaled_dot_product_fused_attention_overrideable: 1,
    aten._scaled_dot_product_attention_math_for_mps: None,
}
"""Fused kernels, with the index of the log-sum-exp among their outputs; None where it is not returned."""

_SOFTMAX = {aten._softmax, aten._safe_softmax}


def _by_name(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs


class AttentionCapture(TorchDispatchMode):
    """A mode, active during the forward pass of one attention module, that captures the call of its kernel.

    Afterwards ``call`` is the ``AttentionCall``, or None if there was no attention over ``tokens`` tokens.

    Args:
        batch: number of images.
        tokens: number of tokens per image.
        parallel: number of attentions side by side; ``call`` joins their heads.
        queries: number of querying tokens, by default all.
        biased: whether attention has a learned key and value behind those of the tokens.

    Raises:
        ValueError: inside the mode, if attention runs more often, with a causal mask, or with fewer key than query
            heads.
    """

    def __init__(
        self, batch: int, tokens: int, parallel: int = 1, queries: int | None = None, biased: bool = False
    ) -> None:
        super().__init__()
        self.batch = batch
        self.tokens = tokens
        self.keys = tokens + biased
        self.parallel = parallel
        self.queries = tokens if queries is None else queries
        self._calls: list[AttentionCall] = []
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
            if self._pattern is not None and args[0].shape[-1] == self.keys:
                self._explicit(args[1])
            self._product = (args[0], args[1])
        elif packet in _SOFTMAX and out.shape[-2:] == (self.queries, self.keys) and self._product is not None:
            self._pattern = out
        return out

    @property
    def call(self) -> AttentionCall | None:
        """The call, with the heads of parallel attentions joined; None before all of them have run."""
        return join_heads(self._calls) if len(self._calls) == self.parallel else None

    def _keep(self, call: AttentionCall) -> None:
        if len(self._calls) == self.parallel:
            often = "twice" if self.parallel == 1 else f"more than {self.parallel} times"
            raise ValueError(f"attention ran {often} in one attention module; expected one call per block")
        if self.keys > self.tokens:
            (k, learned_k), (v, learned_v) = (x.split(self.tokens, dim=-2) for x in (call.k_BHTd, call.v_BHTd))
            call = replace(call, k_BHTd=k, v_BHTd=v, learned=(learned_k, learned_v))
        self._calls.append(call)

    def _fused(self, func: Any, packet: Any, args: Any, kwargs: Any) -> Any:
        given = _by_name(func, args, kwargs)
        if "compute_log_sumexp" in given:
            # The same kernel then also returns the log-sum-exp, which it computes anyway.
            given["compute_log_sumexp"] = True
        out = func(**given)
        q, k, v = given["query"], given["key"], given["value"]
        if q.shape[-2] != self.queries:
            return out
        if given.get("is_causal"):
            raise ValueError("causal attention is not supported")
        if k.shape[1] != q.shape[1]:
            raise ValueError(
                f"{q.shape[1]} query heads share {k.shape[1]} key heads; grouped-query attention is not supported"
            )
        if k.shape[-2] != self.keys:
            raise ValueError(
                f"{self.tokens} tokens attend to {k.shape[-2]} keys; only attention among the tokens is supported, and "
                "to the one key of an attention bias that the family's layout() states"
            )
        lse_index = _FUSED[packet]
        lse = None if lse_index is None else out[lse_index]
        if lse is not None:
            # The memory-efficient kernel pads T to a multiple of 32, the one of cuDNN adds a last axis.
            lse = lse.reshape(*lse.shape[:2], -1)[..., : self.tokens] if lse.numel() else None
        scale = given.get("scale")
        bias = given.get("attn_mask", given.get("attn_bias"))
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=torch.float32).masked_fill_(~bias, -math.inf)
        if bias is not None:
            bias = bias.expand(torch.broadcast_shapes(bias.shape, (1, 1, self.tokens, self.keys)))
        self._keep(
            AttentionCall(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale, bias=bias, lse_BHT=lse)
        )
        return out

    def _native(self, given: dict[str, Any]) -> None:
        """Project q, k and v again: the fast path of ``nn.MultiheadAttention`` is one kernel from tokens to tokens."""
        x_BTD = given["query"]
        if x_BTD.shape[-2] != self.tokens:
            return
        if given.get("mask") is not None:
            raise ValueError("attention with a mask is not supported")
        qkv_BT3D = linear(x_BTD, given["qkv_weight"], given["qkv_bias"])
        q, k, v = qkv_BT3D.unflatten(-1, (3, given["num_head"], -1)).permute(2, 0, 3, 1, 4)
        self._keep(AttentionCall(q, k, v, scale=q.shape[-1] ** -0.5))

    def _explicit(self, value: Tensor) -> None:
        assert self._pattern is not None
        assert self._product is not None
        heads = self._pattern.numel() // (self.batch * self.queries * self.keys)

        def by_head(x: Tensor) -> Tensor:
            return x.reshape(self.batch, heads, *x.shape[-2:])

        q, k_transposed, v, pattern = (by_head(x) for x in (*self._product, value, self._pattern))
        self._keep(AttentionCall(q, k_transposed.transpose(-1, -2), v, pattern_BHTT=pattern))
        self._pattern = None


class NormCall(NamedTuple):
    """The statistics that a norm's kernel computed of each token, in float32, or float64 for a model in float64.

    Attributes:
        mean_BT: mean over channels; None for RMSNorm, which subtracts none.
        rstd_BT: 1/σ, with ε in it.
    """

    mean_BT: Tensor | None
    rstd_BT: Tensor


_NORMS = {aten.native_layer_norm: (1, 2), aten._fused_rms_norm: (None, 1), aten.rsqrt: (None, None)}
"""Kernels of norms, with the indices of mean and 1/σ among their outputs; RMSNorm on the CPU is made of small ones."""


class NormCapture(TorchDispatchMode):
    """A mode, active during the forward pass of one norm, that captures the statistics of its tokens.

    Afterwards ``call`` is the ``NormCall``, or None if no kernel returned the statistics of these tokens in full
    precision, or several did.

    Args:
        x_BTD: the norm's input.
    """

    def __init__(self, x_BTD: Tensor) -> None:
        super().__init__()
        self._shape, self._dtype = x_BTD.shape[:2], x_BTD.dtype
        self._calls: list[NormCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        indices = _NORMS.get(func.overloadpacket)
        if indices is None:
            return out
        mean, rstd = (None if index is None else out[index] for index in indices)
        rstd = out if rstd is None else rstd
        # A specialized norm has a second call, for few tokens. In half precision the statistics may be rounded, and so
        # may be an input that is not the norm's own.
        exact = {rstd.dtype, args[0].dtype} <= {torch.float32, torch.float64, self._dtype}
        if rstd.numel() == self._shape.numel() and exact and rstd.dtype in (torch.float32, torch.float64):
            self._calls.append(NormCall(None if mean is None else mean.view(self._shape), rstd.view(self._shape)))
        return out

    @property
    def call(self) -> NormCall | None:
        """The statistics, if exactly one kernel returned them."""
        return self._calls[0] if len(self._calls) == 1 else None
