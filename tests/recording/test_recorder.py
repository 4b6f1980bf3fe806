"""Recording leaves no trace in outputs, hooks, modes and gradients; a recording has what plain hooks see."""

# Shapes: B images, T tokens, D channels.

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _len_torch_dispatch_stack

import tokenlens
from tests.metrics import _cases
from tests.metrics._cases import CASES, images, stored
from tokenlens.analysis.record import RecordingObserver
from tokenlens.families.base import find_family
from tokenlens.recording.recorder import IncompleteRecording, Recorder, evaluating
from tokenlens.recording.recording import Recording
from tokenlens.reduction.reducer import Reducer
from tokenlens.tokens import Site, TokenLayout

LAYOUT = TokenLayout(grid=(4, 4), prefix=("cls", "reg", "reg", "reg"))
CONTEXTS = (nullcontext, torch.no_grad, torch.inference_mode)


def fresh(name: str = "registers") -> Any:
    """Return a copy, because these tests change modes and parameters."""
    return copy.deepcopy(_cases.model(name))


def pictures(count: int = 3) -> Tensor:
    return images("registers")[:count]


class Silent:
    """An observer that keeps nothing."""

    tokens = norm = attention = staticmethod(lambda *_: None)


def recorder(model: Any, observer: Any = None, **options: Any) -> Recorder:
    return Recorder(model, find_family(model), LAYOUT, observer or Silent(), **options)


def keep_everything() -> RecordingObserver:
    return RecordingObserver(Recording(LAYOUT), set(Site), patterns=True, max_bytes=2**30)


def every_reduction() -> Reducer:
    wanted = {str(site): {"unit_patch_sum", "patch_sum", "patch_abs_sum"} for site in Site}
    return Reducer(LAYOUT, wanted, {"norm_stages", "updates", "pattern"})


def traces(model: nn.Module) -> list[Any]:
    """Collect everything that hooks could leave in a model, and the active modes."""
    left = [
        (name, key, list(value.items()))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "hooks" in key and isinstance(value, dict)
    ]
    return [left, _len_torch_dispatch_stack(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()]


@contextmanager
def nothing_left(model: nn.Module) -> Iterator[None]:
    before, modes = traces(model), {name: module.training for name, module in model.named_modules()}
    parameters = {name: (p.requires_grad, p.grad, p._version) for name, p in model.named_parameters()}
    yield
    assert traces(model) == before
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: (p.requires_grad, p.grad, p._version) for name, p in model.named_parameters()} == parameters


@pytest.mark.parametrize("observe", [Silent, every_reduction, keep_everything])
@pytest.mark.parametrize("context", [nullcontext, torch.no_grad])
def test_the_output_is_bit_identical(context, observe):
    model = fresh()
    with context():
        plain = model(pictures())
        observer = observe()
        if isinstance(observer, Reducer):
            observer.start([0, 1, 2])
        with nothing_left(model), recorder(model, observer) as watching:
            assert torch.equal(watching.run(pictures()), plain)
        assert torch.equal(model(pictures()), plain)


def test_training_is_unchanged_under_a_recorder():
    """Dropout draws the same numbers, and gradients are bit-identical."""
    gradients = []
    for watched in (False, True):
        model = fresh().train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
        observer = every_reduction()
        observer.start([0, 1, 2])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if watched:
                with recorder(model, observer) as watching:
                    output = watching.run(pictures())
            else:
                output = model(pictures())
            output.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 20
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("function", ["analyze", "record"])
def test_modes_and_gradients_are_restored(function, context):
    model = fresh().train()
    model.blocks[0].eval()
    model.blocks[1].mlp.drop1.eval()
    model.blocks[1].norm1.weight.requires_grad_(False)
    model.norm.weight.grad = torch.ones_like(model.norm.weight)
    with nothing_left(model), context():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result = getattr(tokenlens, function)(model, pictures())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert len(result.table if function == "analyze" else result)
    model(pictures()).sum().backward()  # nothing it created is unusable for training


def test_the_users_context_does_not_change_the_numbers():
    tables = []
    for context in CONTEXTS:
        with context():
            model, pixels = fresh(), pictures().clone()
            tables.append(tokenlens.analyze(model, pixels).table)
    tables.append(tokenlens.analyze(model, pixels).table)  # made in inference mode
    for table in tables[1:]:
        np.testing.assert_array_equal(table["value"], tables[0]["value"])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("module", ["norm1", "attn.proj", "mlp"])
@pytest.mark.parametrize("function", ["analyze", "record"])
def test_after_an_error_or_an_interrupt_in_the_forward(function, module, error, monkeypatch):
    model = fresh().train()
    plain = model.eval()(pictures())
    model.train()

    def fail(*_: Any) -> None:
        raise error("stop")

    with monkeypatch.context() as patch:
        patch.setattr(model.blocks[1].get_submodule(module), "forward", fail)
        with nothing_left(model), pytest.raises(error, match="stop"):
            getattr(tokenlens, function)(model, pictures())
    assert torch.equal(model.eval()(pictures()), plain)


@pytest.mark.parametrize("method", ["tokens", "norm", "attention"])
def test_after_an_error_in_an_observer(method, monkeypatch):
    model = fresh()
    monkeypatch.setattr(Silent, method, lambda *_: 1 / 0)
    with nothing_left(model), pytest.raises(ZeroDivisionError), recorder(model) as watching:
        watching.run(pictures())
    assert torch.isfinite(model(pictures())).all()


def test_after_an_error_while_the_hooks_are_set():
    model = fresh()
    broken = copy.deepcopy(find_family(model))
    taps = broken.taps

    def fail_late(block: Any) -> Any:
        if block is model.blocks[1]:
            raise LookupError("no such block")
        return taps(block)

    broken.taps = fail_late
    with nothing_left(model), pytest.raises(LookupError), Recorder(model, broken, LAYOUT, Silent()):
        pass


def test_one_recorder_inside_another():
    model, outer, inner = fresh(), Recording(LAYOUT), Recording(LAYOUT)
    plain = model(pictures())
    with nothing_left(model), recorder(model, RecordingObserver(outer, set(Site), True, 2**30)) as watching:
        with recorder(model, RecordingObserver(inner, set(Site), True, 2**30)):
            assert torch.equal(watching.run(pictures()), plain)
        assert set(inner.tensors) == set(outer.tensors)
        assert all(torch.equal(inner[key], outer[key]) for key in outer)
        assert all(torch.equal(inner.patterns[block], outer.patterns[block]) for block in (0, 1))
        assert torch.equal(watching.run(pictures()), plain)  # the outer one still works


def test_a_residual_stream_that_is_changed_in_place(monkeypatch):
    """One tensor is then resid_pre, resid_mid and resid_post, with different numbers."""
    expected = tokenlens.analyze(fresh(), pictures(), metrics="all").table
    model = fresh()

    def in_place(block: Any, x: Tensor) -> Tensor:
        x += block.drop_path1(block.ls1(block.attn(block.norm1(x))))
        x += block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
        return x

    for block in model.blocks:
        monkeypatch.setattr(block, "forward", lambda x, block=block, **_: in_place(block, x))
    table = tokenlens.analyze(model, pictures(), metrics="all").table
    np.testing.assert_array_equal(table["value"], expected["value"])


def test_hooks_of_the_user_stay():
    model, seen = fresh(), []
    handle = model.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    with nothing_left(model):
        tokenlens.analyze(model, pictures())
    assert seen
    handle.remove()


def test_evaluating_restores_modes():
    model = fresh().train()
    model.blocks[0].eval()
    with nothing_left(model), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()


def test_a_recording_is_what_plain_hooks_see():
    recording = tokenlens.record(_cases.model("registers"), images("registers"), limit=None, patterns=True)
    full = stored("registers")
    for key, x in {**full.tokens, **full.heads}.items():
        np.testing.assert_array_equal(recording[key].double().numpy(), x)
    assert set(recording) == {*full.tokens, *full.heads}
    for block, pattern in full.patterns.items():
        np.testing.assert_allclose(recording.patterns[block].numpy(), pattern, atol=1e-6)
    assert torch.equal(recording.images, images("registers"))
    for block in recording.blocks:
        total = recording[block, "resid_pre"] + recording[block, "attn_out"] + recording[block, "mlp_out"]
        torch.testing.assert_close(recording[block, "resid_post"], total)


def test_a_recording_of_some_sites_and_blocks():
    model = fresh()
    recording = tokenlens.record(model, pictures(), sites=["resid_post", "k"], blocks=[-1])
    assert set(recording) == {(1, "resid_post"), (1, "k")}
    recording[1, "resid_post"].zero_()  # a copy
    assert tokenlens.record(model, pictures())[1, "resid_post"].abs().sum() > 0
    assert recording.patterns == {}
    patterns = tokenlens.record(fresh(), pictures(), sites=["norm1"], blocks=[0], patterns=True).patterns
    assert patterns[0].shape == (3, 3, LAYOUT.tokens, LAYOUT.tokens)
    with pytest.raises(KeyError, match="recorded sites"):
        recording[0, "resid_post"]
    with pytest.raises(LookupError, match="blocks 0 to 1"):
        tokenlens.record(fresh(), pictures(), blocks=[2])
    with pytest.raises(ValueError, match="nonsense"):
        tokenlens.record(fresh(), pictures(), sites=["nonsense"])


def test_a_recording_states_its_size_and_keeps_to_its_budget():
    recording = tokenlens.record(fresh(), pictures(), patterns=True)
    assert recording.nbytes == sum(x.nbytes for x in [*recording.values(), *recording.patterns.values()])
    assert f"{recording.nbytes / 2**20:.1f} MiB" in repr(recording)
    assert "3 images" in repr(recording)
    nbytes = 3 * LAYOUT.tokens * 48 * 4
    one_site = tokenlens.record(fresh(), pictures(), sites=["resid_post"], blocks=[0], max_bytes=nbytes)
    assert one_site.nbytes == nbytes
    with pytest.raises(ValueError, match="budget"):
        tokenlens.record(fresh(), pictures(), sites=["resid_post"], blocks=[0], max_bytes=nbytes - 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda block, forward, x, calls: x, r"block 1 attention.*block 1 norm1"),
        (lambda block, forward, x, calls: forward(x) + 0 * block.norm1(x), "block 1 norm1 was seen twice"),
        (lambda block, forward, x, calls: forward(x) if len(calls) == 1 else x, "block 1"),
    ],
    ids=["not seen", "seen twice", "not seen in later batches"],
)
def test_a_site_that_is_not_seen_once_is_named(changed, message, monkeypatch):
    model, calls = fresh(), []
    block, forward = model.blocks[1], model.blocks[1].forward
    monkeypatch.setattr(block, "forward", lambda x, **_: calls.append(1) or changed(block, forward, x, calls))
    with nothing_left(model), pytest.raises(IncompleteRecording, match=message):
        tokenlens.analyze(model, pictures(), batch_size=1)


def test_cases_have_the_layout_of_their_family():
    for name, case in CASES.items():
        model = _cases.model(name)
        layout = find_family(model).layout(model, tuple(images(name).shape[-2:]))
        assert (layout.prefix, layout.grid) == (case.prefix, case.grid)


def test_flex_attention_is_named():
    """It cannot run under a dispatch mode, whose error says nothing to a user."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.Dinov2Config(**sizes, attn_implementation="flex_attention")
    model = transformers.Dinov2Model(config).eval()
    with nothing_left(model), pytest.raises(ValueError, match="with flex_attention, whose kernel cannot be observed"):
        tokenlens.record(model, torch.randn(1, 3, 32, 32))
