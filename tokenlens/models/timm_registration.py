"""Register specialized models, and those that come with tokenlens, in timm.

``import tokenlens.models.timm_registration`` makes these names known to timm, for scripts that create models with
``timm.create_model``: ``vit_small_patch16_224_specialized`` (each of ``SIZES`` with that suffix), ``specialized_vit``
and ``attention_bias_vit`` (which saved models of these kinds name as their architecture), ``tokenlens_tiny`` and
``tokenlens_tiny_specialized``. The functions and commands of tokenlens import this module themselves.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import timm
from timm.models import PretrainedCfg, generate_default_cfgs, load_pretrained, register_model
from torch import nn

from tokenlens.models import shipped
from tokenlens.models.attention_bias import add_attention_bias
from tokenlens.models.checkpoints import read_checkpoint
from tokenlens.specialization import Specialization, has_specialized_weights, specialize

SIZES = (
    *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
    *(f"deit3_{size}_patch16_224" for size in ("small", "base", "large")),
    *(f"vit_{size}_patch14_{kind}" for size in ("small", "base", "large") for kind in ("dinov2", "reg4_dinov2")),
)
"""timm's architectures of the paper's kinds and sizes; each is registered again with ``_specialized`` added."""

_FOLDER_KEYS = ("architecture", "tag", "file", "source")
"""Entries of timm's configuration that come from a shipped model's folder."""


@register_model
def specialized_vit(
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    architecture: str | None = None,
    specialization: str | Mapping[str, Any] | Specialization | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Create any Vision Transformer of timm, specialized.

    Args:
        pretrained: load weights: those published for the architecture, or those of a saved specialized model.
        pretrained_cfg: from timm; that of a saved specialized model names its architecture and specialization.
        pretrained_cfg_overlay: from timm.
        architecture: timm name of the standard model, with or without a weights tag.
        specialization: the name of a preset, or a mapping as from ``Specialization.to_dict``.
        kwargs: options of the standard model.

    Raises:
        ValueError: without an architecture.
    """
    config, saved = _take(pretrained_cfg, "specialized")
    if saved is not None:
        architecture, specialization = saved["architecture"], saved["specialization"]
    if architecture is None:
        raise ValueError("specialized_vit needs architecture=…, the name of a standard model of timm")
    specialized = saved is not None or has_specialized_weights((pretrained_cfg_overlay or {}).get("state_dict") or {})
    model = timm.create_model(
        architecture,
        pretrained=pretrained and not specialized,
        pretrained_cfg=config,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        **kwargs,
    )
    specialize(model, "paper" if specialization is None else specialization)
    if pretrained and specialized:
        _load_weights(model)
    return model


@register_model
def attention_bias_vit(
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    architecture: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Create a Vision Transformer of timm with an attention bias, a learned key and value in every attention.

    Args:
        pretrained: load the weights of a saved model; none are published.
        pretrained_cfg: from timm; that of a saved model names its architecture.
        pretrained_cfg_overlay: from timm.
        architecture: timm name of the standard model.
        kwargs: options of the standard model.

    Raises:
        ValueError: without an architecture, and for published weights.
    """
    config, saved = _take(pretrained_cfg, "attention_bias")
    architecture = architecture if saved is None else saved
    if architecture is None or (pretrained and saved is None):
        raise ValueError(
            "attention_bias_vit needs architecture=…, a standard model of timm, and has no published weights"
        )
    model = timm.create_model(
        architecture, pretrained_cfg=config, pretrained_cfg_overlay=pretrained_cfg_overlay, **kwargs
    )
    add_attention_bias(model)
    if pretrained:
        _load_weights(model)
    return model


def _take(pretrained_cfg: Any, key: str) -> tuple[Any, Any]:
    """Return timm's configuration without an entry of ours, and the entry; None if it has none."""
    if not isinstance(pretrained_cfg, Mapping):
        return pretrained_cfg, None
    return {name: value for name, value in pretrained_cfg.items() if name != key}, pretrained_cfg.get(key)


def _load_weights(model: Any) -> None:
    """Load weights as timm's factory does, but after the model was specialized."""
    modules = (sys.modules.get(cls.__module__) for cls in type(model).__mro__)
    adapt = next((found for module in modules if (found := getattr(module, "checkpoint_filter_fn", None))), None)
    load_pretrained(
        model,
        pretrained_cfg=model.pretrained_cfg,
        num_classes=model.num_classes,
        in_chans=getattr(model, "in_chans", 3),
        filter_fn=adapt,
    )


def _register_specialized(architecture: str) -> None:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return specialized_vit(pretrained, **{"architecture": architecture} | kwargs)

    entry_point.__name__ = entry_point.__qualname__ = f"{architecture}_specialized"
    entry_point.__doc__ = f"Create {architecture}, specialized as in the paper, or by ``specialization=…``."
    register_model(entry_point)


def _register_shipped(name: str) -> None:
    def entry_point(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        if isinstance(pretrained_cfg, str):
            raise RuntimeError(f"{name} has no weights tagged {pretrained_cfg!r}; its name goes without a tag")
        # timm's scripts pass a changed copy of `_read_config`; their changes go on top of the folder's configuration.
        given = asdict(pretrained_cfg) if isinstance(pretrained_cfg, PretrainedCfg) else dict(pretrained_cfg or {})
        overlay = {key: value for key, value in given.items() if value is not None and key not in _FOLDER_KEYS}
        overlay |= pretrained_cfg_overlay or {}
        folder = shipped.find_folder(name)
        if pretrained and not {"file", "state_dict"} & overlay.keys():
            # In float32, so that resampling for another size does not round to float16 again.
            tensors = read_checkpoint(folder / "model.safetensors").tensors
            overlay |= {"state_dict": {key: tensor.float() for key, tensor in tensors.items()}, "source": ""}
        model = timm.create_model(f"local-dir:{folder}", pretrained, pretrained_cfg_overlay=overlay, **kwargs)
        vars(model)["pretrained_cfg"].pop("state_dict", None)  # timm would keep a copy of all weights there
        return model

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = shipped.describe(name)
    register_model(entry_point)


def _read_config(name: str) -> dict[str, Any]:
    """Return the entry of a shipped model in timm's list of pretrained models."""
    folder = shipped.find_folder(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    known = {field.name for field in fields(PretrainedCfg)}
    return {key: value for key, value in config.items() if key in known} | {"file": str(folder / "model.safetensors")}


default_cfgs = generate_default_cfgs({name: _read_config(name) for name in shipped.list_names()})  # timm's name for it

for _name in SIZES:
    _register_specialized(_name)
for _name in shipped.list_names():
    _register_shipped(_name)
