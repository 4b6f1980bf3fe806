"""OpenAI's CLIP and open_clip: images first although their blocks are sequence first, and only the image tower."""

import pytest
import torch
from torch import nn

import tokenlens
from tests.support.clip_layouts import CLIP, VisionTransformer
from tests.support.tiny_models import MODELS, images
from tests.support.watching import watch
from tokenlens.families import find_family, find_vit
from tokenlens.models import load_model
from tokenlens.specialization import plan_specialization

IMAGES = images("clip_openai", 4)


def test_sequence_first_blocks_give_the_outputs_of_the_blocks_transposed():
    model, seen = MODELS["clip_openai"](), []
    for block in model.transformer.resblocks:
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    witness, _ = watch(model, IMAGES)
    assert seen[0].shape == (17, 4, 32)
    for block in range(2):
        assert torch.equal(witness.sites[block, "resid_post"], seen[block].transpose(0, 1))
        assert witness.calls[block].q_BHTd.shape == (4, 2, 17, 16)


def test_the_order_of_axes_does_not_matter_to_the_numbers():
    first, batch_first = MODELS["clip_openai"](), VisionTransformer("open_clip").eval()
    batch_first.load_state_dict(first.state_dict())
    tables = [
        tokenlens.analyze(model, IMAGES).table.set_index(["metric", "part", "block", "site", "group", "head"])
        for model in (first, batch_first)
    ]
    shared = tables[0].index.intersection(tables[1].index)
    assert len(shared) == len(tables[0]) > 200
    torch.testing.assert_close(
        torch.tensor(tables[0].loc[shared, "value"].to_numpy()),
        torch.tensor(tables[1].loc[shared, "value"].to_numpy()),
        rtol=1e-4,
        atol=1e-6,
        equal_nan=True,
    )


@pytest.mark.parametrize("kind", ["openai", "open_clip"])
def test_the_image_tower_is_found_and_the_text_tower_is_not(kind):
    model = CLIP(kind).eval()
    found = find_vit(model)
    assert found.module is model.visual
    assert "The analyzed model is visual (VisionTransformer, clip)" in found.note
    assert torch.equal(found.family.forward(found.module, IMAGES), model.encode_image(IMAGES))
    with pytest.raises(LookupError, match=r"holds one Vision Transformer: visual .*get_submodule\('visual'\)"):
        find_family(model)


def test_preprocessing_is_that_of_the_package():
    with pytest.warns(UserWarning, match="visual"):
        config = load_model(CLIP()).data_config
    assert (config["interpolation"], config["crop_pct"], config["mean"][0]) == ("bicubic", 1.0, 0.48145466)
    model = CLIP("open_clip")
    model.visual.preprocess_cfg = {
        "size": 32,
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    with pytest.warns(UserWarning, match="visual"):
        config = load_model(model).data_config
    assert (config["mean"], config["interpolation"], config["crop_mode"]) == ((0.5,) * 3, "bilinear", "squash")


def test_half_precision_layers_get_half_precision_images():
    model, seen = CLIP(), []
    model.visual.conv1.half()
    model.visual.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    model.visual.conv1.register_forward_hook(lambda _, __, output: output.float())
    with torch.no_grad():
        find_vit(model).family.forward(model.visual, IMAGES)
    assert seen == [torch.float16]


def test_a_norm_after_pooling_is_no_site():
    model = VisionTransformer("open_clip").eval()
    family = find_family(model)
    assert family.final_norm(model) is model.ln_post
    model.final_ln_after_pool = True
    assert family.final_norm(model) is None
    model.final_ln_after_pool, model.attn_pool = False, nn.Identity()
    assert family.final_norm(model) is None


def test_only_blocks_with_images_first_are_specialized():
    with pytest.raises(LookupError, match=r"\(tokens, images, channels\).*same model of timm"):
        plan_specialization(MODELS["clip_openai"](), "norms")
    plan = plan_specialization(MODELS["clip_open"](), "norms")
    assert {module.path_in_block for module in plan.modules} >= {"ln_1", "ln_2"}
    with pytest.raises(LookupError, match="qkv cannot be specialized in this model: its projection"):
        plan_specialization(MODELS["clip_open"](), "paper")


def test_another_image_size_is_named():
    for name in ("clip_openai", "clip_open"):
        model = MODELS[name]()
        with pytest.raises(ValueError, match="takes images of 32×32 pixels, got 40×40"):
            find_family(model).layout(model, (40, 40))
