"""Tiny models with random weights, of every kind that tokenlens supports, without downloads.

``MODELS[name]()`` returns a new model in eval mode. All its parameters are random, also those that libraries initialize
to a constant (LayerScale, norms, registers, relative position tables), and the same each time. ``images(name)`` returns
images for it, and ``KINDS[name]`` its expected properties.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tests.support import clip_layouts
from tests.support.capi_layout import EncoderDecoder
from tests.support.dino_layouts import Dinov3VisionTransformer, DinoVisionTransformer, VisionTransformer

DIM, HEADS, DEPTH = 32, 2, 2
HEAD_SCALE = (DIM // HEADS) ** -0.5


@dataclass(frozen=True)
class Kind:
    """A kind of model and its expected properties.

    Args:
        make: creates the model.
        family: name of its family.
        prefix, grid, patch_start: its token layout.
        image_size, patch_size: size of its images and patches in pixels.
        scores: the scale still to be applied to q·k if the model computes softmax(QKᵀ) itself, else None.
        blocks: number of its blocks.
        special_blocks: whether the blocks have layouts of their own, and are tested apart.
        residual: whether its blocks have all the residual sites.
        norms: whether its blocks have the sites ``norm1`` and ``norm2``.
        final_norm: whether it has this site.
    """

    make: Callable[[], nn.Module]
    family: str
    prefix: tuple[str, ...] = ("cls",)
    grid: tuple[int, int] = (4, 4)
    image_size: tuple[int, int] = (32, 32)
    patch_size: tuple[int, int] = (8, 8)
    scores: float | None = None
    blocks: int = DEPTH
    special_blocks: bool = False
    residual: bool = True
    norms: bool = True
    final_norm: bool = True
    patch_start: int | None = None


def tiny_timm(name: str, **kwargs: Any) -> nn.Module:
    """Create a timm model with two narrow blocks."""
    return timm.create_model(name, **{"depth": DEPTH, "embed_dim": DIM, "num_heads": HEADS, "num_classes": 5} | kwargs)


def _timm(name: str, **kwargs: Any) -> nn.Module:
    return tiny_timm(name, **{"img_size": 32, "patch_size": 8} | kwargs)


def _unfused(name: str) -> nn.Module:
    timm.layers.set_fused_attn(False)
    try:
        return _timm(name)
    finally:
        timm.layers.set_fused_attn(True)


_HF_SIZES = {"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 2 * DIM}
_HF_IMAGES = {"image_size": 32, "patch_size": 8}


def _hf(model: str, attention: str = "sdpa", **kwargs: Any) -> nn.Module:
    import transformers

    cls = getattr(transformers, model)
    return cls(cls.config_class(**_HF_SIZES | _HF_IMAGES | {"attn_implementation": attention} | kwargs))


def _hf_clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = _HF_SIZES | {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=_HF_SIZES | _HF_IMAGES))


def _torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=DEPTH, num_heads=HEADS, hidden_dim=DIM, mlp_dim=2 * DIM, num_classes=5
    )


def _hf_siglip2(model: str = "Siglip2VisionModel", attention: str = "sdpa") -> nn.Module:
    import transformers

    vision = _HF_SIZES | {"num_patches": 16, "patch_size": 8, "attn_implementation": attention}
    if model == "Siglip2VisionModel":
        return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**vision))
    text = _HF_SIZES | {"vocab_size": 99, "projection_size": DIM}
    config = transformers.Siglip2Config(vision_config=vision, text_config=text, attn_implementation=attention)
    return getattr(transformers, model)(config)


_REGISTERS = ("cls", "reg", "reg", "reg", "reg")
_RADIO = ("cls", "summary", "summary", *("reg",) * 7)
_POOLED = {"final_norm": False}
_naflex = partial(tiny_timm, "naflexvit_base_patch16_gap", patch_size=8)
_any_size = partial(_timm, "vit_tiny_patch16_224", dynamic_img_size=True)

KINDS: dict[str, Kind] = {
    # timm's VisionTransformer
    "timm_vit": Kind(partial(_timm, "vit_tiny_patch16_224"), "timm_vit"),
    "timm_vit_unfused": Kind(partial(_unfused, "vit_tiny_patch16_224"), "timm_vit", scores=1.0),
    "timm_vit_wide": Kind(_any_size, "timm_vit", grid=(2, 5), image_size=(16, 40)),
    "timm_vit_padded": Kind(partial(_any_size, dynamic_img_pad=True), "timm_vit", grid=(3, 4), image_size=(20, 30)),
    "timm_rms": Kind(partial(_timm, "vit_tiny_patch16_224", norm_layer="rmsnorm"), "timm_vit"),
    "timm_deit3": Kind(partial(_timm, "deit3_small_patch16_224"), "timm_vit"),
    "timm_deit_distilled": Kind(partial(_timm, "deit_tiny_distilled_patch16_224"), "timm_vit", ("cls", "dist")),
    "timm_dinov2": Kind(partial(_timm, "vit_small_patch14_dinov2"), "timm_vit"),
    "timm_dinov2_registers": Kind(partial(_timm, "vit_small_patch14_reg4_dinov2"), "timm_vit", _REGISTERS),
    "timm_clip": Kind(partial(_timm, "vit_base_patch16_clip_quickgelu_224"), "timm_vit"),
    "timm_siglip": Kind(partial(_timm, "vit_base_patch16_siglip_224"), "timm_vit", ()),
    "timm_registers_only": Kind(partial(_timm, "vit_little_patch16_reg1_gap_256"), "timm_vit", ("reg",), **_POOLED),
    "timm_gap": Kind(partial(_timm, "vit_medium_patch16_gap_256"), "timm_vit", ()),
    "timm_aimv2_rms": Kind(partial(_timm, "aimv2_large_patch14_224"), "timm_vit", ()),
    "timm_post_norm": Kind(partial(_timm, "vit_base_patch16_rpn_224"), "timm_vit", (), **_POOLED),
    "timm_parallel": Kind(
        partial(_timm, "vit_pwee_patch16_reg1_gap_256"), "timm_vit", ("reg",), residual=False, **_POOLED
    ),
    "timm_parallel_things": Kind(partial(_timm, "vit_small_patch16_18x2_224"), "timm_vit", norms=False),
    "timm_radio": Kind(partial(_timm, "vit_so400m_patch16_radio_v4"), "timm_vit", _RADIO, **_POOLED),
    "timm_hybrid": Kind(
        partial(tiny_timm, "vit_tiny_r_s16_p8_224", img_size=64),
        "timm_vit",
        grid=(2, 2),
        image_size=(64, 64),
        patch_size=(32, 32),
    ),
    # timm's Eva
    "timm_eva02": Kind(partial(_timm, "eva02_tiny_patch14_224"), "timm_eva", **_POOLED),
    "timm_eva02_unfused": Kind(partial(_unfused, "eva02_tiny_patch14_224"), "timm_eva", scores=1.0, **_POOLED),
    "timm_eva_clip": Kind(partial(_timm, "eva02_base_patch16_clip_224"), "timm_eva"),
    "timm_eva_post_norm": Kind(partial(_timm, "eva02_enormous_patch14_clip_224"), "timm_eva"),
    "timm_dinov3": Kind(partial(_timm, "vit_small_patch16_dinov3"), "timm_eva", _REGISTERS),
    "timm_rope_mixed": Kind(partial(_timm, "vit_small_patch16_rope_mixed_224"), "timm_eva"),
    "timm_rope_registers_only": Kind(
        partial(_timm, "vit_medium_patch16_rope_reg1_gap_256"), "timm_eva", ("reg",), **_POOLED
    ),
    # timm's Beit, relative position ViTs and NaFlexVit
    "timm_beit": Kind(partial(_timm, "beit_base_patch16_224"), "timm_beit", **_POOLED),
    "timm_beit_unfused": Kind(partial(_unfused, "beit_base_patch16_224"), "timm_beit", scores=1.0, **_POOLED),
    # No fused kernel takes its bias of three axes: PyTorch falls back to softmax(QKᵀ), with q and k each multiplied by
    # the root of the scale.
    "timm_beit_shared_bias": Kind(
        partial(_timm, "beitv2_base_patch16_224", use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
        "timm_beit",
        scores=1.0,
        **_POOLED,
    ),
    "timm_relpos": Kind(partial(_timm, "vit_relpos_medium_patch16_cls_224"), "timm_relpos"),
    "timm_relpos_post_norm": Kind(partial(_timm, "vit_relpos_medium_patch16_rpn_224"), "timm_relpos", ()),
    "timm_naflexvit": Kind(_naflex, "timm_naflexvit", ("reg",) * 4, (2, 5), (16, 40), **_POOLED),
    "timm_cait": Kind(partial(_timm, "cait_xxs24_224"), "timm_cait", blocks=4, special_blocks=True),
    # Hugging Face transformers
    "hf_vit": Kind(partial(_hf, "ViTModel"), "hf_vit"),
    "hf_vit_eager": Kind(partial(_hf, "ViTModel", "eager"), "hf_vit", scores=HEAD_SCALE),
    "hf_vit_classifier": Kind(partial(_hf, "ViTForImageClassification"), "hf_vit"),
    "hf_deit": Kind(partial(_hf, "DeiTModel"), "hf_vit", ("cls", "dist")),
    "hf_msn": Kind(partial(_hf, "ViTMSNModel"), "hf_vit"),
    "hf_ijepa": Kind(partial(_hf, "IJepaModel"), "hf_vit", ()),
    "hf_dinov2": Kind(partial(_hf, "Dinov2Model"), "hf_vit", grid=(2, 5), image_size=(16, 40)),
    "hf_dinov2_eager": Kind(partial(_hf, "Dinov2Model", "eager", drop_path_rate=0.1), "hf_vit", scores=HEAD_SCALE),
    "hf_dinov2_registers": Kind(partial(_hf, "Dinov2WithRegistersModel"), "hf_vit", _REGISTERS),
    "hf_dinov3": Kind(partial(_hf, "DINOv3ViTModel", num_register_tokens=4), "hf_vit", _REGISTERS),
    "hf_clip_vision": Kind(partial(_hf, "CLIPVisionModel"), "hf_vit", **_POOLED),
    "hf_clip_vision_eager": Kind(partial(_hf, "CLIPVisionModel", "eager"), "hf_vit", scores=HEAD_SCALE, **_POOLED),
    "hf_clip_vision_projection": Kind(partial(_hf, "CLIPVisionModelWithProjection"), "hf_vit", **_POOLED),
    "hf_clip": Kind(_hf_clip, "hf_vit", **_POOLED),
    "hf_siglip_vision": Kind(partial(_hf, "SiglipVisionModel"), "hf_vit", ()),
    # torchvision
    "torchvision_vit": Kind(_torchvision, "torchvision_vit"),
    # the original DINO and DINOv2 code
    "dino_hub": Kind(VisionTransformer, "dino_hub", scores=HEAD_SCALE),
    "dinov2_hub": Kind(partial(DinoVisionTransformer, chunks=2), "dino_hub", scores=1.0),
    "dinov2_hub_registers": Kind(
        partial(DinoVisionTransformer, registers=4, layer_scale=False), "dino_hub", _REGISTERS, scores=1.0
    ),
    "dinov3_hub": Kind(Dinov3VisionTransformer, "dino_hub", _REGISTERS, grid=(2, 5), image_size=(20, 41)),
    "dinov3_hub_untied": Kind(partial(Dinov3VisionTransformer, untie_cls=True), "dino_hub", _REGISTERS),
    "dinov3_hub_untied_local": Kind(partial(Dinov3VisionTransformer, untie_local=True), "dino_hub", _REGISTERS),
    "capi_rms": Kind(EncoderDecoder, "capi", ("reg",) * 4),
    # OpenAI's CLIP, whose blocks take (tokens, images, channels), and open_clip
    "clip_openai": Kind(clip_layouts.VisionTransformer, "clip", **_POOLED),
    "clip_open": Kind(partial(clip_layouts.VisionTransformer, "open_clip", layer_scale=True), "clip"),
    # more of Hugging Face transformers
    "hf_aimv2": Kind(partial(_hf, "Aimv2VisionModel"), "hf_vit", ()),
    "hf_aimv2_native": Kind(partial(_hf, "Aimv2VisionModel", is_native=True), "hf_vit", (), (2, 5), (16, 40)),
    "hf_mlcd": Kind(partial(_hf, "MLCDVisionModel"), "hf_vit", **_POOLED),
    "hf_blip": Kind(partial(_hf, "BlipVisionModel", "eager"), "hf_vit", scores=HEAD_SCALE, **_POOLED),
    "hf_beit": Kind(partial(_hf, "BeitModel", use_relative_position_bias=True), "hf_beit", **_POOLED),
    "hf_beit_shared_bias": Kind(
        partial(_hf, "BeitForMaskedImageModeling", use_shared_relative_position_bias=True, use_mean_pooling=False),
        "hf_beit",
    ),
    "hf_data2vec_beit": Kind(
        partial(_hf, "Data2VecVisionModel", use_relative_position_bias=True), "hf_beit", **_POOLED
    ),
    "hf_internvl": Kind(
        partial(
            _hf,
            "InternVLVisionModel",
            image_size=[32, 32],
            patch_size=[8, 8],
            use_absolute_position_embeddings=True,
            use_qk_norm=True,
            use_mean_pooling=False,
        ),
        "hf_beit",
    ),
    "hf_mae": Kind(partial(_hf, "ViTMAEModel"), "hf_mae"),
    "hf_siglip2_vision": Kind(_hf_siglip2, "hf_siglip2", (), (2, 5), (16, 40)),
    "hf_siglip2": Kind(partial(_hf_siglip2, "Siglip2Model", "eager"), "hf_siglip2", (), scores=HEAD_SCALE),
}


KIN: dict[str, Kind] = {
    "hf_pixio": Kind(partial(_hf, "PixioModel", n_cls_tokens=8), "hf_vit", ("cls",) * 8),
    "hf_tips2": Kind(partial(_hf, "Tipsv2VisionModel", num_register_tokens=1), "hf_vit", ("cls", "summary")),
    "hf_yolos": Kind(
        partial(_hf, "YolosModel", image_size=[32, 32], num_detection_tokens=3, use_mid_position_embeddings=False),
        "hf_vit",
        ("cls", "det", "det", "det"),
        patch_start=1,
    ),
    "hf_sapiens2": Kind(partial(_hf, "Sapiens2Model", num_register_tokens=4), "hf_vit", _REGISTERS),
    "hf_metaclip2": Kind(partial(_hf, "MetaClip2VisionModel"), "hf_vit", **_POOLED),
    "hf_chinese_clip": Kind(partial(_hf, "ChineseCLIPVisionModel"), "hf_vit", **_POOLED),
    "hf_altclip": Kind(partial(_hf, "AltCLIPVisionModel"), "hf_vit", **_POOLED),
    "hf_clipseg": Kind(partial(_hf, "CLIPSegVisionModel"), "hf_vit", **_POOLED),
    "hf_git": Kind(partial(_hf, "GitVisionModel", "eager"), "hf_vit", scores=HEAD_SCALE),
    "hf_blip2": Kind(partial(_hf, "Blip2VisionModel"), "hf_vit", **_POOLED),
    "hf_instructblip": Kind(partial(_hf, "InstructBlipVisionModel"), "hf_vit", **_POOLED),
    "hf_owlvit": Kind(partial(_hf, "OwlViTVisionModel"), "hf_vit", **_POOLED),
    "hf_owlv2": Kind(partial(_hf, "Owlv2VisionModel"), "hf_vit", **_POOLED),
    "hf_dpt": Kind(partial(_hf, "DPTModel", "eager"), "hf_vit", scores=HEAD_SCALE),
    "hf_flava": Kind(partial(_hf, "FlavaImageModel", "eager"), "hf_vit", scores=HEAD_SCALE),
    "hf_internvl_rms": Kind(
        partial(_hf, "InternVLVisionModel", image_size=[32, 32], patch_size=[8, 8], norm_type="rms_norm"),
        "hf_beit",
        **_POOLED,
    ),
    "hf_mae_pretraining": Kind(
        partial(_hf, "ViTMAEForPreTraining", decoder_hidden_size=32, decoder_num_attention_heads=2), "hf_mae"
    ),
    "hf_beit_classifier": Kind(
        partial(_hf, "BeitForImageClassification", "eager", use_relative_position_bias=True),
        "hf_beit",
        scores=HEAD_SCALE,
        **_POOLED,
    ),
}
"""More models of transformers, whose blocks have the parts of one of the above; their tests are in test_hf.py."""


def _randomize(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.clamp(-1, 1) * 0.5 + 0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def build(name: str) -> nn.Module:
    """Create the model of one kind in eval mode, without changing the global random state."""
    seed = zlib.crc32(name.encode())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _randomize((KINDS | KIN)[name].make(), seed)


MODELS: dict[str, Callable[[], nn.Module]] = {name: partial(build, name) for name in KINDS | KIN}


def images(name: str, count: int = 2) -> Tensor:
    """Return images (count, 3, height, width) of the size that the model takes, the same each time."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + 1)
    return torch.randn(count, 3, *(KINDS | KIN)[name].image_size, generator=generator)
