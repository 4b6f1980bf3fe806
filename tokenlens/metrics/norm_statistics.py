"""Mean and variance that each norm computes per token, by token group."""
# Shapes: B images, T tokens, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics._per_image import NormMetric, Values
from tokenlens.reduction.summaries import NormSummary


def norm_statistics(x_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and variance (D in the denominator, without ε) of each token, as LayerNorm does, (B, T) each."""
    mean = x_BTD.mean(-1)
    return mean, (x_BTD - mean.unsqueeze(-1)).square().mean(-1)


class NormStatistics(NormMetric):
    """Statistics that a norm computes of each token of its input, mean over the tokens of a group.

    Formula: μ = ⟨x_d⟩ and σ² = ⟨(x_d − μ)²⟩ over the D channels of a token x.
    Parts:
        mean: ⟨μ⟩; not for RMSNorm.
        variance: ⟨σ²⟩, D in the denominator, without ε.
        mean_square: ⟨x_d²⟩, what RMSNorm computes in place of the variance.
        log_std_ratio: log σ_cls − ⟨log σ_patch⟩; 0 where CLS and patches have one scale.
    Reference: Ba et al. 2016 (arXiv 1607.06450); Zhang and Sennrich 2019 (arXiv 1910.07467).
    Pitfalls: A few massive channels make most of σ².
    Tested against: ``numpy.mean`` and ``numpy.var`` of stored inputs.
    """

    title = "norm statistics"
    unit = {  # noqa: RUF012
        "mean": "activation",
        "variance": "activation²",
        "mean_square": "activation²",
        "log_std_ratio": "natural log",
    }

    def per_image(self, summary: NormSummary) -> Values:
        """Average the statistics over the tokens of each group."""
        layout, spread = summary.layout, "variance" if summary.kind == "layer" else "mean_square"
        values: dict[tuple[str, str], Tensor] = {}
        prefix_variance = summary.centred_prefix.square().mean(-1)
        patch_variance = summary.patch_lengths.square() / summary.centred_patch_sum.shape[-1]
        for group in layout.groups:
            variance = patch_variance if group == "patch" else prefix_variance[..., list(layout.prefix_index(group))]
            values[spread, group] = variance.mean(-1)
            if summary.mean is not None:
                values["mean", group] = layout.mean_of(summary.mean, group, -1)
        if layout.has("cls"):
            cls_variance = prefix_variance[..., list(layout.prefix_index("cls"))]
            log_ratio = (cls_variance.log().mean(-1) - patch_variance.log().mean(-1)) / 2
            values["log_std_ratio", "cls-patch"] = log_ratio
        return values
