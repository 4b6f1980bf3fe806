"""Check and measure tokenlens on one GPU in at most eight minutes, without a network.

    python benchmarks/gpu.py            # every part, in this order; tables go to benchmarks/results/gpu_*.md
    python benchmarks/gpu.py --parts kernels,analyze
    python benchmarks/gpu.py --smoke    # the same on a CPU in seconds: tiny models, kernels in Triton's interpreter

Parts: `tests` runs the tests marked gpu; `kernels` compares the Triton kernels with the torch operations and float64;
`analyze` and `memory` compare `analyze` with plain forward passes and tools that only store; `specialize` compares
specialized with standard models, eager and compiled; `train` compares `tokenlens train` with a bare loop. A page is
written again after each of its rows, so that an early end loses nothing; a part that fails is reported on its page, and
the exit code is 1. Every part ends at its share of the time.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from gpu_parts import Clock

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS = {"tests": 90, "kernels": 50, "analyze": 140, "memory": 15, "specialize": 95, "train": 50}
"""Each part's share of 480 seconds; the rest is for imports and the first use of the GPU."""

PAGES = {
    "tests": ("Tests that need a GPU", "`pytest -m gpu`."),
    "kernels": (
        "Triton kernels against torch operations and float64",
        "Error: largest difference from float64 torch operations on the same tensors, relative to the largest value of "
        "that output. Attention: float64 computes its own log-sum-exp, the others use that of PyTorch's kernel, so its "
        "error counts. Time of one call, median of two rounds of 20, without waiting between them.",
    ),
    "analyze": (
        "Time of analyze over a plain forward",
        "Default metrics, random weights. Each round does four passes of every tool on the same images, which are on "
        "the GPU, in random order; `analyze` also updates its metrics. Ratios are to the plain forward pass of the "
        "same round: median and bootstrap 95 % interval; “sd” is that of the milliseconds of a pass over rounds. "
        "“plain forward again” shows the noise. Other tools only store. A whole call also hashes the images and "
        "copies them to the GPU. autocast: float32 weights under bfloat16 autocast; bf16: weights in bfloat16.",
    ),
    "memory": (
        "Peak memory of analyze",
        "Largest memory that PyTorch allocated beyond weights and images, bfloat16 autocast.",
    ),
    "specialize": (
        "Time of a specialized model over the standard one",
        "Preset `paper`, bfloat16 autocast, batch 64. A step is forward, cross-entropy, backward and AdamW. Each round "
        "does four passes of every form in random order. Ratios are to the standard model of the same round: median "
        "and bootstrap 95 % interval. compiled: every block with torch.compile.",
    ),
    "train": (
        "Speed of a training over a bare PyTorch loop",
        "As in `benchmarks/train.py`, with 2048 synthetic JPEGs of 64 pixels, batch 256, bf16-mixed, and up to eight "
        "processes that read images for each way. Above 1 is faster than the bare loop of the same round.",
    ),
}
"""Title and note of each part's page, in the order of the parts."""


def run_tests(clock: Clock) -> Iterator[pd.DataFrame]:
    """Run the tests marked gpu; for a smoke test, those of a file that has none."""
    import pandas as pd

    smoke, root = "TRITON_INTERPRET" in os.environ, RESULTS.parents[1]
    where = "tests/test_shape.py" if smoke else "tests"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", where]
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "TOKENLENS_KERNELS")}
    env["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "cli")])
    limit = None if smoke else clock.left()
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=limit, check=False)
    lines = done.stdout.strip().splitlines()
    yield pd.DataFrame([{"exit code": done.returncode, "result": lines[-1] if lines else done.stderr[-500:]}])
    if done.returncode != (5 if smoke else 0):  # 5: no tests
        raise RuntimeError(done.stdout[-4000:] + done.stderr[-1000:])


def describe_machine() -> str:
    """Describe GPU and versions."""
    import timm
    import torch
    import triton
    from gpu_parts import DEVICE

    from tokenlens.reduction.choice import choose_kernels

    chip = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU, smoke test"
    packages = f"torch {torch.__version__}, triton {triton.__version__}, timm {timm.__version__}"
    reductions = f"reductions in {choose_kernels(torch.device(DEVICE))[1]}"
    return f"{chip}; {os.cpu_count()} processors, Python {platform.python_version()}, {packages}; {reductions}"


def run_part(name: str, seconds: float, folder: Path) -> bool:
    """Run a part within its time, and write its page after every row; return whether it succeeded."""
    import torch
    from analyze import markdown
    from gpu_parts import MEASURES, Clock

    title, note = PAGES[name]
    command = " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    head = [f"# {title}", f"{describe_machine()}\n\n`{command}`", note]
    begun, table, failure = time.perf_counter(), "", ""

    def write(*texts: str) -> None:
        (folder / f"gpu_{name}.md").write_text("\n\n".join([*head, *texts]) + "\n", encoding="utf-8")

    try:
        for rows in (MEASURES | {"tests": run_tests})[name](Clock(seconds)):
            table = markdown(rows)
            write(table, "Unfinished.")
    except (Exception, SystemExit):
        failure = f"Failed:\n\n```\n{traceback.format_exc()[-6000:]}```"
        print(failure, file=sys.stderr)
    write(*filter(None, (table, failure)), f"Took {time.perf_counter() - begun:.0f} s.")
    print(f"{title} ({time.perf_counter() - begun:.0f} s)\n\n{table}\n", flush=True)
    torch.cuda.empty_cache()
    return not failure


def main() -> int:
    """Parse the command line, run the parts and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PAGES), help="names, separated by commas")
    parser.add_argument("--out", type=Path, help="folder of the pages (default benchmarks/results)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU; pages go to a temporary folder")
    options = parser.parse_args()
    parts = options.parts.split(",")
    unknown = [part for part in parts if part not in PAGES]
    if unknown:
        parser.error(f"unknown parts {', '.join(unknown)}; there are {', '.join(PAGES)}")
    folder = options.out or (Path(tempfile.mkdtemp()) if options.smoke else RESULTS)
    if options.smoke:
        if folder.resolve() == RESULTS:
            parser.error("--smoke measures nothing; give another folder than benchmarks/results")
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        os.environ["TOKENLENS_KERNELS"] = "torch"  # analyze would take minutes in the interpreter
    import torch

    if not options.smoke and not torch.cuda.is_available():
        print("error: PyTorch finds no GPU; --smoke runs a small version on the CPU", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    succeeded = [run_part(part, 0 if options.smoke else SECONDS[part], folder) for part in parts]
    print(f"pages: {folder}")
    return 0 if all(succeeded) else 1


if __name__ == "__main__":
    sys.exit(main())
