"""Models that are no Vision Transformers with patch tokens of a constant number: why, and what timm has instead."""

from __future__ import annotations

import re

import torch
from torch import nn

_CONVOLUTIONAL = "it is a convolutional network, which has no patch tokens"
_STAGES = "it merges its tokens from stage to stage, so that no patch token goes through all of its blocks"
_NO_ATTENTION = "it mixes its tokens without attention, so no token attends to another"
_WINDOWS = "most of its blocks attend within windows, so its patches do not attend to all others"
_VIDEO = "its tokens are patches of several frames, not of one image"

_REASONS = {
    _CONVOLUTIONAL: """
        alexnet bit byobnet convnext convnextv2 cspnet cspnext densenet detection dinov3_convnext dla dpn efficientnet
        efficientnet_v2 fasternet focalnet ghostnet googlenet hardcorenas hgnet hgnet_v2 hrnet inception inception_next
        inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout mnasnet mobilenet mobilenet_v1 mobilenet_v2
        mobilenetv2 mobilenetv3 modified_resnet nasnet nfnet pnasnet quantization rdnet regnet repghost repvit res2net
        resnest resnet resnetv2 rexnet segmentation selecsls senet shufflenetv2 sknet squeezenet starnet superpoint
        textnet tresnet vgg vovnet xception xception_aligned optical_flow""",
    _STAGES: """
        byoanet coat coatnet cpubone csatv2 cvt davit dinat edgenext efficientformer efficientformer_v2 efficientvit_mit
        efficientvit_msra fastvit gcvit glpn groupvit hiera hieradet_sam2 iformer levit lowformer maxvit maxxvit
        mobilenetv5 mobilevit mobilevitv2 mvitv2 nest nextvit pit pvt pvt_v2 sam2 sam2_video segformer shvit swiftformer
        swin swin2sr swin_transformer swin_transformer_v2 swin_transformer_v2_cr swinv2 tiny_vit twins visformer
        vitamin donut_swin""",
    _NO_ATTENTION: "convmixer efficientvim metaformer mlp_mixer poolformer sequencer",
    "its attention is between channels, so no token attends to another": "xcit",
    "it attends within neighbourhoods (outlook attention) on a finer grid in its first stage": "volo",
    "it has two sequences of patch tokens, of small and of large patches": "crossvit",
    "it has two kinds of tokens, patches and pixels within each patch": "tnt",
    "its first blocks have no CLS, and mix a gated map of positions into their attention": "convit",
    _WINDOWS: "sam sam_hq sam3 vitdet vision_transformer_sam got_ocr2 lw_detr rf_detr slanext",
    "it takes sequences of patches with positions and masks, not images": "deepseek_vit gemma4_vit qwen3_vit qwen2_vl",
    _VIDEO: "video videomae vivit timesformer vjepa2 x_clip",
}
"""The reasons, with the names of the files or folders of models in timm, torchvision, transformers and open_clip."""

_IN_TIMM = {
    "EVAVisionTransformer": "eva02_base_patch16_clip_224",
    "BEiTViT": "beit_base_patch16_224",
    "RadioModel": "vit_huge_patch16_radio_v4",
    "ViTHybrid": "vit_base_r50_s16_384",
    "vit_pytorch.vit.ViT": "vit_base_patch16_224",
    "mmpretrain.models.backbones.vision_transformer.VisionTransformer": "vit_base_patch16_224",
    "mmpretrain.models.backbones.deit.DistilledVisionTransformer": "deit_base_distilled_patch16_224",
    "pytorch_pretrained_vit.model.ViT": "vit_base_patch16_224",
}
"""Classes of other libraries, or class names, and a model of timm with the same architecture."""

_ATTENTION = re.compile(r"attention|attn|transformerencoder", re.IGNORECASE)


def explain_unsupported(model: nn.Module) -> str | None:
    """Return why a model, or the first known one inside it, cannot be analyzed by any family; None if unknown."""
    if isinstance(model, torch.jit.ScriptModule):
        return "it is TorchScript, whose modules cannot be observed; pass the original model"
    for path, module in model.named_modules():
        reason = _reason(module)
        if reason is not None:
            inside = f"its part {path} is a {type(module).__qualname__}: " if path else ""
            return inside + reason
    if not any(_ATTENTION.search(cls.__name__) for module in model.modules() for cls in type(module).__mro__):
        return "it has no attention, so it has no tokens that attend to each other"
    return None


def same_in_timm(model: nn.Module) -> str | None:
    """Return the name of a model of timm with the architecture of another library's model, if one is known."""
    for cls in type(model).__mro__:
        found = _IN_TIMM.get(f"{cls.__module__}.{cls.__qualname__}", _IN_TIMM.get(cls.__qualname__))
        if found is not None:
            return found
    return None


def _reason(module: nn.Module) -> str | None:
    for cls in type(module).__mro__:
        library, *parts = cls.__module__.split(".")
        if library not in ("timm", "torchvision", "transformers", "open_clip", "clip") or "layers" in parts:
            continue
        for reason, names in _REASONS.items():
            if {*parts, cls.__qualname__.lower()} & set(names.split()):
                return reason
        if cls.__qualname__ == "ModifiedResNet":
            return _CONVOLUTIONAL
    return None
