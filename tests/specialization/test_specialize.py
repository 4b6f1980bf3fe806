"""Specialization on every kind of model: equal at the start, its two gradients add up, and only what was asked for."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.support.tiny_models import KINDS, MODELS, images
from tests.support.watching import tensors, watch
from tokenlens import Specialization, specialize
from tokenlens.families.base import Family, find_family
from tokenlens.specialization._plan import plan, plan_of, prefix_side
from tokenlens.specialization._specialization import PRESETS, as_specialization
from tokenlens.specialization._state_dict import standard_names
from tokenlens.specialization.base import SpecializedModule, components
from tokenlens.tokens import TokenLayout

COMPONENTS = Specialization.components()
WITH_PREFIX = sorted(name for name, kind in KINDS.items() if kind.prefix)
LAYER_SCALE = {
    "timm_deit3",
    "timm_dinov2",
    "timm_dinov2_registers",
    "timm_dinov3",
    "timm_parallel",
    "timm_registers_only",
    "timm_beit",
    "timm_beit_unfused",
    "timm_beit_shared_bias",
    "timm_relpos",
    "timm_rope_mixed",
    "timm_naflexvit",
    "timm_rope_registers_only",
    "hf_dinov2",
    "hf_dinov2_eager",
    "hf_dinov2_registers",
    "hf_dinov3",
    "dinov2_hub",
}
REFUSED = {("torchvision_vit", "qkv"), ("torchvision_vit", "proj"), ("timm_parallel", "qkv"), ("timm_parallel", "mlp")}


def outputs(model: nn.Module, x: Tensor, family: Family | None = None) -> Tensor:
    """All tokens after the last block and the model's own outputs, side by side."""
    family = family or find_family(model)
    kept: list[Tensor] = []
    handle = family.blocks(model)[-1].register_forward_hook(lambda _m, _a, out: kept.extend(tensors(out)))
    try:
        kept += tensors(family.forward(model, x))
    finally:
        handle.remove()
    return torch.cat([value.flatten() for value in kept if value.is_floating_point()])


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of a fixed random function of the outputs, by parameter name."""
    model.zero_grad()
    found = outputs(model, x)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=found.dtype)
    (found * weights).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("name", WITH_PREFIX)
def test_every_component_on_every_kind(name, component):
    """Outputs stay; the two gradients add up to the standard one; nothing else is touched."""
    model, x = MODELS[name]().double(), images(name).double()
    wanted = Specialization(**{component: "all"})
    if (name, component) in REFUSED:
        with pytest.raises(LookupError, match=f"{component} cannot be specialized in this model"):
            specialize(model, wanted)
        return
    if component == "layer_scale" and name not in LAYER_SCALE:
        with pytest.raises(ValueError, match="layer_scale is left out: the model has none"):
            specialize(model, wanted)
        return
    before, expected = outputs(model, x), gradients(model, x)
    parameters = dict(model.named_parameters())
    assert specialize(model, wanted) is model
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-11, atol=1e-11)
    found = gradients(model, x)
    names = standard_names(model, plan_of(model))
    assert set(names) <= set(parameters)
    assert dict(model.named_parameters()).keys() == (parameters.keys() - names.keys()) | {
        side for both in names.values() for side in both
    }
    for standard, gradient in expected.items():
        sides = names.get(standard, (standard,))
        both = torch.stack([found[side] for side in sides])
        torch.testing.assert_close(both.sum(0), gradient, rtol=1e-8, atol=1e-9 * float(gradient.abs().max() + 1))
    assert any(bool((found[cls] != found[patch]).any()) for cls, patch in names.values())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", sorted(set(WITH_PREFIX) - {kind for kind, _ in REFUSED}))
def test_presets_change_no_bit(name, preset):
    model, x = MODELS[name](), images(name)
    with torch.no_grad():
        before = outputs(model, x)
        assert torch.equal(outputs(specialize(model, preset), x), before)


def test_after_one_step_the_sets_differ_and_training_and_eval_work():
    model = timm.create_model("test_vit", img_size=64, num_classes=3, drop_path_rate=0.3)
    specialize(model.train(), "everything")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    names = standard_names(model, plan_of(model))
    state = model.state_dict()
    differing = [name for name, (cls, patch) in names.items() if not torch.equal(state[cls], state[patch])]
    # The final norm's patches do not reach the classifier, so only its set for CLS moves; that, too, is a difference.
    assert set(differing) == set(names)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in model.eval().modules())


def test_a_set_whose_tokens_do_not_matter_gets_a_gradient_of_exactly_zero():
    """Rounding noise there would be blown up by Adam."""
    model = specialize(timm.create_model("test_vit", img_size=64, num_classes=3), "everything")
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        dead = name.startswith(
            (
                "norm.patch",
                "blocks.5.attn.proj.patch",
                "blocks.5.mlp.fc1.patch",
                "blocks.5.mlp.fc2.patch",
                "blocks.5.norm2.patch",
            )
        )
        assert bool((parameter.grad == 0).all()) == dead, name


@pytest.mark.parametrize("registers", ["cls", "patch"])
def test_registers_go_where_they_are_told(registers):
    """Change the weights of one side: only the tokens of that side move."""
    model = specialize(MODELS["timm_dinov2_registers"](), Specialization(norm=[0], registers=registers))
    norm, x = model.blocks[0].norm1, torch.randn(2, 21, 32)
    assert norm.positions == ((0, 1, 2, 3, 4) if registers == "cls" else (0,))
    with torch.no_grad():
        before = norm(x)
        norm.cls.bias += 1
        moved = (norm(x) - before).abs().amax((0, 2)) > 0.5
    assert moved.nonzero().flatten().tolist() == list(norm.positions)


def test_both_prefix_tokens_of_a_distilled_model_have_the_prefix_weights():
    model = MODELS["timm_deit_distilled"]()
    assert plan(model, "norms").positions == (0, 1)
    assert plan(model, Specialization(norm="all", registers="patch")).groups == ("cls", "dist")


def test_prefix_tokens_behind_the_patches_are_counted_from_the_end():
    layout = TokenLayout((2, 2), ("cls", "reg"), patch_start=1)
    assert prefix_side(layout, "cls") == ((0, -1), ("cls", "reg"))
    assert prefix_side(layout, "patch") == ((0,), ("cls",))


@pytest.mark.parametrize("name", sorted(set(KINDS) - set(WITH_PREFIX)))
def test_a_model_of_patches_only_is_refused(name):
    with pytest.raises(ValueError, match="has only patches: there are no two kinds of tokens"):
        specialize(MODELS[name](), "norms")


def test_registers_alone_can_be_the_other_kind_of_token():
    assert plan(MODELS["timm_registers_only"](), "norms").groups == ("reg",)
    with pytest.raises(ValueError, match="only registers besides the patches, and they go with the patches"):
        plan(MODELS["timm_registers_only"](), Specialization(norm="all", registers="patch"))


@pytest.mark.parametrize("name", ["timm_vit", "timm_beit", "hf_dinov2", "torchvision_vit", "timm_dinov2_registers"])
def test_recording_sees_a_specialized_model_as_any_other(name):
    x = images(name)
    before, _ = watch(MODELS[name](), x)
    preset = "norms" if name == "torchvision_vit" else "qkv_all"
    after, _ = watch(specialize(MODELS[name](), preset), x)
    assert before.sites.keys() == after.sites.keys()
    assert before.calls.keys() == after.calls.keys()
    for key, tensor in before.sites.items():
        torch.testing.assert_close(after.sites[key], tensor, rtol=1e-4, atol=1e-4)


def test_the_papers_preset_on_twelve_blocks():
    model = timm.create_model("deit3_small_patch16_224", embed_dim=64, num_heads=1)
    found = plan(model, "paper")
    paths = {entry.path for entry in found.replacements}
    assert {path for path in paths if "qkv" in path} == {f"blocks.{block}.attn.qkv" for block in range(4)}
    assert len([path for path in paths if "norm" in path]) == 25
    assert "norm" in paths
    assert len([path for path in paths if ".ls" in path]) == 24
    assert len(paths) == 53
    assert found.notes == ()


def test_what_a_model_lacks_is_a_note_and_no_error():
    assert plan(MODELS["timm_vit"](), "paper").notes == ("layer_scale is left out: the model has none.",)
    assert plan(MODELS["timm_eva02"](), "norms").notes == ("There is no norm over all tokens after the last block.",)


def test_blocks_can_be_named_one_by_one():
    model = MODELS["timm_vit"]()
    found = plan(model, Specialization(norm=[0], qkv=(-1,), mlp="first_half"))
    assert [entry.path for entry in found.replacements] == [
        "blocks.0.norm1",
        "blocks.0.norm2",
        "blocks.0.mlp.fc1",
        "blocks.0.mlp.fc2",
        "blocks.1.attn.qkv",
    ]
    assert {entry.path for entry in plan(model, Specialization(norm="last_third")).replacements} == {
        "blocks.1.norm1",
        "blocks.1.norm2",
        "norm",
    }
    with pytest.raises(LookupError, match=r"the model has blocks 0 to 1, got \[2\]"):
        plan(model, Specialization(norm=[2]))


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ("papr", LookupError, r"no specialization is called 'papr'\. Did you mean paper\? Available: norms, paper"),
        ({"normm": "all"}, LookupError, "no component is called 'normm'. Available: norm, layer_scale"),
        ({"norm": "some"}, ValueError, "norm='some': expected all, first_third, first_half, last_third, numbers"),
        ({"norm": [True]}, ValueError, "numbers of blocks"),
        ({"norm": "all", "registers": "dist"}, ValueError, "registers go with 'cls' or with 'patch'"),
        ({}, ValueError, "names no component; there are norm, layer_scale, qkv, proj, mlp"),
        (3, ValueError, "a specialization is a Specialization or one of norms, paper"),
    ],
)
def test_wrong_specializations_get_a_clear_sentence(wanted, error, message):
    model = MODELS["timm_vit"]()
    with pytest.raises(error, match=message):
        specialize(model, wanted)
    assert not any(isinstance(module, SpecializedModule) for module in model.modules())


def test_a_specialized_model_is_not_specialized_again():
    model = specialize(MODELS["timm_vit"](), "norms")
    with pytest.raises(ValueError, match="is specialized already"):
        specialize(model, "paper")


def test_a_module_of_another_kind_is_refused_and_the_model_left_alone():
    model = MODELS["timm_vit"]()
    model.blocks[1].attn.qkv = nn.Sequential(model.blocks[1].attn.qkv)
    with pytest.raises(LookupError, match=r"qkv of a Attention, a torch\.nn\..*Sequential, is not an nn\.Linear"):
        specialize(model, "qkv_all")
    assert plan_of(model) is None
    assert type(model.blocks[0].norm1) is not SpecializedModule
    assert not any(isinstance(module, SpecializedModule) for module in model.modules())


def test_a_family_without_components_says_so():
    class Mine(type(find_family(MODELS["timm_vit"]()))):
        components = Family.components

    with pytest.raises(LookupError, match=r"the family .*Mine does not say which modules"):
        plan(MODELS["timm_vit"](), "norms", family=Mine())


def test_components_and_fields_are_the_same_names():
    assert set(components.names()) == set(COMPONENTS)
    assert all(components.describe(name) for name in COMPONENTS)
    for preset in PRESETS.values():
        assert as_specialization(preset.to_dict()) == preset


@pytest.mark.parametrize("name", ["timm_vit", "timm_beit", "hf_dinov2"])
def test_copies_and_pickles_are_specialized_models(name):
    model, x = specialize(MODELS[name](), "qkv_all"), images(name)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert plan_of(twin) == plan_of(model)
        with torch.no_grad():
            assert torch.equal(outputs(twin, x), outputs(model, x))
        twin.load_state_dict(MODELS[name]().state_dict())  # standard names
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
