"""Measure time, peak memory and growth of `analyze` relative to a plain forward pass, beside other tools.

    python benchmarks/analyze.py time    # ViT-S/16 and ViT-B/16, batch 8, interleaved in one process; also --alone
    python benchmarks/analyze.py fixed   # seconds of whole calls on 8 and 32 images beyond plain passes
    python benchmarks/analyze.py memory  # peak resident memory over a plain forward pass, one new process per number
    python benchmarks/analyze.py growth  # time and memory against images, tokens and blocks, with fitted exponents
    python benchmarks/analyze.py all

On a GPU: `python benchmarks/analyze.py time --device cuda --amp --batch 64`. Tables go to benchmarks/results/.
Other tools need the extra `[bench]` (nnsight); tools that are not installed are skipped with a message.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from torch import Tensor, nn

import tokenlens
from tokenlens.reduction.choice import choose_kernels

RESULTS = Path(__file__).parent / "results"
MODELS = ("vit_small_patch16_224", "vit_base_patch16_224")


# -- one forward pass with each tool


def hooks_that_store(model: nn.Module) -> Callable[[Tensor], object]:
    """Store the activations of the same sites with plain forward hooks, without computing anything."""

    def step(x: Tensor) -> object:
        kept: list[Tensor] = []
        handles = [
            module.register_forward_hook(lambda _m, _a, out: kept.append(out))
            for block in model.blocks
            for module in (block.norm1, block.attn, block.norm2, block.mlp, block)
        ]
        model(x)
        for handle in handles:
            handle.remove()
        return kept

    return step


def timm_attention_extract(model: nn.Module) -> Callable[[Tensor], object]:
    """Extract every T×T attention map with timm's AttentionExtract (torch.fx), with fused attention disabled."""
    from timm.utils import AttentionExtract

    for block in model.blocks:
        block.attn.fused_attn = False
    extract = AttentionExtract(model, method="fx")
    for block in model.blocks:
        block.attn.fused_attn = True
    return lambda x: extract(x)


def nnsight_trace(model: nn.Module) -> Callable[[Tensor], object]:
    """Store the activations of the same sites with a trace of nnsight, without computing anything."""
    from nnsight import NNsight

    wrapped = NNsight(model)

    def step(x: Tensor) -> object:
        kept = []
        with wrapped.trace(x):
            for block in wrapped.blocks:
                # nnsight requires the order in which the modules run.
                kept.append(block.norm1.output.save())
                kept.append(block.attn.output.save())
                kept.append(block.norm2.output.save())
                kept.append(block.mlp.output.save())
                kept.append(block.output.save())
        return kept

    return step


OTHER_TOOLS = {
    "hooks that store": hooks_that_store,
    "timm AttentionExtract": timm_attention_extract,
    "nnsight": nnsight_trace,
}


def available(model: nn.Module, x: Tensor) -> dict[str, Callable[[Tensor], object]]:
    """Return the tools that are installed and run on this model and these images."""
    steps = {}
    for name, make in OTHER_TOOLS.items():
        try:
            step = make(model)
            with torch.no_grad():
                step(x)
        except Exception as error:
            print(f"skipped: {name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        steps[name] = step
    return steps


# -- time


def measure_time(name: str, batch: int, rounds: int, device: str, amp: bool, peers: bool) -> pd.DataFrame:
    """Measure the seconds per batch of each tool: `analyze` runs once, the others in its progress callback."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval().to(device)
    pixels = torch.randn(batch, 3, 224, 224)
    on_device = pixels.to(device)
    steps: dict[str, Callable[[Tensor], object]] = {"plain forward": model, "plain forward again": model}
    if peers:
        steps |= available(model, on_device[:1])
    order = random.Random(0)
    rows: list[dict[str, object]] = []
    state = {"round": 0, "begun": 0.0, "cpu": 0.0}

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    def run_others(_done: int, _total: int | None) -> None:
        wait()
        took = {"s": time.perf_counter() - state["begun"], "cpu s": time.process_time() - state["cpu"]}
        rows.append({"tool": "tokenlens analyze", "round": state["round"]} | took)
        for tool in order.sample(list(steps), len(steps)):
            gc.collect()
            wait()
            begun, processor = time.perf_counter(), time.process_time()
            with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=amp):
                steps[tool](on_device)
            wait()
            took = {"s": time.perf_counter() - begun, "cpu s": time.process_time() - processor}
            rows.append({"tool": tool, "round": state["round"]} | took)
        gc.collect()
        state["round"] += 1
        state["begun"], state["cpu"] = time.perf_counter(), time.process_time()

    state["begun"], state["cpu"] = time.perf_counter(), time.process_time()
    # Shifted a little from round to round: of copies only one would be analyzed.
    images = [(image + 1e-4 * number, 0) for number in range(rounds + 2) for image in pixels]
    tokenlens.analyze(model, images, batch_size=batch, device=device, amp=amp, progress=run_others)
    frame = pd.DataFrame(rows)
    frame["model"] = name
    return frame[frame["round"] >= 2]  # two rounds to warm up


def time_table(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Return median seconds, and ratios to the plain forward pass of the same round, for elapsed and processor time."""
    rows = []
    for model, of_all in pd.concat(frames).groupby("model", sort=False):
        seconds, processor = (of_all.pivot(index="round", columns="tool", values=kind) for kind in ("s", "cpu s"))
        for tool in of_all["tool"].unique():
            rows.append(
                {"model": model, "tool": tool, "rounds": len(seconds), "median s": seconds[tool].median()}
                | ratio_and_interval("", seconds[tool] / seconds["plain forward"])
                | ratio_and_interval("processor ", processor[tool] / processor["plain forward"])
            )
    return pd.DataFrame(rows)


def ratio_and_interval(kind: str, ratios: pd.Series) -> dict[str, float]:
    """The median of the rounds' ratios, and its bootstrap interval (95 %)."""
    values = ratios.to_numpy()
    medians = np.median(np.random.default_rng(0).choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return {f"{kind}ratio": np.median(values), f"{kind}low": low, f"{kind}high": high}


# -- fixed cost of a call


def fixed_table(batch: int, rounds: int, device: str, amp: bool) -> pd.DataFrame:
    """Return seconds of whole calls of `analyze` on images in a tensor, and what they take beyond plain passes."""
    torch.manual_seed(0)
    model = timm.create_model(MODELS[0]).eval().to(device)
    pixels = torch.randn(32, 3, 224, 224)

    def seconds(step: Callable[[], object]) -> float:
        begun = time.perf_counter()
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def plain(images: int) -> None:
        with torch.no_grad(), torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=amp):
            for part in pixels[:images].split(batch):
                model(part.to(device))

    rows = []
    for images in (8, 32):
        calls = []
        for _ in range(rounds + 1):
            of_plain = seconds(lambda images=images: plain(images))
            of_call = seconds(
                lambda images=images: tokenlens.analyze(
                    model, pixels[:images], batch_size=batch, device=device, amp=amp
                )
            )
            calls.append((of_plain, of_call - of_plain, of_call - 1.1 * of_plain))
        of_plain, over, beyond = np.array(calls[1:]).T  # a round to warm up
        low, high = np.quantile(beyond, (0.25, 0.75))
        rows.append(
            {"images": images, "rounds": rounds, "plain s": np.median(of_plain), "over plain s": np.median(over)}
            | {"beyond 1.10 × plain s": np.median(beyond), "quartiles": f"{low:.2f} to {high:.2f}"}
        )
    return pd.DataFrame(rows)


# -- memory, in a new process for each number


def peak_mib() -> float:
    """Return the peak resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_of(name: str, tool: str, images: int, batch: int, img_size: int, depth: int | None) -> dict[str, float]:
    """Return the peak memory of this process after plain forward passes, and after running a tool on images."""
    torch.manual_seed(0)
    analyze = tokenlens.analyze  # imports 15 to 35 MiB of code, which count for every tool
    arguments = {"img_size": img_size} | ({"depth": depth} if depth else {})
    model = timm.create_model(name, **arguments).eval()
    one = torch.randn(batch, 3, img_size, img_size)
    with torch.no_grad():
        for _ in range(3):
            model(one)
    before = peak_mib()
    begun = time.perf_counter()
    if tool == "tokenlens analyze":
        # Shifted a little: of copies only one would be analyzed.
        analyze(model, [(one[i % batch] + 1e-4 * i, 0) for i in range(images)], batch_size=batch, device="cpu")
    elif tool == "plain forward":
        with torch.no_grad():
            for _ in range(images // batch):
                model(one)
    else:
        step = OTHER_TOOLS[tool](model)
        kept = []
        with torch.no_grad():
            for _ in range(images // batch):
                kept.append(step(one))
    return {"plain MiB": before, "over plain MiB": peak_mib() - before, "s": time.perf_counter() - begun}


def in_new_process(**arguments: object) -> dict[str, float]:
    """Run ``memory_of`` in a new process."""
    command = [sys.executable, __file__, "_memory_of", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"skipped: {arguments}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {"plain MiB": np.nan, "over plain MiB": np.nan, "s": np.nan}
    return json.loads(done.stdout.strip().splitlines()[-1])


def memory_table(repeats: int) -> pd.DataFrame:
    """Return peak memory over plain passes for each tool (16 images), and for `analyze` on up to 4096 images."""
    rows = []
    for name, tool, images, size in [
        *[(MODELS[0], tool, 16, 224) for tool in ("plain forward", "tokenlens analyze", *OTHER_TOOLS)],
        (MODELS[0], "tokenlens analyze", 64, 224),
        (MODELS[1], "tokenlens analyze", 64, 224),
        *[(MODELS[0], "tokenlens analyze", images, 64) for images in (64, 512, 4096)],
    ]:
        runs = [
            in_new_process(name=name, tool=tool, images=images, batch=8, img_size=size, depth=None)
            for _ in range(repeats)
        ]
        over = [run["over plain MiB"] for run in runs]
        rows.append(
            {
                "model": name,
                "pixels": size,
                "tool": tool,
                "images": images,
                "runs": repeats,
                "plain MiB": np.median([run["plain MiB"] for run in runs]),
                "over plain MiB": np.median(over),
                "min": np.min(over),
                "max": np.max(over),
            }
        )
        print(rows[-1], file=sys.stderr)
    return pd.DataFrame(rows)


# -- growth


def growth_table(repeats: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return time and memory of `analyze` and plain passes by images, tokens and blocks, with fitted exponents."""
    name = MODELS[0]
    cases = [("images", n, {"images": n, "img_size": 224, "depth": None}) for n in (16, 32, 64)]
    cases += [
        ("tokens", (size // 16) ** 2, {"images": 16, "img_size": size, "depth": None}) for size in (224, 448, 592)
    ]
    cases += [("blocks", depth, {"images": 32, "img_size": 224, "depth": depth}) for depth in (3, 6, 12)]
    rows = []
    for axis, value, arguments in cases:
        for tool in ("plain forward", "tokenlens analyze"):
            for repeat in range(repeats):
                found = in_new_process(name=name, tool=tool, batch=8, **arguments)
                rows.append({"axis": axis, "value": value, "tool": tool, "repeat": repeat, **found})
        print(*rows[-2 * repeats :], sep="\n", file=sys.stderr)
    frame = pd.DataFrame(rows)
    groups = frame.groupby(["axis", "value", "tool"], sort=False)
    table = pd.DataFrame(
        {
            f"{column} {statistic}": groups[column].agg(statistic)
            for column in ("s", "over plain MiB")
            for statistic in ("median", "min", "max")
        }
    )
    fits = []
    for (axis, tool), part in frame.groupby(["axis", "tool"], sort=False):
        fit = np.polyfit(np.log(part["value"]), np.log(part["s"]), 1, cov=True)
        memory = part.groupby("value")["over plain MiB"].median()
        fits.append(
            {
                "axis": axis,
                "tool": tool,
                "time grows as": f"{axis}^{fit[0][0]:.2f}",
                "± (1 s.e.)": np.sqrt(fit[1][0][0]),
                "runs": len(part),
                "memory over plain, smallest MiB": memory.iloc[0],
                "memory over plain, largest MiB": memory.iloc[-1],
            }
        )
    return table.reset_index(), pd.DataFrame(fits)


# -- results


def hardware(device: str) -> str:
    """Describe processor or accelerator, threads and versions."""
    if device.startswith("cuda"):
        chip = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        chip = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
        chip += f", {torch.get_num_threads()} threads"
    packages = [f"{name} {metadata.version(name)}" for name in ("torch", "timm", "tokenlens-vit")]
    return f"{chip}; Python {platform.python_version()}, {', '.join(packages)}"


def markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown, with three significant digits."""

    def text_of(value: object) -> str:
        if isinstance(value, float):
            return "–" if np.isnan(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
        return str(value)

    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(text_of, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def write(name: str, title: str, note: str, device: str, *tables: pd.DataFrame) -> None:
    """Write a results page and print it."""
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python", "benchmarks/analyze.py", *sys.argv[1:]])
    text = "\n\n".join([f"# {title}", f"{hardware(device)}\n\n`{command}`", note, *map(markdown, tables)]) + "\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "fixed", "memory", "growth", "all"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--alone", action="store_true", help="time: without the peers")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    suffix = "" if options.device == "cpu" else f"_{options.device.split(':')[0]}"
    if options.what in ("time", "all"):
        peers = not options.alone
        frames = [
            measure_time(name, options.batch, options.rounds, options.device, options.amp, peers) for name in MODELS
        ]
        write(
            f"analyze_time{'_peers' if peers else ''}{suffix}",
            "Time of analyze over a plain forward",
            f"Batch {options.batch}{', bfloat16 autocast' if options.amp else ''}, default metrics. Each round "
            "runs every tool on the same batch, in random order in one process. Ratios are to the plain forward pass "
            "of the same round, for elapsed time and processor time of all threads: median over rounds and bootstrap "
            "95 % interval. “plain forward again” shows the noise. Other tools only store tensors or maps; "
            f"tokenlens computes its default metrics. Reductions in {choose_kernels(torch.device(options.device))[1]}.",
            options.device,
            time_table(frames),
        )
    if options.what in ("fixed", "all"):
        write(
            f"analyze_fixed{suffix}",
            "Fixed cost of a call of analyze",
            f"ViT-S/16, batch {options.batch}, images in a tensor, each call beside plain passes over the same "
            "images, in one process; medians over rounds.",
            options.device,
            fixed_table(options.batch, options.rounds, options.device, options.amp),
        )
    if options.what in ("memory", "all"):
        write(
            "analyze_memory",
            "Peak memory of analyze over a plain forward",
            "Batch 8. Peak resident memory of a new process that has imported tokenlens, minus its peak after three "
            "plain forward passes; median, minimum and maximum over runs. Other tools keep what they store of the 16 "
            "images, as users do.",
            "cpu",
            memory_table(options.repeats),
        )
    if options.what in ("growth", "all"):
        write(
            "analyze_growth",
            "Growth of analyze with images, tokens and blocks",
            "ViT-S/16, batch 8, seconds of a whole run in a new process, without loading. Exponents are slopes of a "
            "line fitted to the logarithms.",
            "cpu",
            *growth_table(options.repeats),
        )


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "_memory_of":
        print(json.dumps(memory_of(**json.loads(sys.argv[2]))))
    else:
        main()
