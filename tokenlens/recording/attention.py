"""One call of attention, and exact rows and columns of its pattern without the T×T matrix."""

# Shapes: B images, H heads, T tokens, R chosen tokens, d channels per head.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


def as_float(x: Tensor) -> Tensor:
    """Convert half precision to float32, and leave anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def avoid_tf32(x: Tensor) -> Tensor:
    """Convert to float64 if the user allows matrix products in TF32 or bfloat16, so that ours are not rounded."""
    return x if torch.get_float32_matmul_precision() == "highest" else x.double()


def _products(x_BHTd: Tensor, y_BHTd: Tensor, positions: Sequence[int], scale: float) -> Tensor:
    """Compute the inner products of all x with the y at some positions, (B, H, T, R)."""
    x_BHTd = as_float(x_BHTd)
    chosen = (as_float(y_BHTd[..., position : position + 1, :]) * scale for position in positions)
    return torch.stack([torch.linalg.vecdot(x_BHTd, y_BH1d) for y_BH1d in chosen], dim=-1)


@dataclass
class AttentionCall:
    """The arguments of an attention kernel, and its log-sum-exp if it returned one.

    ``bias`` is added to the scores. ``pattern_BHTT`` is set if no fused kernel ran; q and k may then already carry the
    scale or a part of it. ``learned`` are the key and value of an attention bias, (B, H, 1, d) each. Rows are of the
    tokens: with an attention bias they sum to less than 1, the rest is ``bias_mass()``; ``bias`` and ``pattern_BHTT``
    have a last column for it.
    """

    q_BHTd: Tensor
    k_BHTd: Tensor
    v_BHTd: Tensor
    scale: float = 1.0
    bias: Tensor | None = None
    lse_BHT: Tensor | None = None
    pattern_BHTT: Tensor | None = None
    learned: tuple[Tensor, Tensor] | None = None

    def over_all_keys(self) -> AttentionCall:
        """Return the call with the learned key and value as those of a last token; the same call if there are none."""
        if self.learned is None:
            return self
        k, v = (torch.cat(pair, dim=-2) for pair in zip((self.k_BHTd, self.v_BHTd), self.learned, strict=True))
        return replace(self, k_BHTd=k, v_BHTd=v, learned=None)

    def bias_mass(self) -> Tensor:
        """Return the attention of every token to the learned key of a call that has one, (B, H, T)."""
        return self.over_all_keys().columns([self.k_BHTd.shape[-2]]).squeeze(-1)

    def rows(self, positions: Sequence[int]) -> Tensor:
        """Return the attention of the tokens at ``positions`` to every token, (B, H, R, T), in O(R·T·d)."""
        if self.learned is not None:
            return self.over_all_keys().rows(positions)[..., :-1]
        if self.pattern_BHTT is not None:
            return as_float(self.pattern_BHTT[..., list(positions), :])
        scores_BHRT = _products(self.k_BHTd, self.q_BHTd, positions, self.scale).mT
        if self.bias is not None:
            scores_BHRT = scores_BHRT + self.bias[..., list(positions), :]
        return scores_BHRT.softmax(-1)

    def columns(self, positions: Sequence[int]) -> Tensor:
        """Return the attention of every token to those at ``positions``, (B, H, T, R), in O(R·T·d) with ``lse_BHT``."""
        if self.learned is not None:
            return self.over_all_keys().columns(positions)
        if self.pattern_BHTT is not None:
            return as_float(self.pattern_BHTT[..., list(positions)])
        if self.lse_BHT is None:
            self.lse_BHT = self.log_sum_exp()
        scores_BHTR = _products(self.q_BHTd, self.k_BHTd, positions, self.scale)
        if self.bias is not None:
            scores_BHTR = scores_BHTR + self.bias[..., list(positions)]
        return (scores_BHTR - self.lse_BHT.unsqueeze(-1)).exp()

    def log_sum_exp(self, rows_at_once: int = 128) -> Tensor:
        """Compute log Σ_j exp(q_i·k_j·scale + bias_ij) for every query i, (B, H, T), as flash kernels return it."""
        blocks = self._score_blocks(rows_at_once)
        return torch.cat([scores.logsumexp(-1) for _, scores in blocks], dim=-1).to(as_float(self.q_BHTd[:0]).dtype)

    def _score_blocks(self, rows_at_once: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield q·Kᵀ·scale + bias as ``row_blocks`` yields the pattern."""
        # Contiguous: with a strided K this takes twice as long on a ViT-S.
        k_BHdT = avoid_tf32(as_float(self.k_BHTd)).transpose(-1, -2).contiguous()
        for start in range(0, self.q_BHTd.shape[-2], rows_at_once):
            q_BHRd = avoid_tf32(as_float(self.q_BHTd[..., start : start + rows_at_once, :]))
            rows = slice(start, start + q_BHRd.shape[-2])
            scores_BHRT = (q_BHRd * self.scale) @ k_BHdT
            yield rows, scores_BHRT if self.bias is None else scores_BHRT + self.bias[..., rows, :]

    def row_blocks(self, rows_at_once: int = 32) -> Iterator[tuple[slice, Tensor]]:
        """Yield the pattern in blocks of rows: their indices, and (B, H, rows_at_once, T), or fewer at the end.

        Cost O(T²·d), memory B·H·rows_at_once·T.
        """
        if self.learned is not None:
            yield from ((rows, x[..., :-1]) for rows, x in self.over_all_keys().row_blocks(rows_at_once))
            return
        if self.pattern_BHTT is None:
            dtype = as_float(self.q_BHTd[:0]).dtype
            for rows, scores_BHRT in self._score_blocks(rows_at_once):
                yield rows, scores_BHRT.softmax(-1).to(dtype)
            return
        for start in range(0, self.pattern_BHTT.shape[-2], rows_at_once):
            pattern_BHRT = as_float(self.pattern_BHTT[..., start : start + rows_at_once, :])
            yield slice(start, start + pattern_BHRT.shape[-2]), pattern_BHRT

    def pattern(self) -> Tensor:
        """Return the whole pattern, (B, H, T, T), for few images: its size is quadratic in the number of tokens."""
        if self.pattern_BHTT is not None:
            return self.pattern_BHTT[..., : self.k_BHTd.shape[-2]]
        return next(self.row_blocks(self.q_BHTd.shape[-2]))[1]


def join_heads(calls: Sequence[AttentionCall]) -> AttentionCall:
    """Join the heads of attentions that run side by side on the same tokens, with one scale and without a bias."""
    first = calls[0]
    if len(calls) == 1:
        return first
    if any(call.bias is not None or call.scale != first.scale for call in calls):
        raise ValueError("the heads of parallel attentions with a bias or with scales of their own cannot be joined")
    names = ("q_BHTd", "k_BHTd", "v_BHTd", "lse_BHT", "pattern_BHTT")
    parts = {name: [getattr(call, name) for call in calls] for name in names if getattr(first, name) is not None}
    joined: dict[str, Any] = {name: torch.cat(tensors, dim=1) for name, tensors in parts.items()}
    return replace(first, **joined)
