"""Arguments of constructors, by name as ``--model-arg`` gives them."""

import json

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from tests.models.test_creation import in_cache, save_timm_folder
from tests.support.timm_weights import NAME
from tests.support.tiny_models import MODELS
from tokenlens.models import check, create_meta_model, load_model


def test_the_model_is_the_one_that_timm_creates_with_them():
    given = {"reg_tokens": 3, "mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "init_values": 0.5, "depth": 2}
    loaded = load_model(NAME, pretrained=False, img_size=(64, 96), model_args=given, device="cpu")
    torch.manual_seed(0)
    classes = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    expected = timm.create_model(NAME, img_size=(64, 96), **given | classes).eval()
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(loaded.module(x), expected(x))
    assert loaded.image_size == (64, 96)
    assert loaded.model_args == given
    assert loaded.weights["steps"] == [
        "created with reg_tokens=3, mlp_layer='SwiGLUPacked', act_layer='SiLU', init_values=0.5, depth=2"
    ]
    layout = loaded.family.layout(loaded.module, loaded.image_size)
    assert (len(layout.positions("reg")), layout.grid) == (3, (4, 6))
    with_classes = load_model(NAME, pretrained=False, img_size=(64, 96), model_args=given | classes, device="cpu")
    assert torch.equal(with_classes.module(x), expected(x))
    assert with_classes.model_args["act_layer"] == "SiLU"
    assert "GluMlp" in json.dumps(with_classes.model_args)


def test_weights_still_have_to_fit(tmp_path, empty_cache):
    saved = save_timm_folder(tmp_path / "mine")
    in_cache(empty_cache, "me/mine", {file.name: file.read_bytes() for file in (tmp_path / "mine").iterdir()})
    for name in ("hf-hub:me/mine", f"local-dir:{tmp_path / 'mine'}"):
        pooled = load_model(name, model_args={"global_pool": "avg", "fc_norm": False}, device="cpu")
        assert torch.equal(pooled.module.norm.weight, saved.norm.weight)
        assert pooled.module.global_pool == "avg"
        assert check(name, model_args={"global_pool": "avg", "fc_norm": False}).readable
        with pytest.raises(ValueError, match=r"does not fit .*1 key missing: reg_token"):
            load_model(name, model_args={"reg_tokens": 2}, device="cpu")
        assert "reg_token" in str(check(name, model_args={"reg_tokens": 2}).problem)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"reg_token": 2},
            "has no argument 'reg_token'. Did you mean reg_tokens.* It takes patch_s",
        ),
        ({"num_heads": 7}, "cannot create test_vit with num_heads=7: dim should be divisible"),
        ({"mlp_layer": "foo"}, "with mlp_layer='foo'"),
        ({"depth": "three"}, "with depth='three'"),
        ({"init_values": None}, "does not pass None"),
        ({"img_size": 32}, "is set by --img-size"),
        ({"num_classes": 3}, "is set by the weights"),
    ],
)
def test_wrong_arguments(given, message):
    for create in (create_meta_model, load_model, check):
        with pytest.raises(ValueError, match=message):
            create(NAME, model_args=given)


def test_arguments_need_a_name_of_a_timm_model(tmp_path):
    with pytest.raises(ValueError, match="needs the name of a model"):
        load_model(MODELS["timm_vit"](), model_args={"depth": 2})
    MODELS["hf_dinov2"]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"in its config\.json; change them there"):
        load_model(str(tmp_path), model_args={"num_hidden_layers": 1})
