"""Effects of a replacement on one batch, image by image, against the untouched forward pass."""

# Shapes: B images, T tokens, P patches, D channels, K classes, S numbers that are summed over images.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenlens.metrics.base import BOUNDS, UNBOUNDED
from tokenlens.metrics.token_norm import high_norm_share
from tokenlens.reduction.summaries import to_float64
from tokenlens.tokens import TokenLayout

EffectKey = tuple[str, str, str]
"""Metric, part and group of an effect."""

UNITS = {
    "final_cosine": "cosine",
    "class_kl": "nats",
    "class_agreement": "share",
    "probe_score": "share",
    "max_patch_norm": "norm",
    "high_norm_share": "share",
    "register_norm": "norm",
    "replaced_tokens": "tokens",
}
"""The metrics of an intervention and their units."""


@dataclass(frozen=True)
class PassEnd:
    """The end of a forward pass.

    Args:
        final_BTD: the final tokens.
        logits_BK: the class scores, if the model classifies.
        norms_BP: the norms of the patches behind the last block, if a module outputs these.
        added_B: the norm of the token that was added, if one was.
        counts_BS: numbers per image whose sums give the score of a fitted probe, if there is one.
    """

    final_BTD: Tensor
    logits_BK: Tensor | None = None
    norms_BP: Tensor | None = None
    added_B: Tensor | None = None
    counts_BS: np.ndarray | None = None


def bounds_of(metric: str, part: str) -> tuple[float, float]:
    """Return the lowest and the highest possible number of a metric's part."""
    low, high = (BOUNDS | {"nats": (0.0, float("inf"))}).get(UNITS[metric], UNBOUNDED)
    return (-high, high) if part == "change" else (low, high)


def class_logits(model: nn.Module, output: Any) -> Tensor | None:
    """Return the class scores (B, K) among a model's outputs, or None if it does not classify.

    Scores are an output named ``logits``, or a tensor (B, K) of a model that states K > 0 classes. The embedding of
    an image tower that was trained with text (CLIP, SigLIP) is no class score.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits if logits.dim() == 2 and logits.shape[1] > 1 else None
    if not isinstance(output, Tensor) or output.dim() != 2:
        return None
    published = getattr(model, "pretrained_cfg", None) or {}
    if "clip" in str(published.get("architecture", "")) and _is_embedding(published):
        return None
    return output if output.shape[1] > 1 and getattr(model, "num_classes", None) == output.shape[1] else None


def _is_embedding(published: Mapping[str, Any]) -> bool:
    """Return whether timm's "classes" of a CLIP model are the channels of its image embedding."""
    return published.get("num_classes") in (512, 640, 768, 896, 1024, 1152, 1280) and "_ft_" not in str(
        published.get("tag", "")
    )


def measure_effects(
    layout: TokenLayout, before: PassEnd, after: PassEnd, replaced_BT: Tensor, everywhere: bool = False
) -> dict[EffectKey, Tensor]:
    """Return each effect, (B,); NaN for images without a token to which it applies.

    Args:
        layout: the model's tokens.
        before: the end of the untouched pass.
        after: the end of the pass with the replacement.
        replaced_BT: which tokens were replaced.
        everywhere: whether images count of which no token was replaced.

    Returns:
        ``final_cosine`` of each group (``patch`` also over the patches that were not replaced, part ``"others"``),
        ``class_kl`` KL(before ‖ after) in nats, ``class_agreement`` (1 where the top class is the same),
        ``max_patch_norm`` and ``high_norm_share`` behind the last block, after the replacement and their change,
        ``register_norm`` of an added token, and ``replaced_tokens``. All others are NaN for an image of which no token
        was replaced.
    """
    cosine_BT = token_cosines(before.final_BTD, after.final_BTD)
    logits_before_BK, logits_after_BK = before.logits_BK, after.logits_BK
    effects: dict[EffectKey, Tensor] = {}
    for group in layout.groups:
        cosine_BG = cosine_BT[:, list(layout.positions(group))]
        effects["final_cosine", "all", group] = cosine_BG.mean(-1)
    patches = list(layout.positions("patch"))
    others_BP = ~replaced_BT[:, patches]
    if not everywhere and replaced_BT[:, patches].any():
        kept_BP = torch.where(others_BP, cosine_BT[:, patches], torch.nan)
        effects["final_cosine", "others", "patch"] = kept_BP.nanmean(-1)
    if logits_before_BK is not None and logits_after_BK is not None:
        log_p_BK = functional.log_softmax(to_float64(logits_before_BK), dim=-1)
        log_q_BK = functional.log_softmax(to_float64(logits_after_BK), dim=-1)
        effects["class_kl", "", ""] = functional.kl_div(log_q_BK, log_p_BK, reduction="none", log_target=True).sum(-1)
        same_B = logits_before_BK.argmax(-1) == logits_after_BK.argmax(-1)
        effects["class_agreement", "", ""] = same_B.to(cosine_BT.dtype)
    if before.norms_BP is not None and after.norms_BP is not None:
        for metric, measure in (("max_patch_norm", largest), ("high_norm_share", high_norm_share)):
            value_B, untouched_B = (
                measure(norms_BP).to(cosine_BT.dtype) for norms_BP in (after.norms_BP, before.norms_BP)
            )
            effects[metric, "after", "patch"] = value_B
            effects[metric, "change", "patch"] = value_B - untouched_B
    if after.added_B is not None:
        effects["register_norm", "", ""] = after.added_B.to(cosine_BT.dtype)
    count_B = replaced_BT.sum(-1)
    if not everywhere:
        effects = {key: torch.where(count_B > 0, values_B, torch.nan) for key, values_B in effects.items()}
    effects["replaced_tokens", "", ""] = count_B.to(cosine_BT.dtype)
    return effects


def token_cosines(before_BTD: Tensor, after_BTD: Tensor) -> Tensor:
    """Compute the cosine of each token to itself, (B, T) float64; 1 at most."""
    cosine_BT = functional.cosine_similarity(to_float64(before_BTD), to_float64(after_BTD), dim=-1, eps=0.0)
    return cosine_BT.clamp(max=1)


def largest(norms_BP: Tensor) -> Tensor:
    """Return the largest norm of each image."""
    return norms_BP.amax(-1)
