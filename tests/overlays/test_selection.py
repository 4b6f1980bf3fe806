"""Tokens, blocks and images of a recording are found by name, and errors state what there is."""

import pytest
import torch

import tokenlens
from tests.support.tiny_models import build, images
from tokenlens.overlays.selection import (
    attention_of,
    group_plural,
    model_title,
    position_of,
    positions_of,
    prefix_tokens,
    token_title,
    tokens_at,
)
from tokenlens.tokens import TokenLayout


def test_tokens_are_where_the_layout_says():
    layout = TokenLayout(grid=(2, 3), prefix=("cls", "reg", "dist", "reg"), patch_start=1)
    assert prefix_tokens(layout) == ["cls", "dist", "reg0", "reg1"]
    found = {token: position_of(layout, token) for token in ("cls", "dist", "reg0", "reg1", (0, 0), (1, 2))}
    assert found == {"cls": 0, (0, 0): 1, (1, 2): 6, "reg0": 7, "dist": 8, "reg1": 9}
    assert position_of(TokenLayout(grid=(2, 3), prefix=("cls",), patch_start=0), "cls") == 6


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("cls", "no token 'cls'; it has reg0, reg1 and patches"),
        ("reg2", "no token 'reg2'"),
        ("reg", "no token 'reg'"),
        ((2, 0), r"row 0 to 1 and column 0 to 2, got \(2, 0\)"),
        ((0, -1), r"got \(0, -1\)"),
        ((1,), r"got \(1,\)"),
    ],
)
def test_unknown_tokens_are_named(token, text):
    with pytest.raises(LookupError, match=text):
        position_of(TokenLayout(grid=(2, 3), prefix=("reg", "reg")), token)


def test_attention_that_was_not_recorded():
    without = tokenlens.record(build("timm_vit"), images("timm_vit"), sites=["norm1", "q"])
    with pytest.raises(LookupError, match=r"attention of block 0 was not recorded.*sites q and k"):
        attention_of(without, 0, 0, "cls")
    explicit = tokenlens.record(build("hf_vit_eager"), images("hf_vit_eager"))
    with pytest.raises(LookupError, match="patterns=True where the model computes softmax"):
        attention_of(explicit, 0, 0, "cls")


def test_selections_that_do_not_exist():
    recording = tokenlens.record(build("timm_vit"), images("timm_vit"), sites=["q", "norm1"], blocks=[1])
    for arguments, text in (
        ((2, 1, "norm1"), "images 0 to 1, got 2"),
        ((-1, 1, "norm1"), "images 0 to 1, got -1"),
        ((0, 0, "norm1"), "there is no block 0: recorded, and counted from 0, are 1$"),
        ((0, -2, "norm1"), "block -2"),
        ((0, 1, "norm2"), "norm2 of block 1 was not recorded; recorded sites there: norm1, q"),
        ((0, 1, "final_norm"), "final_norm of the model was not recorded"),
        ((0, 1, "layer"), "unknown site 'layer'; sites are resid_pre, norm1"),
        ((0, 1, "q", 2), "heads 0 to 1, got 2"),
        ((0, 1, "norm1", 0), "heads at q, k and v only; leave out head at norm1"),
    ):
        with pytest.raises(LookupError, match=text):
            tokens_at(recording, *arguments)
    assert torch.equal(tokens_at(recording, 0, -1, "q", 1)[0], recording[1, "q"][0, 1])


def test_titles_of_tokens_and_models():
    titles = ["[CLS]", "distillation", "register 12", "patch (3, 5)"]
    assert [token_title(token) for token in ("cls", "dist", "reg12", (3, 5))] == titles
    recording = tokenlens.record(build("timm_vit"), images("timm_vit"), pretrained=False)
    assert model_title(recording) == "VisionTransformer (untrained)"
    assert model_title(tokenlens.record(build("timm_siglip"), images("timm_siglip"))) == "VisionTransformer"


def test_several_class_tokens_have_names_and_a_mean():
    layout = TokenLayout.from_positions((2, 2), {"cls": [0, 3], "det": [6], "other": [7, 8]})
    assert prefix_tokens(layout) == ["cls0", "cls1", "det", "other0", "other1"]
    assert positions_of(layout, "cls") == (0, 3)
    assert positions_of(layout, "cls1") == (3,)
    assert position_of(layout, (1, 0)) == 4
    assert [token_title(name) for name in prefix_tokens(layout)] == [
        *("[CLS] 0", "[CLS] 1", "detection", "other 0", "other 1")
    ]
    assert [group_plural(group) for group in layout.groups] == ["[CLS]", "detection tokens", "other", "patches"]
