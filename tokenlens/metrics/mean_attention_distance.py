"""Mean distance between patches and the patches that they attend to."""
# Shapes: B images, H heads, P patches; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics._per_image import PatternMetric, Values
from tokenlens.metrics.base import Subject
from tokenlens.reduction.pattern import attention_distances, grid_distances
from tokenlens.reduction.summaries import PatternSummary


def mean_attention_distance(pattern_BHPP: Tensor, grid: tuple[int, int]) -> Tensor:
    """Compute the mean over patches i of Σ_j A_ij·‖i − j‖ / Σ_j A_ij, in patches, (B, H), ≥ 0.

    Patches that pay no attention to patches are left out.

    Args:
        pattern_BHPP: attention of patches to patches, in row-major order of the grid; rows need not sum to 1.
        grid: rows and columns of the patch grid.

    >>> import torch
    >>> mean_attention_distance(torch.ones(1, 1, 3, 3), (1, 3))
    tensor([[0.8889]])
    """
    distances_PP = grid_distances(*grid).to(pattern_BHPP.dtype).to(pattern_BHPP.device)
    return attention_distances(pattern_BHPP, distances_PP).nanmean(-1)


class MeanAttentionDistance(PatternMetric):
    """Mean distance at which patches attend to patches, per head.

    Formula: Σ_j A_ij·‖i − j‖ / Σ_j A_ij over patches j, mean over patches i, with ‖i − j‖ between centres on the grid.
    Parts:
        distance: in widths of a patch, ≥ 0; times the patch size it is in pixels, the papers' unit.
        over_uniform: over the distance of uniform attention on the same grid; 0 is each patch alone, 1 as far as
            without preference. Use it to compare models of other patch or image sizes.
    Reference: Dosovitskiy et al. 2021 (arXiv 2010.11929), figure 7; Raghu et al. 2021 (arXiv 2108.08810).
    Pitfalls: Attention to special tokens does not count, since they have no position.
    Tested against: distances query by query on stored patterns, and closed forms for uniform attention.
    """

    title = "mean attention distance"
    unit = {"distance": "patches", "over_uniform": "× uniform"}  # noqa: RUF012
    needs = frozenset({"several_patches", "patch_distance"})
    cost = "a pass over the whole pattern: about 13 % of a ViT-S forward pass at 197 tokens, 40 % at 1370 (CPU)"

    def __init__(self) -> None:
        super().__init__()
        self._uniform = 0.0

    def prepare(self, subject: Subject) -> str | None:
        """Compute the distance of uniform attention on the grid."""
        self._uniform = float(grid_distances(*subject.layout.grid).mean())
        return super().prepare(subject)

    def per_image(self, summary: PatternSummary) -> Values:
        """Return the distances that the hook reduced the pattern to."""
        distance = summary.patch_distance
        assert distance is not None
        return {("distance", "patch-patch"): distance, ("over_uniform", "patch-patch"): distance / self._uniform}
