"""Fall of the CLS–patch and patch–patch cosine across each norm, split exactly into centring, γ and β."""
# Shapes: N norms, B images, C class tokens, P patches, D channels; "..." any leading axes.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.metrics._per_image import NormMetric, Values
from tokenlens.metrics.base import NamedArray, by_block
from tokenlens.metrics.patch_patch_cosine import mean_pair_cosine
from tokenlens.reduction.summaries import BatchSummary, NormSummary
from tokenlens.tokens import Key


def norm_stages(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str = "layer", eps: float = 1e-6
) -> dict[str, Tensor]:
    """Compute the tokens after each stage of a norm, (..., D) each: before, centred, weighted, after.

    ``centred`` and ``weighted`` are not divided by σ: a positive number per token cannot move a cosine.
    """
    centred = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    weighted = centred if weight is None else centred * weight
    after = weighted / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return {"before": x, "centred": centred, "weighted": weighted, "after": after if bias is None else after + bias}


def stage_differences(cosines: dict[str, Tensor], kind: str, has_bias: bool) -> dict[str, Tensor]:
    """Compute the fall of a cosine across each stage; the parts add up to ``total`` = before − after.

    RMSNorm has no centring stage, and a norm without bias no β stage. β is the remainder up to the norm's real output,
    so it includes rounding in half precision.
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


def specialized_differences(cosines: dict[str, Tensor], shared: dict[str, Tensor], has_bias: bool) -> dict[str, Tensor]:
    """Split the parts of γ and β of a specialized norm into ``…_shared`` and ``…_own``.

    Args:
        cosines: ``centred``, ``weighted`` and ``after`` of CLS with the weights of ``cls``, and the patches.
        shared: ``weighted`` and ``after`` of CLS with the weights of ``patch``, and the same patches.
        has_bias: whether the norm has a β.
    """
    parts = {"total_own": shared["after"] - cosines["after"]}
    if not has_bias:
        return parts | {"gamma_shared": cosines["centred"] - shared["after"], "gamma_own": parts["total_own"]}
    parts["gamma_shared"] = cosines["centred"] - shared["weighted"]
    parts["gamma_own"] = shared["weighted"] - cosines["weighted"]
    parts["beta_shared"] = shared["weighted"] - shared["after"]
    parts["beta_own"] = parts["total_own"] - parts["gamma_own"]
    return parts


class NormDifferentiation(NormMetric):
    """CLS–patch and patch–patch cosine before and after each norm, and the fall across each of its stages.

    Formula: total = before − after = centring + gamma + beta. The split is exact: dividing by σ, a positive number
        per token, cannot move a cosine. **A positive part lowers the cosine: it pulls apart.**
    Parts:
        before: cosine of the norm's input, in [−1, 1].
        after: cosine of its output.
        total: before − after.
        centring: cos of x − cos of (x − μ); not for RMSNorm.
        gamma: cos of (x − μ) − cos of γ⊙(x − μ).
        beta: cos of γ⊙(x − μ) − cos of the output; not for norms without bias.
        gamma_shared: ``gamma`` of a CLS with the γ of the patches, in models with specialized norms only.
        gamma_own: ``gamma`` − ``gamma_shared``: the effect of a separate γ for CLS.
        beta_shared: ``beta`` of a CLS with γ and β of the patches.
        beta_own: ``beta`` − ``beta_shared``.
        total_own: ``gamma_own`` + ``beta_own``. Positive: CLS ends further from the patches than with their weights.
    Arrays: γ and β of each norm, ``gamma_norm1``, ``beta_norm1``, … (block, channel); of a site with specialized norms
        both sets, ``cls_gamma_norm1``, ``patch_gamma_norm1``, ….
    Reference: Marouani et al. 2026 (arXiv 2602.08626).
    Pitfalls: ``…_own`` is about one norm alone: the effect of training with two sets on its input is not in it.
    Tested against: cosines recomputed stage by stage in NumPy.
    """

    title = "differentiation by the norm"
    unit = "cosine"
    needs = frozenset({"unit_patch_sum"})

    def __init__(self) -> None:
        super().__init__()
        self._parameters: dict[Key, dict[str, NDArray[np.float32]]] = {}
        self._specialized: set[str] = set()

    def bounds_of(self, part: str) -> tuple[float, float]:
        """Return the bounds of a cosine, or of a difference of two."""
        return (-1.0, 1.0) if part in ("before", "after") else (-2.0, 2.0)

    def per_image(self, summary: NormSummary) -> Values:
        """Compute ``stage_differences`` from the sums of unit vectors."""
        layout, patches = summary.layout, summary.layout.patches
        has_bias = summary.parameters[0].bias_patch is not None
        weight_N1D = summary.parameter("weight_prefix")
        weighted = summary.centred_prefix * (1 if weight_N1D is None else weight_N1D.unsqueeze(-2))
        stages = {
            "before": (summary.input.prefix, summary.input.unit_patch_sum),
            "centred": (summary.centred_prefix, summary.centred_patch_sum),
            "weighted": (weighted, summary.weighted_patch_sum),
            "after": (summary.output.prefix, summary.output.unit_patch_sum),
        }
        values: dict[tuple[str, str], Tensor] = {}
        if layout.has("cls"):
            index = list(layout.prefix_index("cls"))

            def cosine(cls_NBCD: Tensor, unit_sum: Tensor | None) -> Tensor:
                """Return the mean over class tokens and patches."""
                assert unit_sum is not None
                products = (cls_NBCD * unit_sum.unsqueeze(-2)).sum(-1)
                return (products / (cls_NBCD.norm(dim=-1) * patches)).mean(-1)

            cosines = {name: cosine(prefix[..., index, :], unit_sum) for name, (prefix, unit_sum) in stages.items()}
            found = stage_differences(cosines, summary.kind, has_bias)
            if any(parameters.specialized for parameters in summary.parameters):
                centred = summary.centred_prefix[..., index, :]
                prefix, patch = _normed(centred, summary, "prefix"), _normed(centred, summary, "patch")
                separate, shared = (
                    {name: cosine(x, stages[name][1]) for name, x in tokens.items()} for tokens in (prefix, patch)
                )
                # Against our arithmetic, since the model's output may be rounded to half precision.
                shared["after"] = cosines["after"] + (shared["after"] - separate["after"])
                found |= specialized_differences(cosines, shared, has_bias)
            values |= {(part, "cls-patch"): value for part, value in found.items()}
        if patches > 1:
            cosines = {}
            for name, (_, unit_sum) in stages.items():
                assert unit_sum is not None
                cosines[name] = mean_pair_cosine(unit_sum, patches)
            for part, value in stage_differences(cosines, summary.kind, has_bias).items():
                values[part, "patch-patch"] = value
        return values

    def update(self, batch: BatchSummary) -> None:
        """Add one batch, and from the first one the weights."""
        super().update(batch)
        if self._parameters:
            return
        for stack in batch.stacks(self.summary_kind, self.chosen_sites):
            tensors = {
                "cls_gamma": stack.summary.parameter("weight_prefix"),
                "patch_gamma": stack.summary.parameter("weight_patch"),
                "cls_beta": stack.summary.parameter("bias_prefix"),
                "patch_beta": stack.summary.parameter("bias_patch"),
            }
            for row, key in enumerate(stack.keys):
                self._parameters[key] = {
                    name: tensor[row, 0].float().cpu().numpy() for name, tensor in tensors.items() if tensor is not None
                }
                if stack.summary.parameters[row].specialized:
                    self._specialized.add(str(key[1]))

    def merge(self, other: NormDifferentiation) -> None:  # type: ignore[override]
        """Add the images of another instance."""
        super().merge(other)
        self._parameters = self._parameters or other._parameters
        self._specialized |= other._specialized

    def arrays(self) -> dict[str, NamedArray]:
        """Return γ and β, (block, channel); at sites where any norm has two sets both, equal where it has one."""
        arrays = {}
        for site in dict.fromkeys(str(key[1]) for key in self._parameters):
            keys = [key for key in self._parameters if key[1] == site]
            for name in self._parameters[keys[0]]:
                own = name if site in self._specialized else name.removeprefix("patch_")
                if own.startswith("cls_") and site not in self._specialized:
                    continue
                if all(name in self._parameters[key] for key in keys):
                    values = by_block(keys, np.stack([self._parameters[key][name] for key in keys]), site)
                    assert values is not None
                    dims = ("block", "channel")[-values.ndim :]
                    arrays[f"{own}_{site}"] = NamedArray(values, dims, "weight" if "gamma" in name else "activation")
        return arrays


def _normed(centred_NBCD: Tensor, norm: NormSummary, group: str) -> dict[str, Tensor]:
    """Norm centred tokens with the weights of a group: ``weighted`` and ``after`` of ``norm_stages``, (N, B, C, D)."""
    weight_N1D, bias_N1D = (norm.parameter(f"{name}_{group}") for name in ("weight", "bias"))
    eps_N = centred_NBCD.new_tensor([parameters.eps for parameters in norm.parameters])
    weighted_NBCD = centred_NBCD if weight_N1D is None else centred_NBCD * weight_N1D.unsqueeze(-2)
    deviation_NBC1 = (centred_NBCD.square().mean(-1, keepdim=True) + eps_N[:, None, None, None]).sqrt()
    after_NBCD = weighted_NBCD / deviation_NBC1
    if bias_N1D is not None:
        after_NBCD = after_NBCD + bias_N1D.unsqueeze(-2)
    return {"weighted": weighted_NBCD, "after": after_NBCD}
