"""The reductions agree with float64, whatever the mean, the scale and the parameters of a norm."""

# Shapes: B images, T tokens, D channels.

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tokenlens
from tests.metrics._cases import images, model
from tokenlens.analysis.run import AnalysisRun
from tokenlens.families import norm_parameters
from tokenlens.recording.capture import NormCall, NormCapture
from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.specialization import specialize
from tokenlens.tokens import TokenLayout

LAYOUTS = [
    TokenLayout(grid=(4, 5)),
    TokenLayout(grid=(2, 5), prefix=("cls", "reg"), patch_start=1),
    TokenLayout((3, 3), ()),
]
SUMS = ("unit_patch_sum", "patch_sum", "patch_abs_sum", "patch_square_sum")
D = 48


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reduce_norm(module: nn.Module, layout: TokenLayout, x: Tensor, call: NormCall | None) -> dict[str, Tensor]:
    """Run every reduction of a norm; with a call, as the kernel's statistics allow."""
    parts = ReductionKernels(layout).reduce_norm(x, module(x), norm_parameters(module), call, SUMS, SUMS)
    named = zip(("before ", "after ", ""), parts, strict=True)
    return {f"{side}{name}": value for side, part in named for name, value in part.items()}


def captured(module: nn.Module, x: Tensor) -> NormCall | None:
    with NormCapture(x) as capture:
        module(x)
    return capture.call


def norm(kind: str, gamma: float, beta: float) -> nn.Module:
    made = nn.RMSNorm(D, eps=1e-6) if kind == "rms" else nn.LayerNorm(D, eps=1e-6)
    with torch.no_grad():
        made.weight.copy_(gamma * (1 + 0.3 * random(D, seed=3)))
        if kind == "layer":
            made.bias.copy_(beta * random(D, seed=4))
    return made.requires_grad_(False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(
    ("mean", "scale", "gamma", "beta"),
    [(0.1, 1, 1, 0.5), (100, 1, 1, 0.5), (3, 1, 0.01, 30), (0, 1e-4, 1, 0), (-2, 0.7, 0.2, 1), (0, 100, 1e-6, 1)],
    ids=["usual", "large mean", "large bias", "below eps", "near the limit", "bias that hides everything"],
)
def test_norms_agree_with_float64(layout, kind, mean, scale, gamma, beta):
    module, x = norm(kind, gamma, beta), random(3, layout.tokens, D) * scale + mean
    call = captured(module, x)
    assert call is not None
    got = reduce_norm(module, layout, x, call)
    exact = reduce_norm(norm(kind, gamma, beta).double(), layout, x.double(), None)
    for name in got:
        # Of γ⊙(x − μ) and the input nothing may be lost; the output itself is the model's.
        expected = exact[name]
        size = expected.abs().amax(-1, keepdim=True) if "sum" in name or "prefix" in name else expected.abs()
        if name.startswith("after"):
            continue
        assert ((got[name] - expected).abs() <= 1e-5 * size + 2e-6 * min(1, scale)).all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_agrees_with_float64_of_the_same_tensors(dtype):
    layout, module = LAYOUTS[0], norm("layer", 1, 0.5)
    x = (random(3, layout.tokens, D) + 0.3).to(dtype)
    half = norm("layer", 1, 0.5).to(dtype)
    assert captured(half, x) is None  # its statistics are rounded
    got = reduce_norm(half, layout, x, None)
    with torch.no_grad():
        for one, other in zip(module.double().parameters(), half.parameters(), strict=True):
            one.copy_(other)
    exact = reduce_norm(module, layout, x.double(), None)
    for name in (name for name in got if not name.startswith("after")):
        torch.testing.assert_close(got[name].double(), exact[name], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["layer", "rms", "specialized"])
def test_the_statistics_are_those_of_the_kernel(kind):
    vit = specialize(copy.deepcopy(model("layer")), "norms") if kind == "specialized" else model(kind)
    block, x = vit.blocks[0], random(2, 17, vit.embed_dim) + 1
    with torch.no_grad():
        call = captured(block.norm1, x)
    assert call is not None
    assert (call.mean_BT is None) == (kind == "rms")
    centred = x.double() - (0 if call.mean_BT is None else x.double().mean(-1, keepdim=True))
    exact = (centred.square().mean(-1) + norm_parameters(block.norm1).eps).rsqrt()
    torch.testing.assert_close(call.rstd_BT.double(), exact, rtol=1e-6, atol=0)


WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::item", "aten::equal", "aten::_to_cpu"}


class NoWaiting(TorchDispatchMode):
    """Raise where an operation would wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in WAITS, f"{func._schema.name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["registers", "rms"])
def test_no_pass_waits_for_the_device(monkeypatch, name):
    """As on a GPU, where numbers are not looked at: hooks and everything between batches, until a pool is read."""
    monkeypatch.setattr(ReductionKernels, "_stages_from_output", lambda *_: None)
    run, batches = AnalysisRun._run, []

    def without_waiting(self: AnalysisRun, *arguments: Any) -> None:
        with NoWaiting():
            run(self, *arguments)
        batches.append(1)

    monkeypatch.setattr(AnalysisRun, "_run", without_waiting)
    tokenlens.analyze(model(name), images(name)[:4], metrics="all", batch_size=1)
    assert len(batches) == 4
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        bool(torch.ones(1) > 0)
