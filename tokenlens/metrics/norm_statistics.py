"""The mean and variance that each norm computes per token, per group."""
# Shapes: B images, T tokens, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics.base import NormMetric, Values
from tokenlens.reduction.summaries import NormSummary


def norm_statistics(x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (D in the denominator, without ε) of each token, as LayerNorm computes them, (B, T) each."""
    mean = x_BTD.mean(-1)
    return mean, (x_BTD - mean.unsqueeze(-1)).square().mean(-1)


class NormStatistics(NormMetric):
    """Of the input of each norm. RMSNorm has no mean; its mean square takes the variance's place."""

    title = "norm statistics"
    unit = {  # noqa: RUF012
        "mean": "activation",
        "variance": "activation²",
        "mean_square": "activation²",
        "log_std_ratio": "natural log",
    }

    def per_image(self, summary: NormSummary) -> Values:
        """Group means of μ and σ², and log(σ_cls/σ_patch) with the patches' mean log σ."""
        layout, layer = summary.layout, summary.kind == "layer"
        spread = "variance" if layer else "mean_square"
        values: dict[tuple[str, str], Tensor] = {}
        prefix_variance = summary.centred_prefix.square().mean(-1)
        for group in layout.groups:
            if group == "patch":
                mean, variance = summary.patch_mean, summary.patch_variance
            else:
                index = list(layout.prefix_index(group))
                mean, variance = summary.input.group(group).mean(-1), prefix_variance[..., index]
            if layer:
                assert mean is not None
                values["mean", group] = mean.mean(-1)
            values[spread, group] = variance.mean(-1)
        if layout.has("cls"):
            cls_variance = prefix_variance[..., layout.prefix_index("cls")[0]]
            log_ratio = (cls_variance.log() - summary.patch_variance.log().mean(-1)) / 2
            values["log_std_ratio", "cls-patch"] = log_ratio
        return values
