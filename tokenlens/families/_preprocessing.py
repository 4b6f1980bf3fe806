"""The preprocessing of images that libraries store in their models, in timm's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CROP_MODES = {"shortest": "center", "longest": "border", "squash": "squash"}
"""timm's words for open_clip's ways of resizing."""


def stored_preprocessing(model: Any) -> Mapping[str, Any]:
    """Return ``mean``, ``std``, ``interpolation`` and so on of timm or open_clip; empty for other libraries'."""
    config = getattr(model, "preprocess_cfg", None)  # of open_clip's image towers
    if isinstance(config, Mapping) and {"mean", "std"} <= config.keys():
        return {key: tuple(config[key]) for key in ("mean", "std")} | {
            "interpolation": config.get("interpolation", "bicubic"),
            "crop_pct": 1.0,
            "crop_mode": _CROP_MODES.get(config.get("resize_mode", "shortest"), "center"),
        }
    published = getattr(model, "pretrained_cfg", None)
    return published if isinstance(published, Mapping) else {}
