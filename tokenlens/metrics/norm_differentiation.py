"""How far a norm pulls CLS away from patches, split exactly into its stages: centring, γ and β."""
# Shapes: N norms, B images, P patches, D channels; "..." any leading axes.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.metrics.base import NORM_SITE_NAMES, NamedArray, NormMetric, Values, by_block
from tokenlens.metrics.patch_patch_cosine import mean_pair_cosine
from tokenlens.reduction.batch import BatchSummary
from tokenlens.reduction.summaries import NormSummary
from tokenlens.tokens import Key


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


def own_differences(cosines: dict[str, Tensor], shared: dict[str, Tensor], has_bias: bool) -> dict[str, Tensor]:
    """What it adds to γ's and β's part that CLS has weights of its own.

    Args:
        cosines: of CLS, normed with its own weights, and the patches: ``centred``, ``weighted``, ``after``.
        shared: ``weighted`` and ``after`` of a CLS that is normed with the patches' weights, and the same patches.
        has_bias: whether the norm has a β.

    gamma = gamma_shared + gamma_own, beta = beta_shared + beta_own; total_own = gamma_own + beta_own is 0 where both
    sets are equal.
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
    """CLS–patch and patch–patch cosine before and after each norm, and each stage's share of the difference.

    Where norms are specialized, CLS goes through its own γ and β and the patches through theirs; the parts ``…_shared``
    and ``…_own`` say what would be left with the patches' weights for both, and what CLS's own add to that. The arrays
    then hold γ and β of both sets.
    """

    title = "differentiation by the norm"
    unit = "cosine"
    wanted = frozenset({"unit_patch_sum"})

    def __init__(self) -> None:
        super().__init__()
        self._sets: dict[Key, dict[str, NDArray[np.float32]]] = {}
        self._specialized: set[str] = set()

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

            def cosine(cls: Tensor, unit_sum: Tensor | None) -> Tensor:
                assert unit_sum is not None
                return (cls * unit_sum).sum(-1) / (cls.norm(dim=-1) * patches)

            cosines = {name: cosine(prefix[..., index, :], unit_sum) for name, (prefix, unit_sum) in stages.items()}
            found = stage_differences(cosines, summary.kind, summary.has_bias)
            if any(summary.specialized):
                prefix = _normed(summary, index, summary.weight_prefix, summary.bias_prefix)
                patch = _normed(summary, index, summary.weight_patch, summary.bias_patch)
                ours, shared = ({name: cosine(x, stages[name][1]) for name, x in of.items()} for of in (prefix, patch))
                # Set against our own arithmetic: the model's output may be rounded to half precision.
                shared["after"] = cosines["after"] + (shared["after"] - ours["after"])
                found |= own_differences(cosines, shared, summary.has_bias)
            values |= {(part, "cls-patch"): value for part, value in found.items()}
        if patches > 1:
            cosines = {}
            for name, (_, unit_sum) in stages.items():
                assert unit_sum is not None
                cosines[name] = mean_pair_cosine(unit_sum, patches)
            for part, value in stage_differences(cosines, summary.kind, summary.has_bias).items():
                values[part, "patch-patch"] = value
        return values

    def update(self, batch: BatchSummary) -> None:
        """Take in one batch; of the first one also the weights, if any norm has two sets."""
        super().update(batch)
        stacks = batch.stacks(self.of, self.sites)
        if self._sets or not any(any(cells.summary.specialized) for cells in stacks):
            return
        for cells in stacks:
            tensors = {
                "cls_gamma": cells.summary.weight_prefix,
                "patch_gamma": cells.summary.weight_patch,
                "cls_beta": cells.summary.bias_prefix,
                "patch_beta": cells.summary.bias_patch,
            }
            for key, row in zip(cells.keys, cells.rows, strict=True):
                self._sets[key] = {
                    name: tensor[row, 0].float().cpu().numpy() for name, tensor in tensors.items() if tensor is not None
                }
                if cells.summary.specialized[row]:
                    self._specialized.add(str(key[1]))

    def merge(self, other: NormDifferentiation) -> None:  # type: ignore[override]
        """Take in what another instance has seen."""
        super().merge(other)
        self._sets = self._sets or other._sets
        self._specialized |= other._specialized

    def arrays(self) -> dict[str, NamedArray]:
        """γ and β of both sets, (block, channel), of the sites where any norm has two; equal where it has one."""
        arrays = {}
        for site in (site for site in NORM_SITE_NAMES if site in self._specialized):
            keys = [key for key in self._sets if key[1] == site]
            for name in self._sets[keys[0]]:
                if all(name in self._sets[key] for key in keys):
                    values = by_block(keys, np.stack([self._sets[key][name] for key in keys]), site)
                    assert values is not None
                    dims = ("block", "channel")[-values.ndim :]
                    arrays[f"{name}_{site}"] = NamedArray(values, dims, "weight" if "gamma" in name else "activation")
        return arrays


def _normed(summary: NormSummary, index: int, weight_N1D: Tensor | None, bias_N1D: Tensor | None) -> dict[str, Tensor]:
    """A prefix token with these weights, (N, B, D): ``weighted`` and ``after`` of ``norm_stages``."""
    centred_NBD = summary.centred_prefix[..., index, :]
    weighted_NBD = centred_NBD if weight_N1D is None else centred_NBD * weight_N1D
    after_NBD = weighted_NBD / (centred_NBD.square().mean(-1, keepdim=True) + summary.eps[:, None, None]).sqrt()
    return {"weighted": weighted_NBD, "after": after_NBD if bias_N1D is None else after_NBD + bias_N1D}
