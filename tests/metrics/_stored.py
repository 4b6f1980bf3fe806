"""Activations stored in full by plain hooks on timm's modules, as float64 NumPy arrays for the references.

Nothing here comes from tokenlens, except in ``from_recording``, for models whose attention plain hooks cannot see.
"""

# Shapes: N images, T tokens, P patches, D channels, H heads, d channels of one head.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SiteKey = tuple[int | None, str]
"""Block and site."""

Number = tuple[str, int | None, str, str, int | None]
"""Part, block, site, group, head: they identify a number of a metric."""

FEATURES = ("resid_pre", "norm1", "attn_out", "resid_mid", "norm2", "mlp_out", "resid_post", "final_norm")
RESIDUALS = ("resid_pre", "resid_mid", "resid_post")


@dataclass
class StoredNorm:
    """A norm's kind, its input (N, T, D), and its parameters (D,) for special tokens and for patches."""

    kind: str
    x: np.ndarray
    weight_prefix: np.ndarray | None
    weight_patch: np.ndarray | None
    bias_prefix: np.ndarray | None
    bias_patch: np.ndarray | None


@dataclass
class Stored:
    """All activations of a forward pass of N images.

    ``tokens`` are (N, T, D), ``heads`` (N, H, T, d), ``patterns`` (N, H, T, T) by block.
    """

    prefix: tuple[str, ...]
    grid: tuple[int, int]
    model: nn.Module
    tokens: dict[SiteKey, np.ndarray] = field(default_factory=dict)
    heads: dict[SiteKey, np.ndarray] = field(default_factory=dict)
    patterns: dict[int, np.ndarray] = field(default_factory=dict)
    norms: dict[SiteKey, StoredNorm] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return len(next(iter(self.tokens.values())))

    @property
    def groups(self) -> list[str]:
        return [group for group in ("cls", "dist", "reg") if group in self.prefix] + ["patch"]

    def positions(self, group: str) -> list[int]:
        """Return the positions of a group; in all these models the patches come last."""
        if group == "patch":
            return list(range(len(self.prefix), len(self.prefix) + self.grid[0] * self.grid[1]))
        return [position for position, name in enumerate(self.prefix) if name == group]

    def of(self, group: str, tokens: np.ndarray) -> np.ndarray:
        """Return a group's tokens, (..., tokens of the group, D)."""
        return tokens[..., self.positions(group), :]

    def cosine_sites(self) -> Iterator[tuple[int | None, str, int | None, np.ndarray]]:
        """Yield block, site, head and (N, T, channels) of every token site, and of q, k and v per head."""
        for (block, site), x in self.tokens.items():
            yield block, site, None, x
        for (block, site), x in self.heads.items():
            for head in range(x.shape[1]):
                yield block, site, head, x[:, head]

    def take(self, images: Sequence[int]) -> Stored:
        """Return the activations of some of the images."""
        keep = list(images)
        return replace(
            self,
            tokens={site: x[keep] for site, x in self.tokens.items()},
            heads={site: x[keep] for site, x in self.heads.items()},
            patterns={block: x[keep] for block, x in self.patterns.items()},
            norms={site: replace(norm, x=norm.x[keep]) for site, norm in self.norms.items()},
        )


def numpy64(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


@contextmanager
def _hooks() -> Iterator[Callable[..., None]]:
    handles = []

    def watch(module: nn.Module, store: Callable[[Tensor, Tensor], None]) -> None:
        handles.append(module.register_forward_hook(lambda _module, args, output: store(args[0], output)))

    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def store(model: Any, images: Tensor, prefix: tuple[str, ...], grid: tuple[int, int]) -> Stored:
    """Run a timm VisionTransformer of pre-norm blocks and store all activations."""
    stored = Stored(prefix, grid, model)

    def keep(block: int | None, site: str, side: int, where: Any = stored.tokens) -> Callable[[Tensor, Tensor], None]:
        return lambda x, y: where.__setitem__((block, site), numpy64((x, y)[side]))

    def keep_norm(block: int | None, site: str, module: nn.Module) -> Callable[[Tensor, Tensor], None]:
        def both(x: Tensor, y: Tensor) -> None:
            stored.tokens[block, site] = numpy64(y)
            stored.norms[block, site] = stored_norm(module, x)

        return both

    def keep_value(block: int, heads: int) -> Callable[[Tensor, Tensor], None]:
        def value(x: Tensor, qkv: Tensor) -> None:
            v = numpy64(qkv)[..., 2 * qkv.shape[-1] // 3 :]
            stored.heads[block, "v"] = v.reshape(*v.shape[:2], heads, -1).transpose(0, 2, 1, 3)

        return value

    with _hooks() as watch, torch.no_grad():
        for index, block in enumerate(model.blocks):
            watch(block, keep(index, "resid_pre", 0))
            watch(block.norm1, keep_norm(index, "norm1", block.norm1))
            watch(block.attn.q_norm, keep(index, "q", 1, stored.heads))
            watch(block.attn.k_norm, keep(index, "k", 1, stored.heads))
            watch(block.attn.qkv, keep_value(index, block.attn.num_heads))
            watch(block.ls1, keep(index, "attn_out", 1))
            watch(block.norm2, keep(index, "resid_mid", 0))
            watch(block.norm2, keep_norm(index, "norm2", block.norm2))
            watch(block.ls2, keep(index, "mlp_out", 1))
            watch(block, keep(index, "resid_post", 1))
        if not isinstance(model.norm, nn.Identity):
            watch(model.norm, keep_norm(None, "final_norm", model.norm))
        model(images)
    for index in range(len(model.blocks)):
        stored.patterns[index] = softmax_pattern(stored.heads[index, "q"], stored.heads[index, "k"])
    return stored


def from_recording(recording: Any, model: Any) -> Stored:
    """Convert a recording of a pre-norm timm model (for RoPE, which rotates q and k between hooks)."""
    stored = Stored(recording.layout.prefix, recording.layout.grid, model)
    for (block, site), x in recording.items():
        (stored.heads if site in "qkv" else stored.tokens)[block, site] = numpy64(x)
    for index, block in enumerate(model.blocks):
        for site, residual in (("norm1", "resid_pre"), ("norm2", "resid_mid")):
            stored.norms[index, site] = stored_norm(getattr(block, site), recording[index, residual])
        stored.patterns[index] = softmax_pattern(stored.heads[index, "q"], stored.heads[index, "k"])
    if (None, "final_norm") in stored.tokens:
        last = recording[len(model.blocks) - 1, "resid_post"]
        stored.norms[None, "final_norm"] = stored_norm(model.norm, last)
    return stored


def stored_norm(module: Any, x: Tensor) -> StoredNorm:
    """Store a LayerNorm or timm's RmsNorm, or a specialized one with children ``cls`` and ``patch``."""
    sides = dict(module.named_children())
    prefix, patch = (sides["cls"], sides["patch"]) if sides else (module, module)
    kind = "layer" if isinstance(prefix, nn.LayerNorm) else "rms"
    parameters = [
        None if getattr(side, name, None) is None else numpy64(getattr(side, name))
        for name in ("weight", "bias")
        for side in (prefix, patch)
    ]
    return StoredNorm(kind, numpy64(x), *parameters)


def softmax_pattern(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Compute softmax(QKᵀ/√d), (N, H, T, T)."""
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Compute all cosines of (..., I, D) and (..., J, D), as (..., I, J); 0/0 is NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        products = one @ two.swapaxes(-1, -2)
        return products / (np.linalg.norm(one, axis=-1)[..., :, None] * np.linalg.norm(two, axis=-1)[..., None, :])


def mean_off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Compute the mean over i ≠ j of (..., I, I)."""
    count = matrix.shape[-1]
    return matrix[..., ~np.eye(count, dtype=bool)].mean(-1)
