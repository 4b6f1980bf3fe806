"""Recordings: the full activations of a few images."""

# Shapes: B images, T tokens, R chosen tokens, D channels, H heads, d channels per head.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokenlens.recording.attention import AttentionCall, as_float
from tokenlens.tokens import Key, TokenLayout


@dataclass
class Recording(Mapping[Key, Tensor]):
    """The activations of a few images: ``recording[block, site]`` is (B, T, D), or (B, H, T, d) at q, k and v.

    ``recording[None, "final_norm"]`` is the output of the model's final norm. Tensors are copies on the CPU, in the
    dtype that the model computed in. Where attention runs without a fused kernel, q and k may already carry its scale
    or the root of it.

    Attributes:
        patterns: attention patterns (B, H, T, T) by block, if they were asked for.
        scores: scale and bias that a fused kernel applied to the scores, by block.
        learned_keys: key of the attention bias (H, 1, d), by block, where there is one; rows of patterns then sum to
            less than 1, and the rest is the attention to it.
        block_layouts: the tokens of blocks that lack some of ``layout``, by block.
        images: the preprocessed images (B, 3, height, width), (x − ``mean``) / ``std`` of pixels in [0, 1].
        names: the images' names in their source.
        untrained: whether the model has random weights.
        source: where the images come from and which of them were used, as text.
        notes: sentences on what was left out.
        skipped: ``{"name", "reason"}`` of each image that was unreadable.
        weights: where the weights come from, and how they were adapted.
    """

    layout: TokenLayout
    model: str = ""
    tensors: dict[Key, Tensor] = field(default_factory=dict)
    patterns: dict[int, Tensor] = field(default_factory=dict)
    images: Tensor | None = None
    names: list[str] = field(default_factory=list)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    untrained: bool = False
    scores: dict[int, tuple[float, Tensor | None]] = field(default_factory=dict)
    learned_keys: dict[int, Tensor] = field(default_factory=dict)
    block_layouts: dict[int, TokenLayout] = field(default_factory=dict)
    source: str = ""
    notes: list[str] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: Key) -> Tensor:
        block, site = key
        try:
            return self.tensors[block, str(site)]
        except KeyError:
            raise KeyError(f"{key} was not recorded; recorded sites: {sorted({s for _, s in self.tensors})}") from None

    def __iter__(self) -> Iterator[Key]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def blocks(self) -> list[int]:
        """The recorded blocks, in order."""
        return sorted({block for block, _ in self.tensors if block is not None})

    def layout_of(self, block: int | None) -> TokenLayout:
        """Return the tokens of a block; None is the final norm."""
        return self.layout if block is None else self.block_layouts.get(block, self.layout)

    def attention_rows(self, block: int, image: int, positions: Sequence[int]) -> Tensor:
        """Return rows of one image's attention pattern, (H, R, T): the attention of tokens at ``positions`` to all.

        Raises:
            LookupError: if neither the block's pattern nor q and k of a fused kernel were recorded.
        """
        recorded = self.patterns.get(block, self.tensors.get((block, "q")))
        queries = self.layout.tokens if recorded is None else recorded.shape[2]
        if recorded is not None and max(positions) >= queries:
            raise LookupError(f"only the first {queries} of the tokens attend in block {block}, got {list(positions)}")
        if block in self.patterns:
            return as_float(self.patterns[block][image][:, list(positions)])
        if block not in self.scores:
            raise LookupError(
                f"the attention of block {block} was not recorded; recorded blocks: "
                f"{sorted({*self.scores, *self.patterns})}. Record the sites q and k, or use patterns=True where the "
                "model computes softmax(QKᵀ) itself"
            )
        scale, bias = self.scores[block]
        bias = None if bias is None else bias[image % len(bias)]
        q_BHTd, k_BHTd = (self[block, site][image].unsqueeze(0) for site in ("q", "k"))
        key = self.learned_keys.get(block)
        learned = None if key is None else (key.unsqueeze(0),) * 2  # values play no part
        return AttentionCall(q_BHTd, k_BHTd, k_BHTd, scale, bias, learned=learned).rows(positions).squeeze(0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, patterns and attention biases."""
        biases = [bias for _, bias in self.scores.values() if bias is not None]
        return sum(x.numel() * x.element_size() for x in (*self.tensors.values(), *self.patterns.values(), *biases))

    def __repr__(self) -> str:
        images = len(next(iter(self.tensors.values()))) if self.tensors else 0
        sites = sorted({site for _, site in self.tensors})
        return (
            f"Recording({self.model}: {images} images, blocks {self.blocks}, sites {sites}, "
            f"{len(self.patterns)} patterns, {self.nbytes / 2**20:.1f} MiB)"
        )
