"""Time and memory of a specialized model relative to the standard one, and to a naive form of specialization.

    python benchmarks/specialize.py time    # ViT-S/16 and ViT-B/16, whole passes and steps, interleaved in one process
    python benchmarks/specialize.py parts   # the same by part (each block, the rest, the optimizer): less noise
    python benchmarks/specialize.py memory  # peak resident memory of a training step, one new process per number
    python benchmarks/specialize.py all

The naive form splits the tokens, calls two modules and concatenates. A step is forward, cross-entropy, backward and
AdamW. Tables go to benchmarks/results/. On a GPU: `python benchmarks/specialize.py all --device cuda --amp --batch 64`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from torch import Tensor, nn

from tokenlens.reduction.memory import keep_freed_memory
from tokenlens.specialization import SpecializedModule, get_plan, specialize

sys.path.insert(0, str(Path(__file__).parent))
from analyze import RESULTS, hardware, markdown, peak_mib, ratio_and_interval

MODELS = ("deit3_small_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224")
FORMS = ("standard", "standard again", "specialized", "naive")


class Naive(nn.Module):
    """Specialization by splitting the tokens, calling two modules and concatenating."""

    def __init__(self, module: SpecializedModule) -> None:
        super().__init__()
        self.cls, self.patch, self.count = module.cls, module.patch, len(module.positions)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.cat((self.cls(x_BTD[:, : self.count]), self.patch(x_BTD[:, self.count :])), dim=1)


def make(name: str, form: str, preset: str, device: str) -> nn.Module:
    """Return a model in one form, with the same weights for every form."""
    torch.manual_seed(0)
    model = timm.create_model(name).to(device)
    if form.startswith("standard"):
        return model
    specialize(model, preset)
    if form == "naive":
        plan = get_plan(model)
        assert plan is not None
        for planned in plan.modules:
            owner, _, last = planned.path.rpartition(".")
            setattr(model.get_submodule(owner), last, Naive(model.get_submodule(planned.path)))
    return model


def forward_step(model: nn.Module, x: Tensor, amp: bool) -> Callable[[], object]:
    """Return a function that runs one forward pass without gradients, in eval mode."""

    def step() -> object:
        model.eval()
        with torch.no_grad(), torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=amp):
            return model(x)

    return step


def training_step(model: nn.Module, x: Tensor, amp: bool) -> Callable[[], object]:
    """Return a function that runs forward, cross-entropy, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    target = torch.arange(len(x), device=x.device)

    def step() -> object:
        model.train()
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=amp):
            loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def measure_time(
    name: str, phase: str, preset: str, batch: int, seconds: float, device: str, amp: bool
) -> pd.DataFrame:
    """Measure the seconds of each form for one batch, round by round, each round in another order."""
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    begin = forward_step if phase == "forward" else training_step
    steps = {form: begin(make(name, form, preset, device), x, amp) for form in FORMS}
    order, rows = random.Random(0), []
    started, number = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or number < 5:
        for form in order.sample(FORMS, len(FORMS)):
            rows.append({"form": form, "round": number} | measure_seconds(steps[form], device))
        gc.collect()
        number += 1
    frame = pd.DataFrame(rows).assign(model=name, phase=phase)
    return frame[frame["round"] >= 2]  # two rounds to warm up


def measure_seconds(step: Callable[[], object], device: str) -> dict[str, float]:
    """Measure elapsed seconds of one call, and processor seconds of all threads of this process."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    begun, processor = time.perf_counter(), time.process_time()
    step()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return {"s": time.perf_counter() - begun, "cpu s": time.process_time() - processor}


def time_table(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Return median seconds, and ratios of elapsed and processor time to the standard model of the same round.

    Ratios are medians with a bootstrap interval (95 %).
    """
    rows = []
    for (model, phase), of_both in pd.concat(frames).groupby(["model", "phase"], sort=False):
        seconds = of_both.pivot(index="round", columns="form", values="s")
        processor = of_both.pivot(index="round", columns="form", values="cpu s")
        for form in FORMS:
            rows.append(
                {
                    "model": model,
                    "phase": phase,
                    "form": form,
                    "rounds": len(seconds),
                    "median s": seconds[form].median(),
                }
                | ratio_and_interval("", seconds[form] / seconds["standard"])
                | ratio_and_interval("processor ", processor[form] / processor["standard"])
            )
    return pd.DataFrame(rows)


def parts_of(
    name: str, form: str, preset: str, x: Tensor, phase: str, amp: bool
) -> dict[str, list[Callable[[], object]]]:
    """Return a model as separate calls: its blocks (with and without a specialized QKV), the rest, and AdamW's step.

    In a training step each part has its forward and its backward; the gradients stay until AdamW's step.
    """
    model = make(name, form, preset, x.device.type).train(phase == "step")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    inputs: list[Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _m, args: inputs.append(args[0])) for block in model.blocks]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    blocks, model.blocks = model.blocks, nn.Sequential()

    def call(module: nn.Module, x: Tensor, inside: bool) -> Callable[[], object]:
        gradient = torch.randn_like(x) if inside else None

        def step() -> None:
            with torch.set_grad_enabled(phase == "step"):
                with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=amp):
                    y = module(x.detach().requires_grad_(phase == "step" and inside))
                if phase == "step":
                    y.backward(gradient) if inside else y.square().mean().backward()

        return step

    first_third = len(blocks) // 3
    calls = [call(block, block_input, True) for block, block_input in zip(blocks, inputs, strict=True)]
    parts = {
        "first third of the blocks": calls[:first_third],
        "other blocks": calls[first_third:],
        "rest": [call(model, x, False)],
    }

    def optimize() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return parts | ({"AdamW": [optimize]} if phase == "step" else {})


def measure_parts(
    name: str, phase: str, preset: str, batch: int, seconds: float, device: str, amp: bool
) -> pd.DataFrame:
    """Measure the seconds of each part in each form for one batch; a round runs every part once in all forms."""
    forms = [form for form in FORMS if form != "naive"]
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    parts = {form: parts_of(name, form, preset, x, phase, amp) for form in forms}
    order, rows = random.Random(0), []
    started, number = time.perf_counter(), 0
    while time.perf_counter() - started < seconds or number < 5:
        for part, calls in parts["standard"].items():
            for index in range(len(calls)):
                for form in order.sample(forms, len(forms)):
                    found = measure_seconds(parts[form][part][index], device)
                    rows.append({"form": form, "round": number, "part": part} | found)
        gc.collect()
        number += 1
    frame = pd.DataFrame(rows).assign(model=name, phase=phase)
    return frame[frame["round"] >= 2]


def parts_table(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the table of ``time_table`` for the sum of all parts and for each, with its share of the standard time."""
    rows = []
    for (model, phase), of_both in pd.concat(frames).groupby(["model", "phase"], sort=False):
        by_part = of_both.groupby(["part", "round", "form"], sort=False)[["s", "cpu s"]].sum()
        whole = by_part.groupby(["round", "form"]).sum()
        median = whole.xs("standard", level="form")["cpu s"].median()
        for part in ["all", *of_both["part"].unique()]:
            times = whole if part == "all" else by_part.xs(part, level="part")
            seconds, processor = times["s"].unstack("form"), times["cpu s"].unstack("form")
            for form in ("standard again", "specialized"):
                rows.append(
                    {
                        "model": model,
                        "phase": phase,
                        "part": part,
                        "form": form,
                        "rounds": len(seconds),
                        "standard, processor s": processor["standard"].median(),
                        "share": processor["standard"].median() / median,
                    }
                    | ratio_and_interval("", seconds[form] / seconds["standard"])
                    | ratio_and_interval("processor ", processor[form] / processor["standard"])
                )
    return pd.DataFrame(rows)


def memory_of(name: str, form: str, preset: str, batch: int, device: str, amp: bool) -> dict[str, float]:
    """Measure peak memory (resident, or allocated on the GPU) over two training steps, and that of parameters; MiB."""
    x = torch.randn(batch, 3, 224, 224).to(device)
    model = make(name, form, preset, device)
    step = training_step(model, x, amp)
    # Weight and AdamW's two moments, float32: at the peak, when backward begins, there are no gradients yet.
    parameters = 3 * 4 * sum(parameter.numel() for parameter in model.parameters()) / 2**20
    for _ in range(2):
        step()
    if device.startswith("cuda"):
        return {"peak MiB": torch.cuda.max_memory_allocated() / 2**20, "parameters MiB": parameters}
    return {"peak MiB": peak_mib(), "parameters MiB": parameters}


def memory_table(preset: str, batch: int, repeats: int, device: str, amp: bool, names: list[str]) -> pd.DataFrame:
    """Return the median peak of each form, and its ratio to that of the standard model."""
    mallocs = {"default": {}, "gives back": {"MALLOC_MMAP_THRESHOLD_": "65536"}} if device == "cpu" else {"": {}}
    rows = []
    for name, (malloc, variables), form in product(names, mallocs.items(), ("standard", "specialized", "naive")):
        arguments = {"name": name, "form": form, "preset": preset, "batch": batch, "device": device, "amp": amp}
        command = [sys.executable, __file__, "_memory_of", json.dumps(arguments)]
        found = []
        for _ in range(repeats):
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | variables)
            found.append(json.loads(done.stdout.strip().splitlines()[-1]))
        peaks = [one["peak MiB"] for one in found]
        rows.append(
            {
                "model": name,
                "malloc": malloc,
                "form": form,
                "runs": repeats,
                "peak MiB": np.median(peaks),
                "min": np.min(peaks),
                "max": np.max(peaks),
                "parameters MiB": found[0]["parameters MiB"],
            }
        )
    table = pd.DataFrame(rows)
    of_standard = table.groupby(["model", "malloc"])[["peak MiB", "parameters MiB"]].transform("first")
    table["ratio"] = table["peak MiB"] / of_standard["peak MiB"]
    second_weights = table["parameters MiB"] - of_standard["parameters MiB"]
    table["ratio without the second weights"] = (table["peak MiB"] - second_weights) / of_standard["peak MiB"]
    return table


def write(name: str, title: str, note: str, device: str, table: pd.DataFrame) -> None:
    """Write a results page and print it."""
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python", "benchmarks/specialize.py", *sys.argv[1:]])
    text = "\n\n".join([f"# {title}", f"{hardware(device)}\n\n`{command}`", note, markdown(table)]) + "\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "parts", "memory", "all"])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--phases", default="forward,step")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=40, help="seconds per model and phase")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--suffix", default="", help="suffix of the results page's name")
    options = parser.parse_args()
    suffix = ("" if options.device == "cpu" else f"_{options.device.split(':')[0]}") + options.suffix
    names = options.models.split(",")
    what = f"Preset `{options.preset}`, batch {options.batch}{', bfloat16 autocast' if options.amp else ''}."
    measured = (
        "A step is forward, cross-entropy, backward and AdamW. Ratios of elapsed time and of processor time (of all "
        "threads of this process) are to the standard model of the same round: median and bootstrap 95 % interval of "
        "the median. “standard again” is a second standard model and shows the noise."
    )
    if options.device == "cpu":
        # Otherwise page faults, up to a tenth of the time of a pass, depend on what ran before (decision 8).
        keep_freed_memory()
    times = {
        "parts": (
            "Time of a specialized model over the standard one, part by part",
            "Each block, the layers before and after the blocks, and AdamW's step are called separately, in one model "
            "after the other, in random order. Compared calls are close in time, so that the noise of a shared machine "
            f"cancels. “share”: share of the standard model's processor time. {measured}",
            measure_parts,
            parts_table,
        ),
        "time": (
            "Time of a specialized model over the standard one",
            f"Each round runs every form on the same batch, in random order, in one process. {measured}",
            measure_time,
            time_table,
        ),
    }
    for kind, (title, note, measure, tabulate) in times.items():
        if options.what in (kind, "all"):
            frames = [
                measure(name, phase, options.preset, options.batch, options.seconds, options.device, options.amp)
                for name in names
                for phase in options.phases.split(",")
            ]
            write(f"specialize_{kind}{suffix}", title, f"{what} {note}", options.device, tabulate(frames))
    if options.what in ("memory", "all"):
        write(
            f"specialize_memory{suffix}",
            "Peak memory of a training step",
            f"{what} Peak memory of a fresh process after two training steps with AdamW; median, minimum and maximum. "
            "Parameters: weights and AdamW's moments, allocated when backward begins and memory is at its peak; the "
            "last column excludes those of the second weights, which any specialized model has, and shows the memory "
            "of the computation. On a CPU, “default”: glibc's malloc, whose peak also depends on fragmentation; “gives "
            "back”: large tensors return their memory at once (`MALLOC_MMAP_THRESHOLD_=65536`), so that the peak is "
            "the memory in use.",
            options.device,
            memory_table(options.preset, options.batch, options.repeats, options.device, options.amp, names),
        )


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "_memory_of":
        print(json.dumps(memory_of(**json.loads(sys.argv[2]))))
    else:
        main()
