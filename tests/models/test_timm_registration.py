"""timm's pretrained names, cut down to two narrow blocks: a choice in every run, all of them where slow tests run."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.support.tiny_models import tiny_timm
from tests.support.watching import hooks, watch
from tokenlens.families.base import norm_parameters

NAMES = (
    "vit_base_patch16_224",
    "vit_base_patch32_clip_448",
    "vit_large_patch14_clip_quickgelu_336",
    "vit_so400m_patch14_siglip_378",
    "vit_base_patch16_siglip_gap_224",
    "vit_giant_patch14_reg4_dinov2",
    "vit_large_patch14_reg1_tipsv2",
    "vit_base_r50_s16_224",
    "vit_medium_patch16_reg4_gap_256",
    "vit_base_patch16_rpn_224",
    "flexivit_base",
    "eva_large_patch14_196",
    "aimv2_3b_patch14_448",
    "beit3_base_patch16_224",
    "deit_base_distilled_patch16_384",
    "deit3_huge_patch14_224",
    "eva_giant_patch14_560",
    "eva02_large_patch14_448",
    "eva02_enormous_patch14_clip_224",
    "vit_7b_patch16_dinov3",
    "vit_pe_core_base_patch16_224",
    "vit_pe_spatial_large_patch14_448",
    "vit_base_patch16_rope_mixed_ape_224",
    "vit_betwixt_patch16_rope_reg4_gap_256",
    "vit_base_patch16_sapiens2",
    "beit_large_patch16_512",
    "beitv2_base_patch16_224",
    "vit_relpos_base_patch16_clsgap_224",
    "naflexvit_base_patch16_siglip",
)
DIFFERENTIAL = {"vit_dlittle_patch16_reg1_gap_256", "vit_dwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"}
MODULES = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "deit",
    "eva",
    "beit",
    "naflexvit",
)


def cut_down(name: str) -> tuple[nn.Module, Tensor]:
    """A timm name with two blocks and 128 channels, at 4×4 patches, and images for it."""
    patch = re.search(r"patch(\d+)", name)
    size = 4 * int(patch[1]) if patch else 64
    sizes = {} if name.startswith("naflexvit") else {"img_size": size}
    # Heads of 64 channels: the sections of some rotary embeddings add up to that.
    sizes |= {"embed_dim": 128, "num_heads": 2}
    if "sapiens2" in name:
        sizes |= {"num_kv_heads": 1}
    if name == "vit_base_mci_224":  # its convolutional stem gives 768 channels
        sizes |= {"embed_dim": 768, "num_heads": 12}
    return tiny_timm(name, **sizes).eval(), torch.randn(2, 3, size, size)


def check_name(name: str) -> None:
    model, x = cut_down(name)
    with torch.no_grad():
        plain = model(x)
    witness, output = watch(model, x)
    assert torch.equal(plain, output)
    assert sorted(witness.calls) == [0, 1]
    for block in range(2):
        if (block, "attn_out") in witness.sites:
            pre, attn, mlp, post = (witness.sites[block, s] for s in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
            torch.testing.assert_close(pre + attn + mlp, post)
    for module, _, _ in witness.norms.values():
        norm_parameters(module)


@pytest.mark.parametrize("name", NAMES)
def test_timm_name(name):
    check_name(name)


def pretrained_names() -> list[str]:
    return sorted({n.split(".")[0] for m in MODULES for n in timm.list_models(pretrained=True, module=m)})


@pytest.mark.slow
def test_all_pretrained_timm_names():
    names = pretrained_names()
    assert len(names) > 240
    assert set(NAMES) | DIFFERENTIAL <= set(names)
    failed = {}
    for name in names:
        try:
            check_name(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    assert failed.keys() == DIFFERENTIAL, failed


@pytest.mark.parametrize("name", sorted(DIFFERENTIAL))
def test_differential_attention_is_refused(name):
    model, x = cut_down(name)
    with pytest.raises(LookupError, match=r"not supported, because of timm\..*Diff"):
        watch(model, x)
    assert hooks(model) == 0
