"""How much attention and MLP change the residual, per token group."""
# Shapes: B images, T tokens, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics.base import UpdateMetric, Values
from tokenlens.reduction.summaries import UpdateSummary
from tokenlens.tokens import TokenLayout


def update_ratio(update_BTD: Tensor, residual_BTD: Tensor) -> Tensor:
    """‖update‖/‖residual‖ of each token, (B, T), ≥ 0."""
    return update_BTD.norm(dim=-1) / residual_BTD.norm(dim=-1)


def group_mean(values_BT: Tensor, layout: TokenLayout, group: str) -> Tensor:
    """Mean over one group's tokens of a number per token."""
    if group == "patch":
        return values_BT[..., layout.patch_slice].mean(-1)
    return values_BT[..., list(layout.positions(group))].mean(-1)


class UpdateRatio(UpdateMetric):
    """‖attn_out‖/‖resid_pre‖ and ‖mlp_out‖/‖resid_mid‖, and the cosine of update and residual; group means."""

    title = "update over residual"
    unit = {"ratio": "ratio", "cosine": "cosine"}  # noqa: RUF012

    def per_image(self, summary: UpdateSummary) -> Values:
        """From norms and inner products of each token."""
        layout = summary.layout
        ratio = summary.update_norms / summary.residual_norms
        cosine = summary.product / (summary.update_norms * summary.residual_norms)
        values = {("ratio", group): group_mean(ratio, layout, group) for group in layout.groups}
        return values | {("cosine", group): group_mean(cosine, layout, group) for group in layout.groups}
