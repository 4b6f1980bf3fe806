"""Token layouts: groups of any number and position, and the extent of the patch grid."""

import pytest
import torch

import tokenlens
from tests.support.tiny_models import MODELS, images
from tokenlens.families.timm_vit import TimmViT
from tokenlens.tokens import TokenLayout

YOLOS = TokenLayout.from_positions((2, 3), {"cls": [0], "det": range(7, 10)})
MIDDLE = TokenLayout.from_positions((2, 3), {"cls": [0, 4], "summary": [2], "det": [8]}, patch_size=(8, 4))


def test_groups_of_any_number_and_position():
    assert TokenLayout((2, 3), ("cls", "det", "det", "det"), patch_start=1) == YOLOS
    assert YOLOS.contiguous
    assert YOLOS.patch_slice == slice(1, 7)
    assert MIDDLE.prefix == ("cls", "summary", "cls", "det")
    assert MIDDLE.groups == ("cls", "summary", "det", "patch")
    assert MIDDLE.positions("cls") == (0, 4)
    assert MIDDLE.positions("patch") == (1, 3, 5, 6, 7, 9)
    assert not MIDDLE.contiguous
    assert MIDDLE.prefix_text == "2 × cls, summary, det"
    with pytest.raises(ValueError, match="not one slice"):
        _ = MIDDLE.patch_slice


@pytest.mark.parametrize(
    "layout", [YOLOS, MIDDLE, TokenLayout((1, 1), ()), TokenLayout((3, 2), ("reg",), patch_start=0)]
)
def test_every_position_belongs_to_one_group(layout):
    positions = [position for group in layout.groups for position in layout.positions(group)]
    assert sorted(positions) == list(range(layout.tokens))
    x = torch.arange(layout.tokens).float()
    assert layout.patches_of(x[:, None]).flatten().tolist() == list(layout.positions("patch"))
    assert torch.equal(layout.patches_of(x, -1), x[list(layout.positions("patch"))])
    for group in layout.groups:
        assert layout.mean_of(x, group, -1) == x[list(layout.positions(group))].mean()
    assert (
        layout.patches_of(x, -1).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    ) == layout.contiguous


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": (0, 4)}, "at least one row"),
        ({"prefix": ("patch",)}, "other than patch"),
        ({"prefix": ("reg0",)}, "lower-case letters"),
        ({"patch_start": 2}, "between 0 and 1"),
        ({"prefix_positions": (5,)}, "from 0 to 4"),
        ({"prefix_positions": (0, 1)}, "one for each of the 1 special"),
        ({"prefix": ("cls", "reg"), "prefix_positions": (3, 1)}, "ascending"),
        ({"prefix_positions": (2,), "patch_start": 0}, "not both"),
    ],
)
def test_impossible_layouts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout(**{"grid": (2, 2)} | arguments)


def test_what_the_model_drops_or_pads_is_said():
    layout = TokenLayout((14, 14), patch_size=(16, 16))
    assert layout.border_note((224, 224)) == ""
    assert layout.extent((239, 225)) == (224, 224)
    assert "15 rows at the bottom are dropped and 1 column on the right is dropped" in layout.border_note((239, 225))
    assert "6 columns on the right are padding" in layout.border_note((224, 218))
    assert TokenLayout((14, 14)).extent((239, 225)) == (239, 225)
    assert TokenLayout((14, 14)).border_note((239, 225)) == ""


class Relabelled(TimmViT):
    """A model with one CLS and four registers, whose first two tokens are said to belong to other groups."""

    def __init__(self, *groups):
        self.groups = groups

    def layout(self, model, image_size):
        return TokenLayout((4, 4), (*self.groups, "reg", "reg", "reg"), patch_size=(8, 8))


def test_a_number_of_several_class_tokens_is_the_mean_of_their_numbers():
    model, x = MODELS["timm_dinov2_registers"](), images("timm_dinov2_registers", 6)
    both, first, second = (
        tokenlens.analyze(model, x, metrics="all", family=Relabelled(*groups), pretrained=False)
        for groups in (("cls", "cls"), ("cls", "other"), ("other", "cls"))
    )
    names = ["part", "group", "site", "block", "head"]
    means = {
        "cls_patch_cosine": ("cls-patch",),
        "reg_cls_cosine": ("reg-cls",),
        "cls_cls_cosine": ("cls-cls",),
        "norm_differentiation": ("cls-patch",),
        "norm_statistics": ("cls", "cls-patch"),
        "token_norm": ("cls",),
        "update_ratio": ("cls",),
        "attention_mass": ("cls-patch", "cls-reg"),
        "attention_rollout": ("cls-patch", "cls-reg"),
    }
    for metric, groups in means.items():
        for group in groups:
            rows = [a.select(metric, group=group).set_index(names)["value"].sort_index() for a in (both, first, second)]
            if metric == "attention_rollout":  # an entropy of the mean row is no mean of entropies
                rows = [row.loc["mass"] for row in rows]
            assert len(rows[0]) > 0
            assert rows[0].to_numpy() == pytest.approx((rows[1] + rows[2]).to_numpy() / 2, rel=1e-5, abs=1e-6)
    assert {"other", "cls-other", "patch-other"} <= set(first.table["group"])
    rows = [a.arrays["cls_attention_map/mean"].values for a in (both, first, second)]
    assert rows[0] == pytest.approx((rows[1] + rows[2]) / 2, rel=1e-5, abs=1e-7)
    mass = both.select("attention_mass").set_index(names)["value"].unstack("group")
    assert mass[[name for name in mass if name.startswith("cls-")]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
