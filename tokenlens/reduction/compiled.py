"""Calls of the reductions in C (``kernels.c``), which read each tensor once."""

# Shapes: B images, T tokens, P patches, R prefix tokens, S stages of a norm, D channels, H heads, d channels per head.

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.recording.attention import AttentionCall
from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.tokens import TokenLayout

_THREE_STRIDES = ctypes.c_int64 * 3
_TYPES = {"i": ctypes.c_int, "l": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}
_ARGUMENTS = {
    "tokenlens_tokens": "i lll p ll ll p l p p lll p p p",
    "tokenlens_stages": "i lll p ll p p p p",
    "tokenlens_attention": "i llll p p p p f p p ll p l l p p",
}
"""The type of every argument of the functions in C."""


class CompiledKernels(ReductionKernels):
    """Reductions in C for float32 on the CPU, and in torch operations for everything else."""

    def __init__(self, layout: TokenLayout, library: ctypes.CDLL) -> None:
        super().__init__(layout)
        for name, arguments in _ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = [_TYPES[letter] for letter in arguments.replace(" ", "")], None
        self._library = library
        self._prefix = (ctypes.c_int64 * len(layout.prefix))(*layout.prefix_positions)
        self._first_patch = layout.positions("patch")[0]
        # C computes one row of CLS.
        self._cls = layout.positions("cls")[0] if layout.prefix.count("cls") == 1 else -1

    def reduce_tokens(
        self,
        x: Tensor,
        sums: tuple[str, ...] = (),
        norms: Tensor | None = None,
        rows: Tensor | None = None,
        magnitudes: Tensor | None = None,
        other: Tensor | None = None,
        products: Tensor | None = None,
    ) -> None:
        """Reduce tokens as ``ReductionKernels`` does, in one pass over them."""
        if x.dim() != 3 or not _readable(x) or (other is not None and not _same_strides(x, other)):
            super().reduce_tokens(x, sums, norms, rows, magnitudes, other, products)
            return
        (images, tokens, channels), prefixes = x.shape, len(self.layout.prefix)
        _check_tokens(tokens, self.layout.tokens)
        for output, shape in (
            (norms, (images, tokens)),
            (rows, (images, prefixes + len(sums), channels)),
            (magnitudes, (images, channels)),
            (products, (images, tokens)),
        ):
            _check_output(output, shape)
        unit, plain = (prefixes + sums.index(name) if name in sums else -1 for name in ("unit_patch_sum", "patch_sum"))
        self._library.tokenlens_tokens(
            torch.get_num_threads(),
            *x.shape,
            x.data_ptr(),
            *x.stride()[:-1],
            self._first_patch,
            self.layout.patches,
            self._prefix,
            prefixes,
            _address(norms),
            _address(rows),
            prefixes + len(sums),
            unit,
            plain,
            _address(magnitudes),
            _address(other),
            _address(products),
        )

    def reduce_norm(
        self,
        patches_BPD: Tensor,
        weight_D: Tensor | None,
        means_BP: Tensor | None,
        lengths_BSP: Tensor,
        sums_BSD: Tensor,
    ) -> None:
        """Reduce the input of a norm as ``ReductionKernels`` does, in one pass over the patches."""
        images, patches, channels = patches_BPD.shape
        one_each = weight_D is None or (_readable(weight_D) and weight_D.shape == (channels,))
        if not _readable(patches_BPD) or not one_each:
            super().reduce_norm(patches_BPD, weight_D, means_BP, lengths_BSP, sums_BSD)
            return
        stages = 1 if weight_D is None else 2
        _check_output(means_BP, (images, patches))
        _check_output(lengths_BSP, (images, stages, patches))
        _check_output(sums_BSD, (images, stages, channels))
        self._library.tokenlens_stages(
            torch.get_num_threads(),
            *patches_BPD.shape,
            patches_BPD.data_ptr(),
            *patches_BPD.stride()[:-1],
            _address(weight_D),
            _address(means_BP),
            lengths_BSP.data_ptr(),
            sums_BSD.data_ptr(),
        )

    def reduce_attention(self, call: AttentionCall, row_BHT: Tensor | None, columns_BHR: Tensor | None) -> None:
        """Reduce an attention call as ``ReductionKernels`` does, in one pass over q and k."""
        q, k, lse = call.q_BHTd, call.k_BHTd, call.lse_BHT
        fused = call.pattern_BHTT is None and call.bias is None and k.shape == q.shape
        several = row_BHT is not None and self._cls < 0
        if (
            several
            or lse is None
            or not fused
            or not (_readable(q) and _readable(k) and _plain(lse))
            or lse.shape != q.shape[:3]
        ):
            super().reduce_attention(call, row_BHT, columns_BHR)
            return
        images, heads, tokens, _ = q.shape
        _check_tokens(tokens, self.layout.tokens)
        _check_output(row_BHT, (images, heads, tokens))
        _check_output(columns_BHR, (images, heads, len(self._prefix)))
        self._library.tokenlens_attention(
            torch.get_num_threads(),
            *q.shape,
            q.data_ptr(),
            _strides(q),
            k.data_ptr(),
            _strides(k),
            call.scale,
            lse.data_ptr(),
            _strides(lse),
            self._first_patch,
            self.layout.patches,
            self._prefix,
            len(self._prefix),
            self._cls,
            _address(row_BHT),
            _address(columns_BHR),
        )


def _plain(x: Tensor) -> bool:
    """Return whether C finds the numbers at ``data_ptr``, where subclasses (DTensor, FakeTensor) may not keep them."""
    return type(x) in (Tensor, nn.Parameter) and not x.is_neg() and x.dtype == torch.float32 and x.device.type == "cpu"


def _readable(x: Tensor) -> bool:
    """Return whether the tensor is plain and its channels are adjacent."""
    return _plain(x) and (x.stride(-1) == 1 or x.shape[-1] == 1)


def _same_strides(x: Tensor, other: Tensor) -> bool:
    """Return whether C can read both with the same strides; with one image, its stride is arbitrary."""
    first = 0 if len(x) > 1 else 1
    return _readable(other) and other.shape == x.shape and other.stride()[first:] == x.stride()[first:]


def _check_tokens(tokens: int, expected: int) -> None:
    if tokens != expected:
        raise ValueError(f"expected {expected} tokens, got {tokens}")


def _check_output(output: Tensor | None, shape: tuple[int, ...]) -> None:
    """Check a tensor that C writes to; unlike torch, C would write beyond its end."""
    if output is not None and not (output.shape == shape and _readable(output) and output.is_contiguous()):
        raise ValueError(
            f"expected a contiguous float32 output of shape {shape}, got {output.dtype} of shape {tuple(output.shape)}"
        )


def _strides(x: Tensor) -> Any:
    return _THREE_STRIDES(*x.stride()[:3])


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
