"""Reductions in Triton for a GPU, which read each activation once, in its own precision."""

# Shapes: B images, T tokens, P patches, R prefix tokens, K sums over patches, S stages of a norm, D channels, H heads,
# d channels per head. In the kernels C is D or d, padded to a power of two.

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from tokenlens.families import NormParameters
from tokenlens.recording.attention import AttentionCall
from tokenlens.reduction.kernels import ReductionKernels, TokenOutputs
from tokenlens.tokens import TokenLayout

_READABLE = (torch.float32, torch.float16, torch.bfloat16)

_PROGRAMS = 256
"""Programs that occupy a GPU: two for each of about 130 multiprocessors."""

_SMALLEST_TILE, _LARGEST_TILE = 32, 256
"""Tokens that one program reads; sums of more than 256 in float32 would lose digits."""


@triton.jit
def _token_kernel(  # type: ignore[no-untyped-def]
    x_ptr, other_ptr, mean_ptr, weight_ptr,
    norms_ptr, rows_ptr, sums_ptr, magnitudes_ptr, stages_ptr, products_ptr, lengths_ptr,
    heads, x_image, x_head, x_token, x_channel, other_image, other_token, other_channel,
    sums_image, magnitudes_image, stages_image, sums_tile, tokens, first_patch, patches, tile_tokens,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, UNIT: tl.constexpr, PLAIN: tl.constexpr, STAGES: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Reduce the tokens of one tile of one image (or head); every pointer but the first may be None.

    Sums over patches (``sums_ptr``, ``magnitudes_ptr``, ``stages_ptr``) are those of the tile.
    """
    image = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    x_ptr += (image // heads) * x_image + (image % heads) * x_head
    c_C = tl.arange(0, BLOCK_C)
    in_C = c_C < CHANNELS
    unit_TC = tl.full((BLOCK_T, BLOCK_C), 0.0, tl.float32)
    plain_TC = tl.full((BLOCK_T, BLOCK_C), 0.0, tl.float32)
    magnitude_TC = tl.full((BLOCK_T, BLOCK_C), 0.0, tl.float32)
    centred_sum_TC = tl.full((BLOCK_T, BLOCK_C), 0.0, tl.float32)
    weighted_sum_TC = tl.full((BLOCK_T, BLOCK_C), 0.0, tl.float32)
    if weight_ptr is not None:
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
        if norms_ptr is not None:
            norm_T = tl.sqrt(tl.sum(x_TC * x_TC, axis=1))
            tl.store(norms_ptr + image * tokens + t_T, norm_T, mask=in_T)
            if UNIT >= 0:
                unit_TC += patch_TC * (1.0 / tl.where(patch_T, norm_T, 1.0))[:, None]
        if rows_ptr is not None:
            row_T = tl.where(t_T < first_patch, t_T, t_T - patches)
            row_ptr_TC = rows_ptr + (image * ROWS + row_T[:, None]) * CHANNELS + c_C[None, :]
            tl.store(row_ptr_TC, x_TC, mask=in_TC & (patch_T == 0)[:, None])
        if PLAIN >= 0:
            plain_TC += patch_TC
        if magnitudes_ptr is not None:
            magnitude_TC += tl.abs(patch_TC)
        if products_ptr is not None:
            from_TC = other_ptr + image * other_image + t_T[:, None] * other_token + c_C[None, :] * other_channel
            other_TC = tl.load(from_TC, mask=in_TC, other=0.0).to(tl.float32)
            tl.store(products_ptr + image * tokens + t_T, tl.sum(x_TC * other_TC, axis=1), mask=in_T)
        if stages_ptr is not None:
            centred_TC = patch_TC
            if mean_ptr is not None:
                mean_T = tl.load(mean_ptr + image * tokens + t_T, mask=in_T, other=0.0)
                centred_TC = tl.where(patch_T[:, None] & in_C[None, :], x_TC - mean_T[:, None], 0.0)
            length_T = tl.sqrt(tl.sum(centred_TC * centred_TC, axis=1))
            length_ptr_T = lengths_ptr + image * STAGES * patches + t_T - first_patch
            tl.store(length_ptr_T, length_T, mask=patch_T)
            centred_sum_TC += centred_TC * (1.0 / tl.where(patch_T, length_T, 1.0))[:, None]
            if weight_ptr is not None:
                weighted_TC = centred_TC * weight_C[None, :]
                length_T = tl.sqrt(tl.sum(weighted_TC * weighted_TC, axis=1))
                tl.store(length_ptr_T + patches, length_T, mask=patch_T)
                weighted_sum_TC += centred_TC * (1.0 / tl.where(patch_T, length_T, 1.0))[:, None]
    if UNIT >= 0:
        sums_ptr_C = sums_ptr + image * sums_image + tile * sums_tile + UNIT * CHANNELS + c_C
        tl.store(sums_ptr_C, tl.sum(unit_TC, axis=0), mask=in_C)
    if PLAIN >= 0:
        sums_ptr_C = sums_ptr + image * sums_image + tile * sums_tile + PLAIN * CHANNELS + c_C
        tl.store(sums_ptr_C, tl.sum(plain_TC, axis=0), mask=in_C)
    if magnitudes_ptr is not None:
        sums_ptr_C = magnitudes_ptr + image * magnitudes_image + tile * sums_tile + c_C
        tl.store(sums_ptr_C, tl.sum(magnitude_TC, axis=0), mask=in_C)
    if stages_ptr is not None:
        sums_ptr_C = stages_ptr + image * stages_image + tile * sums_tile + c_C
        tl.store(sums_ptr_C, tl.sum(centred_sum_TC, axis=0), mask=in_C)
        if weight_ptr is not None:
            tl.store(sums_ptr_C + CHANNELS, tl.sum(weighted_sum_TC, axis=0), mask=in_C)


@triton.jit
def _tiles_kernel(  # type: ignore[no-untyped-def]
    tiles_ptr, sums_ptr, magnitudes_ptr, stages_ptr, sums_image, tiles,
    CHANNELS: tl.constexpr, SUMS: tl.constexpr, MAGNITUDES: tl.constexpr, STAGES: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Add up one of the sums of one image (or head) over its tiles, (images, tiles, SUMS + MAGNITUDES + STAGES, D)."""
    image = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1)
    tile_T, c_C = tl.arange(0, 8), tl.arange(0, BLOCK_C)
    in_C = c_C < CHANNELS
    sum_TC = tl.full((8, BLOCK_C), 0.0, tl.float32)
    for start in range(0, tiles, 8):
        row_T = (image * tiles + start + tile_T) * (SUMS + MAGNITUDES + STAGES) + k
        in_TC = (start + tile_T < tiles)[:, None] & in_C[None, :]
        sum_TC += tl.load(tiles_ptr + row_T[:, None] * CHANNELS + c_C[None, :], mask=in_TC, other=0.0)
    sum_C = tl.sum(sum_TC, axis=0)
    if k < SUMS:
        tl.store(sums_ptr + image * sums_image + k * CHANNELS + c_C, sum_C, mask=in_C)
    elif k < SUMS + MAGNITUDES:
        tl.store(magnitudes_ptr + image * CHANNELS + c_C, sum_C, mask=in_C)
    else:
        stage = k - SUMS - MAGNITUDES
        tl.store(stages_ptr + (image * STAGES + stage) * CHANNELS + c_C, sum_C, mask=in_C)


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

    def reduce_tokens(
        self, x: Tensor, sums: tuple[str, ...] = (), norms: Tensor | None = None, rows: Tensor | None = None,
        magnitudes: Tensor | None = None, other: Tensor | None = None, products: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Reduce tokens as ``ReductionKernels`` does, in one pass over them."""
        if _readable(x, other) and (other is None or x.dim() == 3):
            _reduce(self.layout, x, sums, TokenOutputs(norms, rows, magnitudes), other=other, products=products)
        else:
            super().reduce_tokens(x, sums, norms, rows, magnitudes, other, products)

    def reduce_norm(
        self, x_BTD: Tensor, y_BTD: Tensor, parameters: NormParameters, mean_BT: Tensor | None, rstd_BT: Tensor | None,
        lengths_BSP: Tensor, sums_BSD: Tensor, sums: tuple[str, ...], before: TokenOutputs, after: TokenOutputs,
    ) -> None:  # fmt: skip
        """Reduce a norm as ``ReductionKernels`` does, in one pass over its input and one over its output."""
        weight_D = parameters.weight_patch
        if not _readable(x_BTD, mean_BT, weight_D) or (weight_D is not None and weight_D.shape != x_BTD.shape[-1:]):
            super().reduce_norm(x_BTD, y_BTD, parameters, mean_BT, rstd_BT, lengths_BSP, sums_BSD, sums, before, after)
            return
        mean, weight = (None if x is None else x.contiguous() for x in (mean_BT, weight_D))
        _reduce(self.layout, x_BTD, sums, before, mean=mean, weight=weight, lengths=lengths_BSP, stages=sums_BSD)
        self.reduce_tokens(y_BTD, sums, *after)

    def reduce_attention(self, call: AttentionCall, row_BHT: Tensor | None, columns_BHR: Tensor | None) -> None:
        """Reduce an attention call as ``ReductionKernels`` does, in one pass over q and k."""
        q, k, lse = call.q_BHTd, call.k_BHTd, call.lse_BHT
        fused = call.pattern_BHTT is None and call.bias is None and q.shape == k.shape
        one_cls = len(self.layout.positions("cls")) < 2
        if lse is None or not fused or not one_cls or not _readable(q, k, lse):
            super().reduce_attention(call, row_BHT, columns_BHR)
            return
        layout = self.layout
        layout.check(q.shape[2])
        images, heads, tokens, channels = q.shape
        tile, tiles = _tiles(images * heads, tokens)
        columns = columns_BHR
        if columns is not None and tiles > 1:
            columns = columns.new_empty((images, heads, tiles, len(layout.prefix)))
        with torch.cuda.device_of(q):
            _attention_kernel[(images * heads, tiles)](
                q, k, lse, row_BHT, columns, call.scale,
                heads, *q.stride(), *k.stride(), *lse.stride(),
                layout.positions("cls")[0] if layout.has("cls") else 0,
                tokens, layout.patch_slice.start, layout.patches, tile,
                channels, len(layout.prefix), triton.next_power_of_2(max(len(layout.prefix), 1)), **_blocks(channels),
            )  # fmt: skip
        if columns is not None and tiles > 1:
            torch.sum(columns, dim=-2, out=columns_BHR)


def _reduce(
    layout: TokenLayout, x: Tensor, sums: tuple[str, ...], outputs: TokenOutputs,
    other: Tensor | None = None, products: Tensor | None = None, mean: Tensor | None = None,
    weight: Tensor | None = None, lengths: Tensor | None = None, stages: Tensor | None = None,
) -> None:  # fmt: skip
    """Launch the kernel for tokens (B, T, D) or (B, H, T, d), and add up its tiles."""
    *images, tokens, channels = x.shape
    layout.check(tokens)
    heads, programs = (images[1] if len(images) == 2 else 1), math.prod(images)
    tile, tiles = _tiles(programs, tokens)
    norms, rows, magnitudes = outputs
    sums = () if rows is None else sums
    unit, plain = (sums.index(name) if name in sums else -1 for name in ("unit_patch_sum", "patch_sum"))
    prefixes = len(layout.prefix)
    results = [None if rows is None else rows.narrow(-2, prefixes, len(sums)), magnitudes, stages]
    counts = [len(sums), int(magnitudes is not None), 0 if stages is None else stages.shape[-2]]
    strides = [(prefixes + len(sums)) * channels, channels, counts[2] * channels]  # from image to image
    blocks = _blocks(channels)
    parts, targets, part_strides = None, results, [*strides, 0]
    if tiles > 1 and any(counts):
        parts = x.new_empty((programs, tiles, sum(counts), channels), dtype=torch.float32)
        targets, part_strides = [*parts.split(counts, dim=-2)], [*[parts.stride(0)] * 3, parts.stride(1)]
        targets = [target if count else None for target, count in zip(targets, counts, strict=True)]
    with torch.cuda.device_of(x):
        _token_kernel[(programs, tiles)](
            x, other, mean, weight, norms, rows, *targets, products, lengths,
            heads, x.stride(0), x.stride(1), x.stride(-2), x.stride(-1),
            *((0, 0, 0) if other is None else other.stride()), *part_strides,
            tokens, layout.patch_slice.start, layout.patches, tile,
            channels, prefixes + len(sums), unit, plain, counts[2], **blocks,
        )  # fmt: skip
        if parts is not None:
            del blocks["BLOCK_T"]
            results = [parts if result is None else result for result in results]
            _tiles_kernel[(programs, sum(counts))](parts, *results, strides[0], tiles, channels, *counts, **blocks)


def _readable(*tensors: Tensor | None) -> bool:
    """Return whether the kernels can read all tensors: not float64, nor subclasses (DTensor) with numbers elsewhere."""
    return all(x is None or (type(x) in (Tensor, nn.Parameter) and x.dtype in _READABLE) for x in tensors)


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
