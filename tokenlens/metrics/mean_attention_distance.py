"""How far patches look."""
# Shapes: B images, H heads, P patches; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics.base import AttentionMetric, Subject, Values
from tokenlens.reduction.pattern import attention_distances, grid_distances
from tokenlens.reduction.summaries import PatternSummary


def mean_attention_distance(pattern_BHPP: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean over patches of Σ_j A_ij·‖i − j‖ / Σ_j A_ij in patches, (B, H), ≥ 0; 0 if each looks at itself alone.

    Dosovitskiy et al., An Image is Worth 16x16 Words (ICLR 2021), figure 7, and Raghu et al., Do Vision Transformers
    See Like Convolutional Neural Networks? (NeurIPS 2021), where it is in pixels: × the patch size. Patches that pay
    no attention to patches at all are left out.

    Args:
        pattern_BHPP: attention of patches to patches, in row-major order of the grid; rows need not sum to 1.
        grid: rows and columns of the patch grid.

    >>> import torch
    >>> mean_attention_distance(torch.ones(1, 1, 3, 3), (1, 3))
    tensor([[0.8889]])
    """
    distances_PP = grid_distances(*grid).to(pattern_BHPP.dtype).to(pattern_BHPP.device)
    return attention_distances(pattern_BHPP, distances_PP).nanmean(-1)


class MeanAttentionDistance(AttentionMetric):
    """Per head: in patches, and over what uniform attention on the same grid has, which compares across grids."""

    title = "mean attention distance"
    unit = {"distance": "patches", "over_uniform": "× uniform"}  # noqa: RUF012
    of = PatternSummary
    wanted_of_pattern = frozenset({"patch_distance"})
    opt_in = True
    cost = "a pass over the whole pattern: about 13 % of a ViT-S forward pass at 197 tokens, 40 % at 1370 (CPU)"

    def __init__(self) -> None:
        super().__init__()
        self._uniform = 0.0

    def prepare(self, subject: Subject) -> str | None:
        """With one patch there is no distance."""
        self._uniform = float(grid_distances(*subject.layout.grid).mean())
        return "the image is one single patch" if subject.layout.patches < 2 else super().prepare(subject)

    def per_image(self, summary: PatternSummary) -> Values:
        """As ``mean_attention_distance``; the hook has taken it already."""
        distance = summary.patch_distance
        assert distance is not None
        return {("distance", "patch-patch"): distance, ("over_uniform", "patch-patch"): distance / self._uniform}
