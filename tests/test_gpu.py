"""What only a GPU shows: the numbers of the CPU, no hidden synchronization, specialized models; and its benchmark."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import timm
import torch

import tokenlens
from tests.support.command_line import REPOSITORY, finished, process
from tests.support.tiny_models import MODELS, images
from tokenlens.analysis.analyze import choose_metrics
from tokenlens.analysis.run import AnalysisRun
from tokenlens.images.preprocessing import Batch
from tokenlens.models.loading import load_model
from tokenlens.recording.recorder import evaluating
from tokenlens.specialization import specialize

BENCHMARK = REPOSITORY / "benchmarks" / "gpu.py"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "name", ["timm_vit", "timm_dinov2_registers", "timm_rms", "timm_dinov3", "timm_beit", "hf_vit"]
)
def test_a_gpu_gives_the_numbers_of_the_cpu(name):
    tables = [
        tokenlens.analyze(MODELS[name]().to(device), images(name, 4), batch_size=2, device=device).table
        for device in ("cpu", "cuda")
    ]
    keys = ["metric", "part", "site", "group", "block", "head", "n"]
    assert tables[0][keys].equals(tables[1][keys])
    expected, got = (torch.tensor(table["value"].to_numpy()) for table in tables)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("amp", [False, True])
def test_no_hidden_synchronization(amp):
    """PyTorch raises an error at an operation that waits for the GPU, from the second batch to the last."""
    model, pixels = MODELS["timm_dinov2_registers"]().cuda(), images("timm_dinov2_registers", 4).cuda()
    run = AnalysisRun(load_model(model, device="cuda"), choose_metrics(None), 4096, expensive=False)

    def batches() -> Iterator[Batch]:
        for first in range(0, 32, 4):
            names = [f"{first + image}" for image in range(4)]
            yield Batch(pixels, list(range(first, first + 4)), names, names, names, [False] * 4)

    def done(batch: Batch) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch.indices[0] < 28 else "default")

    try:
        with evaluating(model):
            run.process(batches(), amp, done)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_recording_leaves_the_output_as_it_is():
    model, pixels = MODELS["timm_vit"]().cuda(), images("timm_vit", 2).cuda()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        before = model(pixels)
        recording = tokenlens.record(model, pixels)
        assert recording is not None
        assert torch.equal(model(pixels), before)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_specialized_model_computes_the_same(compiled):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64).cuda().eval()
    pixels = torch.randn(2, 3, 64, 64, device="cuda")
    with torch.no_grad():
        expected = model(pixels)
        specialize(model, "paper")
        if compiled:
            for block in model.blocks:
                block.compile()
        torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@needs_gpu
def test_a_training_step_in_mixed_precision(tmp_path, photographs):
    for name in ("a", "b"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for path in photographs.iterdir():
            (tmp_path / "data" / "train" / name / path.name).write_bytes(path.read_bytes())
    settings = ["steps=2", "epochs=None", "batch_size=4", "workers=0", "precision=bf16-mixed"]
    run = tokenlens.train("tiny_supervised", tmp_path / "data", tmp_path / "run", device="cuda", settings=settings)
    assert run is not None


# -- the benchmark


def test_the_benchmark_in_small(tmp_path):
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        pytest.skip("loops fail in the interpreter of Triton 3.6 with NumPy 2.4")
    running = process(BENCHMARK, "--smoke", "--out", tmp_path, cwd=REPOSITORY)
    exit_code, stdout, stderr = finished(running, seconds=300)
    assert exit_code == 0, f"{stdout[-3000:]}{stderr[-3000:]}"
    pages = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert set(pages) == {f"gpu_{part}" for part in ("tests", "kernels", "analyze", "memory", "specialize", "train")}
    for page in pages.values():
        assert "| " in page
        assert "CPU, smoke test" in page
        assert "Unfinished" not in page
        assert "Failed" not in page
    assert "tokenlens analyze" in pages["gpu_analyze"]
    assert "compiled" in pages["gpu_specialize"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "part"),
    [
        (("--smoke", "--out", "benchmarks/results"), 2, "give another folder"),
        (("--parts", "speed"), 2, "unknown parts speed; there are tests, kernels"),
    ],
)
def test_what_the_benchmark_refuses(arguments, exit_code, part):
    before = sorted((REPOSITORY / "benchmarks" / "results").iterdir())
    found, _, stderr = finished(process(BENCHMARK, *arguments, cwd=REPOSITORY))
    assert (found, part in stderr) == (exit_code, True), stderr
    assert sorted((REPOSITORY / "benchmarks" / "results").iterdir()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so():
    exit_code, _, stderr = finished(process(BENCHMARK, cwd=REPOSITORY))
    assert exit_code == 1
    assert stderr.splitlines() == ["error: PyTorch finds no GPU; --smoke runs a small version on the CPU"]
