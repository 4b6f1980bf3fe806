"""Training specialized models: checkpointed activations, compilation, several processes; and what they cost."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
from torch import nn

from tests.support.command_line import finished, process
from tests.support.tiny_models import MODELS, images
from tests.support.watching import tensors
from tokenlens import Specialization, specialize
from tokenlens.families.base import find_family
from tokenlens.specialization._costs import costs
from tokenlens.specialization._specialization import PRESETS


def small(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return specialize(timm.create_model("test_vit", img_size=64, num_classes=3, **options), "everything").train()


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return tensors(model(x))[0].square().sum()


@pytest.mark.parametrize("name", ["timm_vit", "timm_dinov3", "hf_dinov2"])
def test_checkpointed_activations_give_the_same_gradients(name):
    model, x = specialize(MODELS[name](), "everything").train(), images(name)
    loss_of(model, x).backward()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {key: parameter.grad.clone() for key, parameter in trained.items()}
    model.zero_grad()
    if name == "hf_dinov2":
        with warnings.catch_warnings():  # transformers renames it
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.set_grad_checkpointing()
    loss_of(model, x).backward()
    for key, parameter in model.named_parameters():
        if key in expected:
            torch.testing.assert_close(parameter.grad, expected[key], msg=key)


@pytest.mark.parametrize("name", ["timm_dinov2_registers", "timm_beit", "timm_eva02", "hf_dinov2"])
def test_whole_models_compile_in_one_graph(name):
    model, x = specialize(MODELS[name](), "everything"), images(name)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(tensors(compiled(x))[0], tensors(model(x))[0], rtol=1e-4, atol=1e-4)
    loss_of(compiled, x).backward()
    loss_of(model, x).backward()
    for (key, parameter), twin in zip(model.named_parameters(), compiled.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(twin.grad, parameter.grad, rtol=1e-3, atol=1e-4, msg=key)


def test_stochastic_depth_draws_as_in_the_standard_model():
    torch.manual_seed(0)
    standard = timm.create_model("test_vit", img_size=64, num_classes=3, drop_path_rate=0.5).train()
    twin = specialize(copy.deepcopy(standard), "paper")
    x = torch.randn(4, 3, 64, 64)
    found = []
    for model in (standard, twin):
        torch.manual_seed(1)
        found.append(model(x))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


PROCESSES = """
import sys, torch, timm
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from tokenlens import specialize

rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
model = specialize(timm.create_model("test_vit", img_size=64, num_classes=3), "everything")
parallel = DistributedDataParallel(model)  # hangs or raises in the second step if a parameter gets no gradient
x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
for step in range(2):
    model.zero_grad()
    parallel(x[2 * rank : 2 * rank + 2]).square().sum().backward()
if rank == 0:
    torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, sys.argv[3])
distributed.barrier()
distributed.destroy_process_group()
"""


def test_two_processes_get_the_gradient_of_one(tmp_path):
    code, gradients = tmp_path / "two.py", tmp_path / "gradients.pt"
    code.write_text(PROCESSES, encoding="utf-8")
    running = [process(code, rank, tmp_path / "store", gradients, cwd=tmp_path) for rank in range(2)]
    for one in running:
        exit_code, _, stderr = finished(one)
        assert exit_code == 0, stderr
    found = torch.load(gradients, weights_only=True)
    model = small().train()
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (model(x).square().sum() / 2).backward()
    assert all(gradient is not None for gradient in found.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224")


def test_the_papers_preset_costs_eight_percent_parameters_and_no_flops(base):
    plan, found = costs(base, "paper")
    by_name = {cost.component: cost for cost in found}
    whole = by_name["model"]
    assert whole.parameters == sum(parameter.numel() for parameter in base.parameters()) == 86_567_656
    assert by_name["qkv"].added_parameters == 4 * (768 * 2304 + 2304)
    assert by_name["norm"].added_parameters == 25 * 2 * 768
    assert whole.added_parameters == by_name["qkv"].added_parameters + by_name["norm"].added_parameters
    assert 7.5 <= 100 * whole.added_parameters / whole.parameters <= 8.5
    assert 0 <= whole.added_flops / whole.flops < 0.001
    assert plan.notes == ("layer_scale is left out: the model has none.",)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_base_patch16_224", {}),
        ("vit_small_patch14_dinov2", {"img_size": 224}),
        ("deit_base_distilled_patch16_224", {}),
        ("vit_base_patch14_reg4_dinov2", {"img_size": 224}),
    ],
)
def test_flops_that_each_preset_adds(name, options, preset):
    """One product more for the prefix tokens' rows of each specialized linear map, and nothing else."""
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    plan, found = costs(model, preset)
    linear = sum(cost.flops for cost in found[:-1])
    layout = find_family(model).layout(model, (224, 224))
    whole = found[-1]
    assert whole.added_flops <= len(plan.positions) / layout.tokens * linear * 1.001
    share = whole.added_flops / whole.flops
    if len(plan.positions) <= 2:
        # With CLS, and a distillation token: below a thousandth where the paper specializes.
        assert share < {"norms": 1e-9, "paper": 0.001, "qkv_all": 0.003, "everything": 0.01}[preset]
    else:  # CLS and four registers
        assert share < {"norms": 1e-9, "paper": 0.002, "qkv_all": 0.006, "everything": 0.02}[preset]


def test_norms_alone_cost_next_to_nothing(base):
    whole = costs(base, "norms")[1][-1]
    assert 0 < whole.added_parameters / whole.parameters < 0.001
    assert whole.added_flops == 0


def test_flops_are_those_of_real_forward_passes():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, x = MODELS["timm_vit"](), images("timm_vit", 1)
    wanted = Specialization(qkv="all", mlp=[0])
    whole = costs(model, wanted)[1][-1]
    counted = []
    for twin in (model, specialize(copy.deepcopy(model), wanted)):
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            twin(x)
        counted.append(counter.get_total_flops())
    assert counted[0] == whole.flops
    assert counted[1] - counted[0] == whole.added_flops
    # The CLS row by the other set: 2 × (32×96 in two blocks, 32×128 and 128×32 in one).
    assert whole.added_flops == 2 * (2 * 32 * 96 + 2 * 32 * 128)


@pytest.mark.parametrize("name", ["timm_eva02", "timm_beit", "timm_dinov3", "hf_dinov2", "torchvision_vit", "dino_hub"])
def test_costs_of_every_family(name):
    model = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    _, found = costs(model, "norms" if name == "torchvision_vit" else "qkv_all")
    assert found[-1].flops > 0
    assert found[-1].added_parameters == sum(cost.added_parameters for cost in found[:-1])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
