"""Parameters and FLOPs that specialization adds."""

import copy

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.tiny_models import MODELS, images
from tokenlens import Specialization, specialize
from tokenlens.families.base import find_family
from tokenlens.specialization import PRESETS, compute_costs


def test_the_papers_preset_adds_eight_percent_parameters_and_no_flops():
    with torch.device("meta"):
        base = timm.create_model("vit_base_patch16_224")
    plan, costs = compute_costs(base, "paper")
    by_name = {cost.component: cost for cost in costs}
    whole = by_name["model"]
    assert whole.parameters == sum(parameter.numel() for parameter in base.parameters()) == 86_567_656
    assert by_name["qkv"].added_parameters == 4 * (768 * 2304 + 2304)
    assert by_name["norm"].added_parameters == 25 * 2 * 768
    assert whole.added_parameters == by_name["qkv"].added_parameters + by_name["norm"].added_parameters
    assert 7.5 <= 100 * whole.added_parameters / whole.parameters <= 8.5
    assert 0 <= whole.added_flops / whole.flops < 0.001
    assert plan.notes == ("layer_scale is left out: the model has none.",)


def test_without_the_final_norm_as_third_parties_count_it():
    """24 norms of DeiT-S, and QKV of blocks 0 to 3, as in a study with MCTformer+."""
    with torch.device("meta"):
        small = timm.create_model("deit_small_patch16_224")
    for choice, added in (
        (Specialization(norm="all", final_norm=False), 24 * 2 * 384),
        (Specialization(norm="all", qkv=(0, 1, 2, 3), final_norm=False), 1_792_512),
        (Specialization(norm="all"), 25 * 2 * 384),
    ):
        assert compute_costs(small, choice)[1][-1].added_parameters == added
    assert 24 * 2 * 384 == 18_432


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["vit_base_patch16_224", "vit_base_patch14_reg4_dinov2"])
def test_flops_that_each_preset_adds(name, preset):
    """One more product for the rows of the special tokens of each specialized linear map, and nothing else."""
    with torch.device("meta"):
        model = timm.create_model(name, img_size=224)
    plan, [*costs, whole] = compute_costs(model, preset)
    linear = sum(cost.flops for cost in costs)
    tokens = find_family(model).layout(model, (224, 224)).tokens
    assert whole.added_flops <= len(plan.positions) / tokens * linear * 1.001
    assert whole.added_parameters == sum(cost.added_parameters for cost in costs)
    share = whole.added_flops / whole.flops
    limit = {"norms": 1e-9, "paper": 0.001, "qkv_all": 0.003, "everything": 0.01}[preset]
    assert share < limit * len(plan.groups)  # twice as much with four registers


def test_flops_are_those_of_real_forward_passes():
    model, x = MODELS["timm_vit"](), images("timm_vit", 1)
    choice = Specialization(qkv="all", mlp=[0])
    whole = compute_costs(model, choice)[1][-1]
    counted = []
    for counted_model in (model, specialize(copy.deepcopy(model), choice)):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            counted_model(x)
        counted.append(counter.get_total_flops())
    assert counted == [whole.flops, whole.flops + whole.added_flops]

    # The same in closed form, so that it does not rest on the counter alone.
    blocks, tokens, channels, heads, head_dim, hidden, classes = 2, 17, 32, 2, 16, 128, 5
    attention = blocks * 2 * 2 * heads * tokens**2 * head_dim
    linear = blocks * 2 * tokens * (channels * 3 * channels + channels * channels + 2 * channels * hidden)
    patch_embedding = 2 * (tokens - 1) * channels * 3 * 8 * 8
    assert whole.flops == attention + linear + patch_embedding + 2 * channels * classes
    # A second product for the CLS row: qkv in both blocks, the MLP in one.
    assert whole.added_flops == 2 * (blocks * channels * 3 * channels + 2 * channels * hidden)


@pytest.mark.parametrize("name", ["timm_eva02", "timm_beit", "timm_dinov3", "hf_dinov2", "torchvision_vit", "dino_hub"])
def test_costs_of_every_family(name):
    model = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _, [*costs, whole] = compute_costs(model, "norms" if name == "torchvision_vit" else "qkv_all")
    assert whole.flops > 0
    assert whole.added_parameters == sum(cost.added_parameters for cost in costs)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
