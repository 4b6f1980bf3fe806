"""Which modules and tokens a Specialization selects in a model."""

import pytest
import timm

from tests.support.tiny_models import KINDS, MODELS
from tokenlens import Specialization, specialize
from tokenlens.families.base import Family, find_family
from tokenlens.specialization._plan import plan_specialization
from tokenlens.specialization.base import SpecializedModule


@pytest.mark.parametrize("name", sorted(name for name, kind in KINDS.items() if not kind.prefix))
def test_a_model_of_patches_only_is_refused(name):
    with pytest.raises(ValueError, match="has only patches, so there is nothing to specialize"):
        specialize(MODELS[name](), "norms")


def test_special_tokens_are_any_but_patches():
    distilled = MODELS["timm_deit_distilled"]()
    assert plan_specialization(distilled, "norms").positions == (0, 1)
    assert plan_specialization(distilled, Specialization(norm="all", registers="patch")).groups == ("cls", "dist")
    assert plan_specialization(MODELS["timm_registers_only"](), "norms").groups == ("reg",)
    with pytest.raises(ValueError, match="only registers and patches, which share their weights"):
        plan_specialization(MODELS["timm_registers_only"](), Specialization(norm="all", registers="patch"))


def test_the_papers_preset_on_twelve_blocks():
    model = timm.create_model("deit3_small_patch16_224", embed_dim=64, num_heads=1)
    found = plan_specialization(model, "paper")
    paths = {module.path for module in found.modules}
    assert {path for path in paths if "qkv" in path} == {f"blocks.{block}.attn.qkv" for block in range(4)}
    assert len([path for path in paths if "norm" in path]) == 25
    assert "norm" in paths
    assert len([path for path in paths if ".ls" in path]) == 24
    assert len(paths) == 53
    assert found.notes == ()


def test_what_a_model_lacks_is_a_note_and_no_error():
    assert plan_specialization(MODELS["timm_vit"](), "paper").notes == ("layer_scale is left out: the model has none.",)
    assert plan_specialization(MODELS["timm_eva02"](), "norms").notes == (
        "There is no norm over all tokens after the last block.",
    )


def test_blocks_can_be_named_one_by_one():
    model = MODELS["timm_vit"]()
    found = plan_specialization(model, Specialization(norm=[0], qkv=(-1,), mlp="first_half"))
    first = [f"blocks.0.{path}" for path in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")]
    assert [module.path for module in found.modules] == [*first, "blocks.1.attn.qkv"]
    last = plan_specialization(model, Specialization(norm="last_third")).modules
    assert {module.path for module in last} == {"blocks.1.norm1", "blocks.1.norm2", "norm"}
    with pytest.raises(LookupError, match=r"the model has blocks 0 to 1, got \[2\]"):
        plan_specialization(model, Specialization(norm=[2]))


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ("papr", LookupError, r"no specialization is called 'papr'\. Did you mean paper\? Available: norms, paper"),
        ({"normm": "all"}, LookupError, "no component is called 'normm'. Available: norm, layer_scale"),
        ({"norm": "some"}, ValueError, "norm='some': expected all, first_third, first_half, last_third, numbers"),
        ({"norm": [True]}, ValueError, "numbers of blocks"),
        ({"norm": "all", "registers": "dist"}, ValueError, "registers go with 'cls' or with 'patch'"),
        ({"norm": "all", "final_norm": "no"}, ValueError, "final_norm='no': expected True or False"),
        ({}, ValueError, "names no component; there are norm, layer_scale, qkv, proj, mlp"),
        (3, ValueError, "a specialization is a Specialization or one of norms, paper"),
    ],
)
def test_wrong_specializations_get_a_clear_sentence(wanted, error, message):
    model = MODELS["timm_vit"]()
    with pytest.raises(error, match=message):
        specialize(model, wanted)
    assert not any(isinstance(module, SpecializedModule) for module in model.modules())


def test_a_family_without_components_says_so():
    class Mine(type(find_family(MODELS["timm_vit"]()))):
        components = Family.components

    with pytest.raises(LookupError, match=r"the family .*Mine does not define which modules"):
        plan_specialization(MODELS["timm_vit"](), "norms", family=Mine())
