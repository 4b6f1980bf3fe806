"""Reductions in Triton for a GPU, which read each activation once, in its own precision."""

# Shapes: B images, T tokens, P patches, R prefix tokens, D channels, H heads, d channels per head. In the kernels C is
# D or d, padded to a power of two.

from __future__ import annotations

import math
from collections.abc import Collection

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from tokenlens.recording.attention import AttentionCall, as_float
from tokenlens.reduction.kernels import Reduced, ReductionKernels

_SUMS = ("unit_patch_sum", "patch_sum", "patch_abs_sum", "centred_patch_sum", "weighted_patch_sum")

_READABLE = (torch.float32, torch.float16, torch.bfloat16)

_PROGRAMS = 256
"""Programs that occupy a GPU: two for each of about 130 multiprocessors."""

_SMALLEST_TILE, _LARGEST_TILE = 32, 256
"""Tokens that one program reads; sums of more than 256 in float32 would lose digits."""


@triton.jit
def _token_kernel(  # type: ignore[no-untyped-def]
    x_ptr, other_ptr, mean_ptr, weight_ptr, norms_ptr, prefix_ptr, sums_ptr, products_ptr, lengths_ptr,
    heads, x_image, x_head, x_token, x_channel, other_image, other_token, other_channel,
    tokens, first_patch, patches, tile_tokens,
    CHANNELS: tl.constexpr, PREFIXES: tl.constexpr, SUMS: tl.constexpr, UNIT: tl.constexpr, PLAIN: tl.constexpr,
    ABS: tl.constexpr, CENTRED: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Reduce the tokens of one tile of one image (or head); ``other_ptr``, ``mean_ptr`` and ``weight_ptr`` may be None.

    ``sums_ptr`` (images, tiles, SUMS, D) takes the sums over the patches of a tile; UNIT, PLAIN, ABS, CENTRED and
    WEIGHTED are their positions among the SUMS, or −1.
    """
    image = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    x_ptr += (image // heads) * x_image + (image % heads) * x_head
    c_C = tl.arange(0, BLOCK_C)
    in_C = c_C < CHANNELS
    unit_TC = tl.full((BLOCK_T, BLOCK_C), 0.0, tl.float32)
    plain_TC = tl.full((BLOCK_T, BLOCK_C), 0.0, tl.float32)
    abs_TC = tl.full((BLOCK_T, BLOCK_C), 0.0, tl.float32)
    centred_sum_TC = tl.full((BLOCK_T, BLOCK_C), 0.0, tl.float32)
    weighted_sum_TC = tl.full((BLOCK_T, BLOCK_C), 0.0, tl.float32)
    if WEIGHTED >= 0:
        weight_C = tl.load(weight_ptr + c_C, mask=in_C, other=0.0).to(tl.float32)
    begin = tile * tile_tokens
    for start in range(begin, tl.minimum(begin + tile_tokens, tokens), BLOCK_T):
        t_T = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        in_T = t_T < tokens
        patch_T = (t_T >= first_patch) & (t_T < first_patch + patches)
        in_TC = in_T[:, None] & in_C[None, :]
        read_TC = tl.load(x_ptr + t_T[:, None] * x_token + c_C[None, :] * x_channel, mask=in_TC, other=0.0)
        x_TC = read_TC.to(tl.float32)
        patch_TC = tl.where(patch_T[:, None], x_TC, 0.0)
        norm_T = tl.sqrt(tl.sum(x_TC * x_TC, axis=1))
        tl.store(norms_ptr + image * tokens + t_T, norm_T, mask=in_T)
        row_T = tl.where(t_T < first_patch, t_T, t_T - patches)
        prefix_ptr_TC = prefix_ptr + (image * PREFIXES + row_T[:, None]) * CHANNELS + c_C[None, :]
        tl.store(prefix_ptr_TC, x_TC, mask=in_TC & (patch_T == 0)[:, None])
        if UNIT >= 0:
            unit_TC += patch_TC * (1.0 / tl.where(patch_T, norm_T, 1.0))[:, None]
        if PLAIN >= 0:
            plain_TC += patch_TC
        if ABS >= 0:
            abs_TC += tl.abs(patch_TC)
        if products_ptr is not None:
            from_TC = other_ptr + image * other_image + t_T[:, None] * other_token + c_C[None, :] * other_channel
            other_TC = tl.load(from_TC, mask=in_TC, other=0.0).to(tl.float32)
            tl.store(products_ptr + image * tokens + t_T, tl.sum(x_TC * other_TC, axis=1), mask=in_T)
        if CENTRED >= 0:
            centred_TC = patch_TC
            if mean_ptr is not None:
                mean_T = tl.load(mean_ptr + image * tokens + t_T, mask=in_T, other=0.0)
                centred_TC = tl.where(patch_T[:, None] & in_C[None, :], x_TC - mean_T[:, None], 0.0)
            length_T = tl.sqrt(tl.sum(centred_TC * centred_TC, axis=1))
            tl.store(lengths_ptr + image * patches + t_T - first_patch, length_T, mask=patch_T)
            centred_sum_TC += centred_TC * (1.0 / tl.where(patch_T, length_T, 1.0))[:, None]
            if WEIGHTED >= 0:
                weighted_TC = centred_TC * weight_C[None, :]
                length_T = tl.sqrt(tl.sum(weighted_TC * weighted_TC, axis=1))
                weighted_sum_TC += centred_TC * (1.0 / tl.where(patch_T, length_T, 1.0))[:, None]
    sums_ptr += (image * tl.num_programs(1) + tile) * SUMS * CHANNELS
    if UNIT >= 0:
        tl.store(sums_ptr + UNIT * CHANNELS + c_C, tl.sum(unit_TC, axis=0), mask=in_C)
    if PLAIN >= 0:
        tl.store(sums_ptr + PLAIN * CHANNELS + c_C, tl.sum(plain_TC, axis=0), mask=in_C)
    if ABS >= 0:
        tl.store(sums_ptr + ABS * CHANNELS + c_C, tl.sum(abs_TC, axis=0), mask=in_C)
    if CENTRED >= 0:
        tl.store(sums_ptr + CENTRED * CHANNELS + c_C, tl.sum(centred_sum_TC, axis=0), mask=in_C)
    if WEIGHTED >= 0:
        tl.store(sums_ptr + WEIGHTED * CHANNELS + c_C, tl.sum(weighted_sum_TC, axis=0), mask=in_C)


@triton.jit
def _attention_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, lse_ptr, row_ptr, columns_ptr, scale,
    heads, q_image, q_head, q_token, q_channel, k_image, k_head, k_token, k_channel, lse_image, lse_head, lse_token,
    cls, tokens, first_patch, patches, tile_tokens,
    CHANNELS: tl.constexpr, PREFIXES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Reduce the pattern of one head: attention of CLS to the tokens of one tile, and of its patches to prefix tokens.

    ``row_ptr`` (images, H, T) or ``columns_ptr`` (images, H, tiles, R) may be None.
    """
    image = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    q_ptr += (image // heads) * q_image + (image % heads) * q_head
    k_ptr += (image // heads) * k_image + (image % heads) * k_head
    lse_ptr += (image // heads) * lse_image + (image % heads) * lse_head
    c_C = tl.arange(0, BLOCK_C)
    in_C = c_C < CHANNELS
    r_R = tl.arange(0, BLOCK_R)
    sums_R = tl.full((BLOCK_R,), 0.0, tl.float32)
    if row_ptr is not None:
        query_C = tl.load(q_ptr + cls * q_token + c_C * q_channel, mask=in_C, other=0.0).to(tl.float32) * scale
        cls_lse = tl.load(lse_ptr + cls * lse_token)
    begin = tile * tile_tokens
    for start in range(begin, tl.minimum(begin + tile_tokens, tokens), BLOCK_T):
        t_T = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        in_T = t_T < tokens
        in_TC = in_T[:, None] & in_C[None, :]
        if row_ptr is not None:
            k_TC = tl.load(k_ptr + t_T[:, None] * k_token + c_C[None, :] * k_channel, mask=in_TC, other=0.0)
            scores_T = tl.sum(k_TC.to(tl.float32) * query_C[None, :], axis=1)
            tl.store(row_ptr + image * tokens + t_T, tl.exp(scores_T - cls_lse), mask=in_T)
        if columns_ptr is not None:
            patch_T = (t_T >= first_patch) & (t_T < first_patch + patches)
            q_TC = tl.load(q_ptr + t_T[:, None] * q_token + c_C[None, :] * q_channel, mask=in_TC, other=0.0)
            q_TC = q_TC.to(tl.float32)
            lse_T = tl.load(lse_ptr + t_T * lse_token, mask=in_T, other=0.0)
            for r in range(PREFIXES):
                position = tl.where(r < first_patch, r, r + patches).to(tl.int64)
                key_ptr_C = k_ptr + position * k_token + c_C * k_channel
                key_C = tl.load(key_ptr_C, mask=in_C, other=0.0).to(tl.float32) * scale
                attention_T = tl.exp(tl.sum(q_TC * key_C[None, :], axis=1) - lse_T)
                sums_R += tl.where(r_R == r, tl.sum(tl.where(patch_T, attention_T, 0.0), axis=0), 0.0)
    if columns_ptr is not None:
        part = image * tl.num_programs(1) + tile
        tl.store(columns_ptr + part * PREFIXES + r_R, sums_R / patches, mask=r_R < PREFIXES)


class TritonKernels(ReductionKernels):
    """Reductions in Triton, in float32, and in torch operations for what the kernels do not read (float64, a bias).

    Sums are over tiles of at most 256 tokens and then over the tiles, in a fixed order: no atomic additions.
    """

    def reduce_tokens(self, x: Tensor, wanted: Collection[str], other: Tensor | None = None) -> Reduced:
        """Reduce tokens as ``ReductionKernels`` does, in one pass over them (and one for Σ x²)."""
        if not self._readable(x, other) or (other is not None and x.dim() != 3):
            return super().reduce_tokens(x, wanted, other)
        return self._launch(x, wanted, other=other)

    def _stages_from_output(self, *_: object) -> None:
        """Read the input, which takes one pass."""

    def _stages_from_input(
        self, x_BTD: Tensor, mean_BT: Tensor | None, weight_D: Tensor | None, before: Collection[str]
    ) -> tuple[Reduced, Reduced]:
        """Reduce the input and the stages of a norm in one pass."""
        if not self._readable(x_BTD, weight_D) or (weight_D is not None and weight_D.shape != x_BTD.shape[-1:]):
            return super()._stages_from_input(x_BTD, mean_BT, weight_D, before)
        stages = ["centred_patch_sum", "patch_lengths", *([] if weight_D is None else ["weighted_patch_sum"])]
        mean, weight = (None if x is None else x.contiguous() for x in (mean_BT, weight_D))
        reduced = self._launch(x_BTD, {*before, *stages}, mean=mean, weight=weight)
        return reduced, {name: reduced.pop(name) for name in stages}

    def _readable(self, *tensors: Tensor | None) -> bool:
        """Return whether the kernels can read all tensors: not float64, nor a DTensor, whose numbers are elsewhere."""
        kinds = {(type(x), x.dtype) for x in tensors if x is not None}
        known = all(kind in (Tensor, nn.Parameter) and dtype in _READABLE for kind, dtype in kinds)
        return known and self.layout.contiguous

    def _launch(
        self, x: Tensor, wanted: Collection[str],
        other: Tensor | None = None, mean: Tensor | None = None, weight: Tensor | None = None,
    ) -> Reduced:  # fmt: skip
        """Launch the kernel for tokens (B, T, D) or (B, H, T, d), and add up its tiles."""
        layout, (*images, tokens, channels) = self.layout, x.shape
        layout.check(tokens)
        programs, prefixes = math.prod(images), len(layout.prefix)
        tile, tiles = _tiles(programs, tokens)
        sums = [name for name in _SUMS if name in wanted]

        def empty(*shape: int) -> Tensor:
            return x.new_empty((*images, *shape), dtype=torch.float32)

        reduced = {"norms": empty(tokens), "prefix": empty(prefixes, channels)}
        reduced |= {"product": empty(tokens)} if other is not None else {}
        reduced |= {"patch_lengths": empty(layout.patches)} if "patch_lengths" in wanted else {}
        parts = empty(tiles, len(sums), channels)
        if "patch_square_sum" in wanted:
            reduced["patch_square_sum"] = as_float(layout.patches_of(x)).square().sum(-2)
        with torch.cuda.device_of(x):
            _token_kernel[(programs, tiles)](
                x, other, mean, weight, reduced["norms"], reduced["prefix"], parts, reduced.get("product"),
                reduced.get("patch_lengths"),
                images[1] if len(images) == 2 else 1, x.stride(0), x.stride(1), x.stride(-2), x.stride(-1),
                *((0, 0, 0) if other is None else other.stride()),
                tokens, layout.patch_slice.start, layout.patches, tile,
                channels, prefixes, len(sums), *(sums.index(name) if name in sums else -1 for name in _SUMS),
                **_blocks(channels),
            )  # fmt: skip
        totals = parts.sum(-3) if tiles > 1 and sums else parts[..., 0, :, :]
        return reduced | dict(zip(sums, totals.unbind(-2), strict=True))

    def reduce_attention(self, call: AttentionCall) -> Reduced:
        """Reduce an attention call as ``ReductionKernels`` does, in one pass over q and k."""
        q, k, lse = call.q_BHTd, call.k_BHTd, call.lse_BHT
        fused = call.pattern_BHTT is None and call.bias is None and q.shape == k.shape
        one_cls = len(self.layout.positions("cls")) < 2
        if lse is None or not fused or not one_cls or not self._readable(q, k, lse):
            return super().reduce_attention(call)
        layout = self.layout
        layout.check(q.shape[2])
        images, heads, tokens, channels = q.shape
        tile, tiles = _tiles(images * heads, tokens)
        row = q.new_empty((images, heads, tokens), dtype=torch.float32) if layout.has("cls") else None
        prefixes = len(layout.prefix)
        columns = q.new_empty((images, heads, tiles, prefixes), dtype=torch.float32) if prefixes else None
        with torch.cuda.device_of(q):
            _attention_kernel[(images * heads, tiles)](
                q, k, lse, row, columns, call.scale,
                heads, *q.stride(), *k.stride(), *lse.stride(),
                layout.positions("cls")[0] if row is not None else 0,
                tokens, layout.patch_slice.start, layout.patches, tile,
                channels, prefixes, triton.next_power_of_2(max(prefixes, 1)), **_blocks(channels),
            )  # fmt: skip
        reduced = {} if row is None else {"cls_row": row}
        if columns is not None:
            reduced["patch_to_prefix"] = columns.sum(-2) if tiles > 1 else columns[..., 0, :]
        return reduced


def _blocks(channels: int) -> dict[str, int]:
    """Return the tokens that a program reads at once, the channels padded to a power of two, and its warps.

    A thread then has at most 16 numbers of each input and of each sum in registers.
    """
    block_c = max(triton.next_power_of_2(channels), 16)
    block_t = max(1, min(_SMALLEST_TILE, 4096 // block_c))
    return {"BLOCK_T": block_t, "BLOCK_C": block_c, "num_warps": max(1, min(8, block_t * block_c // 512))}


def _tiles(programs: int, tokens: int) -> tuple[int, int]:
    """Return the tokens of a tile and the number of tiles: as many as occupy a GPU, and no more to be added up."""
    tile = _LARGEST_TILE
    while tile > _SMALLEST_TILE and programs * triton.cdiv(tokens, tile) < _PROGRAMS:
        tile //= 2
    return tile, triton.cdiv(tokens, tile)
