"""Specialized models in timm's saved format: what its own saving writes, so that its own loading rebuilds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from tokenlens.specialization._specialization import Specialization

GENERIC = "specialized_vit"
"""timm's entry point for any specialized architecture; a saved specialized model names it in its ``config.json``."""


def describe_for_timm(model: nn.Module, specialization: Specialization) -> None:
    """Let timm's ``save_for_hf`` and ``push_to_hf_hub`` write a configuration that rebuilds the specialized model."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping) and timm.is_model(config.get("architecture") or ""):
        saved = {"architecture": config["architecture"], "specialization": specialization.to_dict()}
        _set_config(model, {**config, "architecture": GENERIC, "specialized": saved})


def describe_as_standard(model: nn.Module) -> None:
    """Take that back."""
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping) and "specialized" in config:
        plain = {key: value for key, value in config.items() if key != "specialized"}
        _set_config(model, plain | {"architecture": config["specialized"]["architecture"]})


def _set_config(model: Any, config: dict[str, Any]) -> None:
    model.pretrained_cfg = model.default_cfg = config
