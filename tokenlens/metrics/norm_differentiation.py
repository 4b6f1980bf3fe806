"""How far a norm pulls CLS away from patches, split exactly into its stages: centring, γ and β."""
# Shapes: B images, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor

from tokenlens.metrics import NormMetric, Values
from tokenlens.metrics.patch_patch_cosine import mean_pair_cosine
from tokenlens.summaries import NormSummary


def norm_stages(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str = "layer", eps: float = 1e-6
) -> dict[str, Tensor]:
    """A norm's tokens after each of its stages, (..., D) each: before, centred, weighted, after.

    Dividing by σ is left out of ``centred`` and ``weighted``: a positive number per token cannot move a cosine.
    """
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    weighted = centred if weight is None else centred * weight
    after = weighted / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return {"before": x, "centred": centred, "weighted": weighted, "after": after if bias is None else after + bias}


def stage_differences(cosines: dict[str, Tensor], kind: str, has_bias: bool) -> dict[str, Tensor]:
    """The fall of a cosine across each stage; the parts add up to ``total`` = before − after.

    A positive part lowers the cosine (pulls apart), a negative one raises it. RMSNorm has no centring stage, and a norm
    without bias no β stage. β is what remains up to the norm's real output, so rounding in half precision counts there.
    """
    parts = {"before": cosines["before"], "after": cosines["after"]}
    if kind == "layer":
        parts["centring"] = cosines["before"] - cosines["centred"]
    if has_bias:
        parts["gamma"] = cosines["centred"] - cosines["weighted"]
        parts["beta"] = cosines["weighted"] - cosines["after"]
    else:
        parts["gamma"] = cosines["centred"] - cosines["after"]
    parts["total"] = cosines["before"] - cosines["after"]
    return parts


class NormDifferentiation(NormMetric):
    """CLS–patch and patch–patch cosine before and after each norm, and each stage's share of the difference."""

    title = "differentiation by the norm"
    unit = "cosine"

    def per_image(self, summary: NormSummary) -> Values:
        """As ``norm_stages`` and ``stage_differences``, from the sums of unit vectors that the hook took."""
        layout, patches = summary.layout, summary.layout.patches
        stages = {
            "before": (summary.input.prefix, summary.input.unit_patch_sum),
            "centred": (summary.centred_prefix, summary.centred_patch_sum),
            "weighted": (summary.weighted_prefix, summary.weighted_patch_sum),
            "after": (summary.output.prefix, summary.output.unit_patch_sum),
        }
        values: dict[tuple[str, str], Tensor] = {}
        if layout.has("cls"):
            index = layout.prefix_index("cls")[0]
            cosines = {}
            for name, (prefix, unit_sum) in stages.items():
                cls = prefix[..., index, :]
                assert unit_sum is not None
                cosines[name] = (cls * unit_sum).sum(-1) / (cls.norm(dim=-1) * patches)
            for part, value in stage_differences(cosines, summary.kind, summary.has_bias).items():
                values[part, "cls-patch"] = value
        if patches > 1:
            cosines = {}
            for name, (_, unit_sum) in stages.items():
                assert unit_sum is not None
                cosines[name] = mean_pair_cosine(unit_sum, patches)
            for part, value in stage_differences(cosines, summary.kind, summary.has_bias).items():
                values[part, "patch-patch"] = value
        return values

    wanted = frozenset({"unit_patch_sum"})
