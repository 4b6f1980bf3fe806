"""Hugging Face transformers: ViT, DeiT, DINO, MSN, I-JEPA, DINOv2, DINOv3, CLIP, SigLIP, AIMv2, BLIP and others."""

from typing import ClassVar

from tokenlens.families._hf import HuggingFaceFamily

_LAYERNORM = ("layernorm_before", "layernorm_after", "attention")
_NORM = ("norm1", "norm2", "attention")
_LAYER_NORM = ("layer_norm1", "layer_norm2", "self_attn")


class HuggingFaceViT(HuggingFaceFamily):
    """A pre-norm vision encoder that takes images and has modules for both branches."""

    name = "hf_vit"
    parts: ClassVar = {
        ("ViTLayer", "DeiTLayer", "ViTMSNLayer", "IJepaLayer", "DPTViTLayer", "FlavaLayer"): _LAYERNORM,
        ("PixioLayer", "YolosLayer"): _LAYERNORM,
        ("Dinov2Layer", "Dinov2WithRegistersLayer", "DINOv3ViTLayer", "Tipsv2VisionLayer", "Sapiens2Layer"): _NORM,
        ("CLIPEncoderLayer", "SiglipEncoderLayer", "MetaClip2EncoderLayer", "MLCDEncoderLayer"): _LAYER_NORM,
        ("ChineseCLIPVisionLayer", "AltCLIPEncoderLayer", "CLIPSegEncoderLayer", "OwlViTEncoderLayer"): _LAYER_NORM,
        ("Owlv2EncoderLayer", "GitVisionEncoderLayer"): _LAYER_NORM,
        ("BlipEncoderLayer", "Blip2EncoderLayer", "InstructBlipEncoderLayer"): _LAYER_NORM,
        ("Aimv2EncoderLayer",): ("rms_norm1", "rms_norm2", "attention"),
    }
