"""The measurements of ``gpu.py``: each yields its table again with every row that it adds."""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import timm
import torch
import triton
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

BENCHMARKS = Path(__file__).resolve().parent
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS.parent)]
import specialize
import train
from analyze import available, ratio_and_interval

import tokenlens
from tests.reduction import triton_checks as checks
from tokenlens.analysis.analyze import choose_metrics
from tokenlens.analysis.run import AnalysisRun
from tokenlens.images.labelled.classes import open_labelled
from tokenlens.images.preprocessing import Batch
from tokenlens.models.loading import load_model
from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import AttentionCapture
from tokenlens.recording.recorder import evaluating
from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.reduction.triton_kernels import TritonKernels
from tokenlens.tokens import TokenLayout

SMOKE = triton.knobs.runtime.interpret

DEVICE = "cpu" if SMOKE else "cuda"

Page = Iterator[pd.DataFrame]


@dataclass
class Clock:
    """The time that a part has."""

    seconds: float
    begun: float = field(default_factory=time.perf_counter)

    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.begun)


def wait() -> None:
    """Wait until the GPU has done what was launched."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


autocast = partial(torch.autocast, DEVICE, torch.bfloat16)


def interleave(steps: dict[str, Callable[[], object]], seconds: float, passes: int = 1) -> pd.DataFrame:
    """Measure the seconds of a pass of every step in each round, in random order; two more rounds warm up."""
    clock, order, rows = Clock(seconds), random.Random(0), []
    while len(rows) < (3 if SMOKE else 4) or clock.left() > 0:
        row = {}
        for name in order.sample(list(steps), len(steps)):
            wait()
            begun = time.perf_counter()
            for _ in range(passes):
                steps[name]()
            wait()
            row[name] = (time.perf_counter() - begun) / passes
        rows.append(row)
    return pd.DataFrame(rows[2:])


def compared(table: pd.DataFrame, step: str, plain: str, images: int) -> dict[str, float]:
    """Return images per second, and the ratio of times to those of another step in the same round."""
    seconds = table[step]
    spread = {"rounds": len(table), "ms": 1e3 * seconds.median(), "sd": 1e3 * seconds.std()}
    return {"images/s": images / seconds.median()} | spread | ratio_and_interval("", seconds / table[plain])


# -- kernels

SHAPES = [
    ("ViT-S/16", 64, TokenLayout(grid=(14, 14)), 384, 6),
    ("ViT-B/16", 64, TokenLayout(grid=(14, 14)), 768, 12),
    ("ViT-L/16", 64, TokenLayout(grid=(14, 14)), 1024, 16),
    ("DINOv2-B/14 at 518, registers", 8, TokenLayout(grid=(37, 37), prefix=("cls", *["reg"] * 4)), 768, 12),
    ("SO400M/14, no special token", 16, TokenLayout(grid=(16, 16), prefix=()), 1152, 16),
    ("ViT-H/14", 16, TokenLayout(grid=(16, 16)), 1280, 16),
    ("DINOv2-g/14", 8, TokenLayout(grid=(16, 16)), 1536, 24),
    ("4100 tokens", 1, TokenLayout(grid=(64, 64), prefix=("cls", *["reg"] * 3)), 192, 3),
    ("1 token", 4, TokenLayout(grid=(1, 1), prefix=()), 192, 3),
]
if SMOKE:
    SHAPES = [("smoke", 1, TokenLayout(grid=(3, 3)), 48, 2)]


def attention_of(q: Tensor, k: Tensor, v: Tensor) -> AttentionCall:
    """Run PyTorch's kernel, and return its call with the log-sum-exp that it computes."""
    with torch.no_grad(), AttentionCapture(len(q), q.shape[-2]) as capture:
        scaled_dot_product_attention(q, k, v)
    assert capture.call is not None
    return capture.call


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest difference of any output relative to the largest value of that output."""
    pairs = [(a.double(), b) for a, b in zip(found, exact, strict=True) if b.numel()]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


Reduce = Callable[[ReductionKernels], list[Tensor]]


def reductions(
    images: int, layout: TokenLayout, channels: int, heads: int, dtype: torch.dtype
) -> dict[str, tuple[Reduce, Reduce]]:
    """Return every reduction of random activations, and the same of these activations in float64."""
    x, y = (checks.random(images, layout.tokens, channels, seed=seed, dtype=dtype) for seed in (0, 1))
    qkv = checks.random(images, layout.tokens, 3 * channels, seed=2, dtype=dtype) / 2
    call = attention_of(*qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4))
    exact_call = AttentionCall(call.q_BHTd.double(), call.k_BHTd.double(), call.v_BHTd.double(), call.scale)
    gamma = checks.random(channels, seed=3)

    def tokens(x: Tensor, other: Tensor | None, form: ReductionKernels) -> list[Tensor]:
        reduced = checks.reduce_tokens(form, x, other=other)
        return [reduced[name] for name in sorted(reduced)]

    def norm(x: Tensor, y: Tensor, gamma: Tensor, form: ReductionKernels) -> list[Tensor]:
        return checks.reduce_norm(form, x, y, checks.norm_parameters("layer", gamma))

    return {
        "tokens and products": (partial(tokens, x, y), partial(tokens, x.double(), y.double())),
        "tokens per head": (partial(tokens, call.q_BHTd, None), partial(tokens, call.q_BHTd.double(), None)),
        "norm": (partial(norm, x, y, gamma), partial(norm, x.double(), y.double(), gamma.double())),
        "attention": tuple(partial(checks.reduce_attention, call=one) for one in (call, exact_call)),
    }


def compare_kernels(clock: Clock) -> Page:
    """Compare the Triton kernels with the torch operations and float64, for real shapes in every precision."""
    rows: list[dict[str, object]] = []
    dtypes = (torch.bfloat16, torch.float32, torch.float16)
    cases = [(dtype, *shape) for dtype in (dtypes[:1] if SMOKE else dtypes) for shape in SHAPES]
    for dtype, name, images, layout, channels, heads in cases:
        if clock.left() < 2 and not SMOKE:
            rows.append({"shape": f"{name} in {dtype}, and later ones: no time"})
            break
        forms = {"triton": TritonKernels(layout), "torch": ReductionKernels(layout)}
        for reduction, (reduce, exactly) in reductions(images, layout, channels, heads, dtype).items():
            exact = exactly(forms["torch"])
            errors = {f"{form} error": f"{relative_error(reduce(one), exact):.1e}" for form, one in forms.items()}
            steps = {form: partial(reduce, one) for form, one in forms.items()}
            table = interleave(steps, 0, 1 if SMOKE else 20)
            micros = {f"{form} µs": 1e6 * table[form].median() for form in forms}
            what = {"shape": name, "size": f"{images}×{layout.tokens}×{channels}", "dtype": str(dtype)[6:]}
            rows.append(what | {"reduction": reduction} | errors | micros)
        yield pd.DataFrame(rows)
    yield pd.DataFrame(rows)


# -- analyze


def vit(name: str, precision: str = "autocast") -> nn.Module:
    """Make a model of timm with random weights on the device."""
    torch.manual_seed(0)
    options = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 2} if SMOKE else {}
    with torch.device(DEVICE):
        model = timm.create_model(name, **options).eval()
    return model.bfloat16() if precision == "bf16" else model


def random_images(count: int) -> Tensor:
    side = 32 if SMOKE else 224
    return torch.randn(count, 3, side, side, device=DEVICE)


class AnalyzePass:
    """One forward pass of `analyze` with the default metrics, on images that are on the device."""

    def __init__(self, model: nn.Module, x: Tensor, amp: bool) -> None:
        loaded = load_model(model, device=DEVICE)
        self.run = AnalysisRun(loaded, choose_metrics(None), 4096, expensive=False)
        self.run._prepare((x.shape[-2], x.shape[-1]))
        self.recorder = self.run._recorder()
        self.x, self.amp, self.done = x, amp, 0

    def __call__(self) -> None:
        assert self.recorder is not None
        indices = list(range(self.done, self.done + len(self.x)))
        names = [*map(str, indices)]
        batch = Batch(self.x, indices, names, names, names, [False] * len(names))
        self.run._run(self.recorder, batch, self.x, self.amp)
        self.done += len(self.x)


def transformers_steps(x: Tensor, amp: bool) -> dict[str, Callable[[], object]]:
    """Return a ViT-B of transformers, plain with its fused attention, and with output_attentions."""
    try:
        from transformers import ViTConfig, ViTModel
    except ImportError:
        print("skipped: transformers is not installed", file=sys.stderr)
        return {}
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2} if SMOKE else {}
    config = ViTConfig(image_size=x.shape[-1], **sizes)

    def step(attention: str, **options: bool) -> Callable[[], object]:
        with torch.device(DEVICE):
            model = ViTModel._from_config(config, attn_implementation=attention).eval()
        model = model if amp else model.to(x.dtype)

        def forward() -> object:
            with autocast(amp):
                return model(x, **options)

        return forward

    return {
        "transformers: plain forward": step("sdpa"),
        "transformers: output_attentions": step("eager", output_attentions=True),
    }


CASES = [
    *[("vit_base_patch16_224", batch, precision) for precision in ("autocast", "bf16") for batch in (64, 256)],
    *[(f"vit_{size}_patch16_224", batch, "autocast") for size in ("small", "large") for batch in (64, 256)],
]
if SMOKE:
    CASES = [("vit_base_patch16_224", 2, "autocast")]


def analyze_steps(model: nn.Module, x: Tensor, amp: bool) -> dict[str, Callable[[], object]]:
    """Return one pass of each tool: plain, `analyze`, and tools that store."""

    def under(tool: Callable[[Tensor], object]) -> object:
        with autocast(amp):
            return tool(x)

    with evaluating(model), autocast(amp):
        tools = {"plain forward": model, "plain forward again": model} | available(model, x)
    steps: dict[str, Callable[[], object]] = {name: partial(under, tool) for name, tool in tools.items()}
    return steps | {"tokenlens analyze": AnalyzePass(model, x, amp)}


def time_analyze(clock: Clock) -> Page:
    """Time passes of `analyze` and of other tools over plain forward passes."""
    rows: list[dict[str, object]] = []
    for number, (name, batch, precision) in enumerate(CASES):
        if clock.left() < 8 and not SMOKE:
            rows.append({"model": f"{name}, batch {batch}, {precision}, and later ones: no time"})
            break
        seconds, amp = clock.left() / (len(CASES) - number) - 4, precision == "autocast"
        model = vit(name, precision)
        x = random_images(batch).to(next(model.parameters()).dtype)
        steps = analyze_steps(model, x, amp)
        if name.startswith("vit_base"):
            steps |= transformers_steps(x, amp)
        with evaluating(model):
            table = interleave(steps, seconds, 1 if SMOKE else 4)
        what: dict[str, object] = {"model": name, "batch": batch, "precision": precision}
        for step in steps:
            base = "transformers: plain forward" if step.startswith("transformers") else "plain forward"
            rows.append(what | {"tool": step} | compared(table, step, base, batch))
        yield pd.DataFrame(rows)
        if amp:
            on_host = random_images(2 * batch).cpu()
            begun = time.perf_counter()
            tokenlens.analyze(model, on_host, batch_size=batch, device=DEVICE, amp=True)
            took = time.perf_counter() - begun
            whole = {"tool": f"analyze, whole call, {2 * batch} images", "images/s": 2 * batch / took, "rounds": 1}
            rows.append(what | whole | {"ms": 1e3 * took})
            yield pd.DataFrame(rows)
        del steps, model, table
        gc.collect()
    yield pd.DataFrame(rows)


def peak_memory(step: Callable[[], object], passes: int) -> float:
    """Return the largest memory in MiB that PyTorch allocates on the GPU during some passes."""
    gc.collect()
    if DEVICE == "cpu":
        step()
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(passes):
        step()
    wait()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure_memory(clock: Clock) -> Page:
    """Measure the peak memory of plain passes, of tools that store, and of `analyze` on more and more images."""
    rows: list[dict[str, object]] = []
    name = "vit_base_patch16_224"
    for batch in (2,) if SMOKE else (64, 256):
        model, x = vit(name), random_images(batch)
        steps = analyze_steps(model, x, True)
        cases = [(tool, 1) for tool in ("plain forward", "hooks that store", "nnsight") if tool in steps]
        for tool, passes in (*cases, *[("tokenlens analyze", count) for count in ((1,) if SMOKE else (1, 4, 16))]):
            if clock.left() < 2 and not SMOKE:
                rows.append({"model": f"{name}, batch {batch}, {tool}, and later ones: no time"})
                break
            step = AnalyzePass(model, x, True) if tool == "tokenlens analyze" else steps[tool]
            with evaluating(model):
                peak = peak_memory(step, passes)
            what = {"model": name, "batch": batch, "tool": tool, "images": passes * batch}
            rows.append(what | {"peak beyond weights and images, MiB": peak})
            yield pd.DataFrame(rows)
        del steps, step, model
    yield pd.DataFrame(rows)


# -- specialize


def compile_blocks(model: nn.Module) -> nn.Module:
    """Compile each block by itself: blocks that are alike are compiled once."""
    for block in model.blocks:
        block.compile(backend="eager" if SMOKE else "inductor")
    return model


def time_specialized(clock: Clock) -> Page:
    """Time forward passes and training steps of a specialized model over those of the standard one."""
    rows: list[dict[str, object]] = []
    names = ("test_vit",) if SMOKE else ("vit_base_patch16_224", "vit_small_patch16_224")
    batch = 2 if SMOKE else 64
    cases = [(mode, name, phase) for mode in ("eager", "compiled") for name in names for phase in ("forward", "step")]
    for number, (mode, name, phase) in enumerate(cases):
        if clock.left() < 5 and not SMOKE:
            rows.append({"model": f"{name}, {mode} {phase}, and later ones: no time"})
            break
        forms = [form for form in specialize.FORMS if mode == "eager" or form != "naive"]
        begin = specialize.forward_step if phase == "forward" else specialize.training_step
        steps, x = {}, torch.empty(0)
        for form in forms:
            model = specialize.make(name, form, "paper", DEVICE)
            x = torch.randn(batch, 3, *model.patch_embed.img_size, device=DEVICE)
            steps[form] = begin(compile_blocks(model) if mode == "compiled" else model, x, True)
        for form in forms:
            for _ in range(1 if SMOKE else 3):  # compiles, and takes memory
                steps[form]()
        seconds = clock.left() / (len(cases) - number)
        table = interleave(steps, min(seconds, 0.3 * clock.seconds), 1 if SMOKE else 4)
        for form in forms:
            what = {"model": name, "phase": phase, "mode": mode, "form": form}
            rows.append(what | compared(table, form, "standard", batch))
        yield pd.DataFrame(rows)
        del steps, model
        gc.collect()
    yield pd.DataFrame(rows)


# -- train


def time_training(clock: Clock) -> Page:
    """Time `tokenlens train` over a bare loop, with the tiny recipes at 64 pixels."""
    objectives = ("supervised",) if SMOKE else ("supervised", "dinov2")
    options = argparse.Namespace(batch=256, steps=4, workers=min(8, os.cpu_count() or 1), device=DEVICE)
    options.precision, options.seconds = "bf16-mixed", clock.left() / len(objectives) - 6
    if SMOKE:
        whole, train.recipe_for = train.recipe_for, lambda *given: replace(whole(*given), steps=train.WARM + 1)
        options.batch, options.steps, options.workers, options.seconds = 4, 1, 0, 60
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["TOKENLENS_CACHE"] = str(folder / "cache")
        images = open_labelled(train.synthetic_images(folder / "images.tar", 64 if SMOKE else 2048, 64), "train")
        for objective in objectives:
            found.append(train.measure_time(objective, options, images, folder))
            yield train.time_table(found, options.batch)


MEASURES: dict[str, Callable[[Clock], Page]] = {
    "kernels": compare_kernels,
    "analyze": time_analyze,
    "memory": measure_memory,
    "specialize": time_specialized,
    "train": time_training,
}
