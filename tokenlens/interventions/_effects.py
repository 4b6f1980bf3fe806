"""Effects of a replacement on one batch, image by image, against the untouched forward pass."""

# Shapes: B images, T tokens, D channels, K classes.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenlens.reduction.summaries import to_float64
from tokenlens.tokens import TokenLayout

EffectKey = tuple[str, str, str]
"""Metric, part and group of an effect."""

RANGES = {"cosine": (-1.0, 1.0), "share": (0.0, 1.0), "nats": (0.0, float("inf"))}
"""Smallest and largest value of each unit."""

UNITS = {"final_cosine": "cosine", "class_kl": "nats", "class_agreement": "share", "replaced_tokens": "tokens"}


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
    layout: TokenLayout,
    before_BTD: Tensor,
    after_BTD: Tensor,
    replaced_BT: Tensor,
    logits_before_BK: Tensor | None,
    logits_after_BK: Tensor | None,
) -> dict[EffectKey, Tensor]:
    """Return each effect, (B,); NaN for images without a token to which it applies.

    Args:
        layout: the model's tokens.
        before_BTD: final tokens of the untouched pass.
        after_BTD: final tokens with the replacement.
        replaced_BT: which tokens were replaced.
        logits_before_BK: class scores of the untouched pass, if the model classifies.
        logits_after_BK: class scores with the replacement.

    Returns:
        ``final_cosine`` of each group (``patch`` also over the patches that were not replaced, part ``"others"``),
        ``class_kl`` KL(before ‖ after) in nats, ``class_agreement`` (1 where the top class is the same), and
        ``replaced_tokens``. All effects are NaN for an image of which no token was replaced.
    """
    cosine_BT = functional.cosine_similarity(to_float64(before_BTD), to_float64(after_BTD), dim=-1, eps=0.0).clamp(
        max=1
    )
    effects: dict[EffectKey, Tensor] = {}
    for group in layout.groups:
        cosine_BG = cosine_BT[:, list(layout.positions(group))]
        effects["final_cosine", "all", group] = cosine_BG.mean(-1)
    patches = list(layout.positions("patch"))
    others_BP = ~replaced_BT[:, patches]
    if replaced_BT[:, patches].any():
        kept_BP = torch.where(others_BP, cosine_BT[:, patches], torch.nan)
        effects["final_cosine", "others", "patch"] = kept_BP.nanmean(-1)
    if logits_before_BK is not None and logits_after_BK is not None:
        log_p_BK = functional.log_softmax(to_float64(logits_before_BK), dim=-1)
        log_q_BK = functional.log_softmax(to_float64(logits_after_BK), dim=-1)
        effects["class_kl", "", ""] = functional.kl_div(log_q_BK, log_p_BK, reduction="none", log_target=True).sum(-1)
        same_B = logits_before_BK.argmax(-1) == logits_after_BK.argmax(-1)
        effects["class_agreement", "", ""] = same_B.to(cosine_BT.dtype)
    count_B = replaced_BT.sum(-1)
    effects = {key: torch.where(count_B > 0, values_B, torch.nan) for key, values_B in effects.items()}
    effects["replaced_tokens", "", ""] = count_B.to(cosine_BT.dtype)
    return effects
