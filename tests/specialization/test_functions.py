"""The functions behind specialized modules: their gradients, mixed precision, compilation."""

import pytest
import torch
from timm.layers import LayerScale, RmsNorm, RmsNormFp32
from torch import nn

from tokenlens.specialization._functions import LayerNormFunction, LinearFunction, ScaleFunction
from tokenlens.specialization.base import components

POSITIONS = [(0,), (0, 1, 2), (-2, -1), (0, -1), (1,)]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("positions", POSITIONS)
def test_gradients(positions):
    x, check = numbers(2, 5, 6), torch.autograd.gradcheck
    assert check(lambda *a: LayerNormFunction.apply(*a, 1e-6, positions), [x, *(numbers(6) for _ in range(4))])
    assert check(lambda *a: ScaleFunction.apply(*a, positions), [x, numbers(6), numbers(6)])
    for channels_out in (3, 9):
        weights = numbers(channels_out, 6), numbers(channels_out), numbers(channels_out, 6), numbers(channels_out)
        assert check(lambda *a: LinearFunction.apply(*a, positions), [x, *weights])
        without_bias = [x, weights[0], weights[2]]
        assert check(lambda x, one, two: LinearFunction.apply(x, one, None, two, None, positions), without_bias)


@pytest.mark.parametrize("frozen", range(5))
def test_gradients_of_some_inputs_only(frozen):
    for function, shapes in ((LayerNormFunction, [(6,)] * 4), (LinearFunction, [(3, 6), (3,)] * 2)):
        arguments = [numbers(2, 5, 6), *(numbers(*shape) for shape in shapes)]
        rest = (1e-6, (0,)) if function is LayerNormFunction else ((0,),)
        (expected := function.apply(*arguments, *rest).square().sum()).backward()
        assert expected.isfinite()
        full = [argument.grad for argument in arguments]
        for number, argument in enumerate(arguments):
            argument.grad = None
            argument.requires_grad_(number != frozen)
        function.apply(*arguments, *rest).square().sum().backward()
        for number, argument in enumerate(arguments):
            if number == frozen:
                assert argument.grad is None
            else:
                torch.testing.assert_close(argument.grad, full[number])


class Block(nn.Module):
    """The kinds of modules that can be specialized, with one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.rms = nn.LayerNorm(16), RmsNorm(16)
        self.linear, self.scale = nn.Linear(16, 16), LayerScale(16, init_values=0.5)

    def forward(self, x):
        return self.scale(self.linear(self.rms(x) + self.linear(self.norm(x))))


def both() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    standard = Block()
    twin = Block()
    twin.load_state_dict(standard.state_dict())
    for name, component in (("norm", "norm"), ("rms", "norm"), ("linear", "proj"), ("scale", "layer_scale")):
        components.get(component)().specialize(twin, name, (0,)).install(twin, name)
    return standard, twin


@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_as_in_the_standard_block_though_a_weight_is_used_twice(dtype, backward_inside):
    standard, twin = both()
    x = torch.randn(2, 5, 16)
    found = []
    for block in (standard, twin):
        with torch.autocast("cpu", dtype=dtype):
            y = block(x)
            if backward_inside:
                y.float().square().sum().backward()
        if not backward_inside:
            y.float().square().sum().backward()
        found.append(y)
    assert found[0].dtype == found[1].dtype
    torch.testing.assert_close(found[1], found[0], rtol=2e-2, atol=2e-2)
    for name, parameter in standard.named_parameters():
        owner, _, last = name.rpartition(".")
        sides = [twin.get_parameter(f"{owner}.{side}.{last}") for side in ("cls", "patch")]
        assert {side.grad.dtype for side in sides} == {torch.float32}
        torch.testing.assert_close(
            sides[0].grad + sides[1].grad, parameter.grad, rtol=5e-2, atol=5e-2 * float(parameter.grad.abs().max())
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    standard, twin = (block.to(dtype) for block in both())
    x = torch.randn(2, 5, 16, dtype=dtype)
    with torch.no_grad():
        assert twin(x).dtype == dtype
        tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-12
        torch.testing.assert_close(twin(x), standard(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [RmsNorm, RmsNormFp32, nn.RMSNorm])
def test_rms_norms(kind):
    owner = nn.Module()
    owner.norm = kind(16)
    nn.init.normal_(owner.norm.weight)
    x = torch.randn(2, 5, 16)
    expected = owner.norm(x)
    twin = components.get("norm")().specialize(owner, "norm", (0, 1))
    torch.testing.assert_close(twin(x), expected)


def test_a_norm_without_weights_is_refused():
    owner = nn.Module()
    owner.norm = nn.LayerNorm(4, elementwise_affine=False)
    with pytest.raises(LookupError, match=r"norm of a Module, a torch\.nn\..*LayerNorm, has no weights"):
        components.get("norm")().specialize(owner, "norm", (0,))


def test_second_derivatives():
    positions, x = (0, 1), numbers(2, 4, 3)
    norm = [numbers(3) for _ in range(4)]
    assert torch.autograd.gradgradcheck(lambda *a: LayerNormFunction.apply(*a, 1e-6, positions), [x, *norm])
    assert torch.autograd.gradgradcheck(lambda *a: ScaleFunction.apply(*a, positions), [x, numbers(3), numbers(3)])
    linear = [numbers(2, 3), numbers(2), numbers(2, 3), numbers(2)]
    assert torch.autograd.gradgradcheck(lambda *a: LinearFunction.apply(*a, positions), [x, *linear])


def test_compiled_without_a_break_in_the_graph():
    _, twin = both()
    x = torch.randn(2, 5, 16)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    twin(x).square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in twin.named_parameters()}
    twin.zero_grad()
    torch.testing.assert_close(compiled(x), twin(x))
    compiled(x).square().sum().backward()
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
