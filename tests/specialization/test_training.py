"""Training specialized models: checkpointed activations, compilation, stochastic depth, several processes."""

import copy
import warnings

import pytest
import timm
import torch
from torch import nn

from tests.support.command_line import finished, process
from tests.support.tiny_models import MODELS, images
from tests.support.watching import tensors
from tokenlens import specialize


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


def test_a_whole_model_compiles_in_one_graph():
    """BEiT has the most unusual modules: bare LayerScale parameters, and biases outside the projection."""
    model, x = specialize(MODELS["timm_beit"](), "everything"), images("timm_beit")
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
    torch.manual_seed(0)
    model = specialize(timm.create_model("test_vit", img_size=64, num_classes=3), "everything")
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (model(x).square().sum() / 2).backward()
    assert all(gradient is not None for gradient in found.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
