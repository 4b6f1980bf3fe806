"""All of timm's pretrained Vision Transformers, cut down to two narrow blocks."""

import re

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.support.tiny_models import tiny_timm
from tests.support.watching import hooks, watch
from tokenlens.families import norm_parameters

DIFFERENTIAL = {"vit_dlittle_patch16_reg1_gap_256", "vit_dwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"}
MODULES = ("deit", "eva", "beit", "cait", "naflexvit")
MODULES += tuple(f"vision_transformer{kind}" for kind in ("", "_hybrid", "_relpos"))


def cut_down(name: str) -> tuple[nn.Module, Tensor]:
    """Return the model of a timm name with two blocks, 128 channels and 4×4 patches, and images for it."""
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
    assert sorted(witness.calls) == ([2, 3] if name.startswith("cait") else [0, 1])
    for block in range(2):
        if (block, "attn_out") in witness.sites:
            pre, attn, mlp, post = (witness.sites[block, s] for s in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
            torch.testing.assert_close(pre + attn + mlp, post)
    for module, _, _ in witness.norms.values():
        norm_parameters(module)


def test_all_pretrained_timm_names():
    names = sorted({n.split(".")[0] for m in MODULES for n in timm.list_models(pretrained=True, module=m)})
    assert len(names) > 240
    failed = {}
    for name in names:
        try:
            check_name(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    assert failed.keys() == DIFFERENTIAL, failed


@pytest.mark.parametrize("name", ["vit_small_patch16_18x2_224", "vit_base_patch16_18x2_224"])
def test_names_without_published_weights(name):
    check_name(name)


@pytest.mark.parametrize("name", sorted(DIFFERENTIAL))
def test_differential_attention_is_refused(name):
    model, x = cut_down(name)
    with pytest.raises(LookupError, match=r"not supported, because of timm\..*Diff"):
        watch(model, x)
    assert hooks(model) == 0
