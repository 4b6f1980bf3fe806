"""Specialization on every kind of model: equal outputs at the start, gradients that add up, nothing else changed."""

import copy
import pickle
import re

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.support.specialized_models import outputs
from tests.support.tiny_models import KINDS, MODELS, images
from tests.support.watching import watch
from tokenlens import Specialization, specialize
from tokenlens.specialization._plan import get_plan
from tokenlens.specialization._specialization import PRESETS, as_specialization
from tokenlens.specialization._state_dict import map_standard_names
from tokenlens.specialization.base import SpecializedModule, components

COMPONENTS = Specialization.components()
WITH_SPECIAL_TOKENS = sorted(name for name, kind in KINDS.items() if kind.prefix)
LAYER_SCALE = re.compile(r"\.(ls\d?|layer_scale\d|gamma_\d|gamma|lambda_\d)\b")
"""Names of the parameters of LayerScale in all families."""
REFUSED = {("torchvision_vit", "qkv"), ("torchvision_vit", "proj"), ("timm_parallel", "qkv"), ("timm_parallel", "mlp")}
REFUSED |= {("clip_open", "qkv"), ("clip_open", "proj"), ("hf_mlcd", "proj")}
REFUSED |= {("clip_openai", component) for component in COMPONENTS}


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return gradients of a fixed random function of the outputs, by parameter name."""
    model.zero_grad()
    found = outputs(model, x)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=found.dtype)
    (found * weights).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("name", WITH_SPECIAL_TOKENS)
def test_every_component_on_every_kind(name, component):
    """Outputs stay, both gradients add up to the standard one, and all other parameters keep their names."""
    model, x = MODELS[name]().double(), images(name).double()
    wanted = Specialization(**{component: "all"})
    if name == "timm_cait":
        with pytest.raises(LookupError, match="CaiT cannot be specialized: its first blocks have no CLS"):
            specialize(model, wanted)
        return
    if (name, component) in REFUSED:
        with pytest.raises(LookupError, match=f"{component} cannot be specialized in this model"):
            specialize(model, wanted)
        return
    if component == "layer_scale" and not any(map(LAYER_SCALE.search, model.state_dict())):
        with pytest.raises(ValueError, match="layer_scale is left out: the model has none"):
            specialize(model, wanted)
        return
    before, expected = outputs(model, x), gradients(model, x)
    parameters = dict(model.named_parameters())
    assert specialize(model, wanted) is model
    torch.testing.assert_close(outputs(model, x), before, rtol=1e-11, atol=1e-11)
    found = gradients(model, x)
    names = map_standard_names(model, get_plan(model))
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
@pytest.mark.parametrize("name", sorted(set(WITH_SPECIAL_TOKENS) - {kind for kind, _ in REFUSED} - {"timm_cait"}))
def test_presets_change_no_bit(name, preset):
    model, x = MODELS[name](), images(name)
    with torch.no_grad():
        before = outputs(model, x)
        assert torch.equal(outputs(specialize(model, preset), x), before)


@pytest.mark.parametrize("name", ["hf_git", "hf_yolos", "hf_pixio", "hf_beit_classifier", "hf_internvl_rms"])
def test_more_models_of_transformers(name):
    test_presets_change_no_bit(name, "everything")


def test_after_one_step_the_weights_differ_and_training_and_eval_work():
    model = timm.create_model("test_vit", img_size=64, num_classes=3, drop_path_rate=0.3)
    specialize(model.train(), "everything")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    names = map_standard_names(model, get_plan(model))
    state = model.state_dict()
    differing = [name for name, (cls, patch) in names.items() if not torch.equal(state[cls], state[patch])]
    # The final norm's patches do not reach the classifier, so only its weights for CLS move; they differ all the same.
    assert set(differing) == set(names)
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in model.eval().modules())


def test_weights_whose_tokens_do_not_matter_get_a_gradient_of_exactly_zero():
    """Adam would turn rounding noise into full-size steps."""
    model = specialize(timm.create_model("test_vit", img_size=64, num_classes=3), "everything")
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        last = r"blocks\.5\.(attn\.proj|mlp\.fc1|mlp\.fc2|norm2)\.patch|norm\.patch"
        dead = re.match(last, name) is not None
        assert bool((parameter.grad == 0).all()) == dead, name


@pytest.mark.parametrize("registers", ["cls", "patch"])
def test_registers_use_the_chosen_weights(registers):
    """Change the weights for special tokens: only their outputs change."""
    model = specialize(MODELS["timm_dinov2_registers"](), Specialization(norm=[0], registers=registers))
    norm, x = model.blocks[0].norm1, torch.randn(2, 21, 32)
    assert norm.positions == ((0, 1, 2, 3, 4) if registers == "cls" else (0,))
    with torch.no_grad():
        before = norm(x)
        norm.cls.bias += 1
        moved = (norm(x) - before).abs().amax((0, 2)) > 0.5
    assert moved.nonzero().flatten().tolist() == list(norm.positions)


@pytest.mark.parametrize("name", ["timm_vit", "timm_beit", "hf_dinov2", "torchvision_vit", "timm_dinov2_registers"])
def test_recording_a_specialized_model_gives_the_same_activations(name):
    x = images(name)
    before, _ = watch(MODELS[name](), x)
    preset = "norms" if name == "torchvision_vit" else "qkv_all"
    after, _ = watch(specialize(MODELS[name](), preset), x)
    assert before.sites.keys() == after.sites.keys()
    assert before.calls.keys() == after.calls.keys()
    for key, tensor in before.sites.items():
        torch.testing.assert_close(after.sites[key], tensor, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_specialized_is_refused_and_the_model_left_alone():
    with pytest.raises(ValueError, match="is specialized already"):
        specialize(specialize(MODELS["timm_vit"](), "norms"), "paper")
    model = MODELS["timm_vit"]()
    model.blocks[1].attn.qkv = nn.Sequential(model.blocks[1].attn.qkv)
    with pytest.raises(LookupError, match=r"qkv of a Attention, a torch\.nn\..*Sequential, is not an nn\.Linear"):
        specialize(model, "qkv_all")
    assert get_plan(model) is None
    assert not any(isinstance(module, SpecializedModule) for module in model.modules())


def test_components_and_fields_are_the_same_names():
    assert set(components.names()) == set(COMPONENTS)
    assert all(components.describe(name) for name in COMPONENTS)
    for preset in PRESETS.values():
        assert as_specialization(preset.to_dict()) == preset


@pytest.mark.parametrize("name", ["timm_vit", "timm_beit", "hf_dinov2"])
def test_copies_and_pickles_are_specialized_models(name):
    model, x = specialize(MODELS[name](), "qkv_all"), images(name)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert get_plan(twin) == get_plan(model)
        with torch.no_grad():
            assert torch.equal(outputs(twin, x), outputs(model, x))
        twin.load_state_dict(MODELS[name]().state_dict())  # standard names
        assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
