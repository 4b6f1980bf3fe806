"""Size and direction of the updates of attention and MLP relative to the residual, by token group."""
# Shapes: B images, T tokens, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics._per_image import UpdateMetric, Values
from tokenlens.reduction.summaries import UpdateSummary


def update_ratio(update_BTD: Tensor, residual_BTD: Tensor) -> Tensor:
    """Compute ‖update‖/‖residual‖ of each token, (B, T), ≥ 0."""
    return update_BTD.norm(dim=-1) / residual_BTD.norm(dim=-1)


class UpdateRatio(UpdateMetric):
    """Update of each branch relative to the residual that it is added to, mean over the tokens of a group.

    Formula: the update is ``attn_out`` (residual ``resid_pre``) or ``mlp_out`` (residual ``resid_mid``).
    Parts:
        ratio: ‖update‖ / ‖residual‖, ≥ 0.
        cosine: cos(update, residual), in [−1, 1]; undefined for an update of length 0.
    Reference: Raghu et al. 2021 (arXiv 2108.08810), who compare the norms of branch and skip connection.
    Pitfalls: A large constant part of the residual lowers the ratio without making the update less important.
    Tested against: norms and inner products of stored tokens.
    """

    title = "update over residual"
    unit = {"ratio": "ratio", "cosine": "cosine"}  # noqa: RUF012

    def per_image(self, summary: UpdateSummary) -> Values:
        """Compute ratio and cosine from norms and inner products of each token."""
        layout = summary.layout
        ratio = summary.update_norms / summary.residual_norms
        cosine = summary.product / (summary.update_norms * summary.residual_norms)
        values = {("ratio", group): layout.mean_of(ratio, group, -1) for group in layout.groups}
        return values | {("cosine", group): layout.mean_of(cosine, group, -1) for group in layout.groups}
