"""What `analyze` costs over a plain forward pass: time, peak memory and growth, beside what people use today.

    python benchmarks/analyze.py time    # ViT-S/16 and ViT-B/16, batch 8, interleaved in one process; also --alone
    python benchmarks/analyze.py memory  # peak resident memory over a plain forward, one fresh process a number
    python benchmarks/analyze.py growth  # time and memory against images, tokens and blocks, with fitted exponents
    python benchmarks/analyze.py all

On a GPU: `python benchmarks/analyze.py time --device cuda --amp --batch 64`. Tables go to benchmarks/results/.
Competitors need the extra `[bench]` (nnsight); without it they are left out, and the table says so.
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
from tokenlens.reduction.compiled import how_summed

RESULTS = Path(__file__).parent / "results"
MODELS = ("vit_small_patch16_224", "vit_base_patch16_224")


# -- one forward pass by each competitor


def hooks_that_store(model: nn.Module) -> Callable[[Tensor], object]:
    """Plain forward hooks that keep the tensors of the same sites for one batch (and no number is computed)."""

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
    """timm's AttentionExtract by torch.fx, which needs fused attention off: every T×T map of one batch, no number."""
    from timm.utils import AttentionExtract

    for block in model.blocks:
        block.attn.fused_attn = False
    extract = AttentionExtract(model, method="fx")
    for block in model.blocks:
        block.attn.fused_attn = True
    return lambda x: extract(x)


def nnsight_trace(model: nn.Module) -> Callable[[Tensor], object]:
    """nnsight: a trace that saves the same sites for one batch (and no number is computed)."""
    from nnsight import NNsight

    wrapped = NNsight(model)

    def step(x: Tensor) -> object:
        kept = []
        with wrapped.trace(x):
            for block in wrapped.blocks:
                # In the order in which the modules run, as nnsight asks for.
                kept.append(block.norm1.output.save())
                kept.append(block.attn.output.save())
                kept.append(block.norm2.output.save())
                kept.append(block.mlp.output.save())
                kept.append(block.output.save())
        return kept

    return step


COMPETITORS = {
    "hooks that store": hooks_that_store,
    "timm AttentionExtract": timm_attention_extract,
    "nnsight": nnsight_trace,
}


def available(model: nn.Module) -> dict[str, Callable[[Tensor], object]]:
    """The competitors that are installed and run on this model."""
    steps = {}
    for name, make in COMPETITORS.items():
        try:
            step = make(model)
            with torch.no_grad():
                step(torch.rand(1, 3, 224, 224, device=next(model.parameters()).device))
        except Exception as error:
            print(f"left out: {name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        steps[name] = step
    return steps


# -- time


def measure_time(name: str, batch: int, rounds: int, device: str, amp: bool, peers: bool) -> pd.DataFrame:
    """Seconds of each way for one batch, round by round: `analyze` runs once, the others in its progress call."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval().to(device)
    pixels = torch.randn(batch, 3, 224, 224)
    on_device = pixels.to(device)
    steps: dict[str, Callable[[Tensor], object]] = {"plain forward": model, "plain forward again": model}
    if peers:
        steps |= available(model)
    order = random.Random(0)
    rows: list[dict[str, object]] = []
    state = {"round": 0, "begun": 0.0, "cpu": 0.0}

    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    def others(_done: int, _total: int | None) -> None:
        wait()
        took = {"s": time.perf_counter() - state["begun"], "cpu s": time.process_time() - state["cpu"]}
        rows.append({"way": "tokenlens analyze", "round": state["round"]} | took)
        for way in order.sample(list(steps), len(steps)):
            gc.collect()
            wait()
            begun, processor = time.perf_counter(), time.process_time()
            with torch.autocast(device.split(":")[0], dtype=torch.bfloat16, enabled=amp):
                steps[way](on_device)
            wait()
            took = {"s": time.perf_counter() - begun, "cpu s": time.process_time() - processor}
            rows.append({"way": way, "round": state["round"]} | took)
        gc.collect()
        state["round"] += 1
        state["begun"], state["cpu"] = time.perf_counter(), time.process_time()

    state["begun"], state["cpu"] = time.perf_counter(), time.process_time()
    images = [(image, 0) for _ in range(rounds + 2) for image in pixels]
    tokenlens.analyze(model, images, batch_size=batch, device=device, amp=amp, progress=others)
    frame = pd.DataFrame(rows)
    frame["model"] = name
    return frame[frame["round"] >= 2]  # two rounds to warm up


def time_table(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Median seconds, and each way's ratio to the plain forward of the same round, of elapsed and of processor time."""
    rows = []
    for model, of_all in pd.concat(frames).groupby("model", sort=False):
        seconds, processor = (of_all.pivot(index="round", columns="way", values=kind) for kind in ("s", "cpu s"))
        for way in of_all["way"].unique():
            rows.append(
                {"model": model, "way": way, "rounds": len(seconds), "median s": seconds[way].median()}
                | ratio_and_interval("", seconds[way] / seconds["plain forward"])
                | ratio_and_interval("processor ", processor[way] / processor["plain forward"])
            )
    return pd.DataFrame(rows)


def ratio_and_interval(kind: str, ratios: pd.Series) -> dict[str, float]:
    """The median of the rounds' ratios, and its bootstrap interval (95 %)."""
    values = ratios.to_numpy()
    medians = np.median(np.random.default_rng(0).choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return {f"{kind}ratio": np.median(values), f"{kind}low": low, f"{kind}high": high}


# -- memory, in a fresh process for each number


def peak_mib() -> float:
    """Peak resident memory of this process so far, MiB (CPU)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_of(name: str, way: str, images: int, batch: int, img_size: int, depth: int | None) -> dict[str, float]:
    """Peak memory in this process after plain forwards, and after the way has run over ``images`` images."""
    torch.manual_seed(0)
    analyze = tokenlens.analyze  # imports what it needs, 15 to 35 MiB of code that are there for every way
    arguments = {"img_size": img_size} | ({"depth": depth} if depth else {})
    model = timm.create_model(name, **arguments).eval()
    one = torch.randn(batch, 3, img_size, img_size)
    with torch.no_grad():
        for _ in range(3):
            model(one)
    before = peak_mib()
    begun = time.perf_counter()
    if way == "tokenlens analyze":
        analyze(model, [(one[i % batch], 0) for i in range(images)], batch_size=batch, device="cpu")
    elif way == "plain forward":
        with torch.no_grad():
            for _ in range(images // batch):
                model(one)
    else:
        step = COMPETITORS[way](model)
        kept = []
        with torch.no_grad():
            for _ in range(images // batch):
                kept.append(step(one))
    return {"plain MiB": before, "over plain MiB": peak_mib() - before, "s": time.perf_counter() - begun}


def in_fresh_process(**arguments: object) -> dict[str, float]:
    """Run ``memory_of`` in a new Python process."""
    command = [sys.executable, __file__, "_memory_of", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"left out: {arguments}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {"plain MiB": np.nan, "over plain MiB": np.nan, "s": np.nan}
    return json.loads(done.stdout.strip().splitlines()[-1])


def memory_table(repeats: int) -> pd.DataFrame:
    """Peak memory over plain for each way (16 images), and for `analyze` with 64 to 4096 images of few pixels."""
    rows = []
    for name, way, images, size in [
        *[(MODELS[0], way, 16, 224) for way in ("plain forward", "tokenlens analyze", *COMPETITORS)],
        (MODELS[0], "tokenlens analyze", 64, 224),
        (MODELS[1], "tokenlens analyze", 64, 224),
        *[(MODELS[0], "tokenlens analyze", images, 64) for images in (64, 512, 4096)],
    ]:
        runs = [
            in_fresh_process(name=name, way=way, images=images, batch=8, img_size=size, depth=None)
            for _ in range(repeats)
        ]
        over = [run["over plain MiB"] for run in runs]
        rows.append(
            {
                "model": name,
                "pixels": size,
                "way": way,
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
    """Time and memory of `analyze` and of plain forwards against images, tokens and blocks, with fitted exponents."""
    name = MODELS[0]
    cases = [("images", n, {"images": n, "img_size": 224, "depth": None}) for n in (16, 32, 64)]
    cases += [
        ("tokens", (size // 16) ** 2, {"images": 16, "img_size": size, "depth": None}) for size in (224, 448, 592)
    ]
    cases += [("blocks", depth, {"images": 32, "img_size": 224, "depth": depth}) for depth in (3, 6, 12)]
    rows = []
    for axis, value, arguments in cases:
        for way in ("plain forward", "tokenlens analyze"):
            for repeat in range(repeats):
                found = in_fresh_process(name=name, way=way, batch=8, **arguments)
                rows.append({"axis": axis, "value": value, "way": way, "repeat": repeat, **found})
        print(*rows[-2 * repeats :], sep="\n", file=sys.stderr)
    frame = pd.DataFrame(rows)
    groups = frame.groupby(["axis", "value", "way"], sort=False)
    table = pd.DataFrame(
        {
            f"{column} {statistic}": groups[column].agg(statistic)
            for column in ("s", "over plain MiB")
            for statistic in ("median", "min", "max")
        }
    )
    fits = []
    for (axis, way), part in frame.groupby(["axis", "way"], sort=False):
        fit = np.polyfit(np.log(part["value"]), np.log(part["s"]), 1, cov=True)
        memory = part.groupby("value")["over plain MiB"].median()
        fits.append(
            {
                "axis": axis,
                "way": way,
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
    """Processor or accelerator, threads and versions."""
    if device.startswith("cuda"):
        chip = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        chip = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
        chip += f", {torch.get_num_threads()} threads"
    packages = [f"{name} {metadata.version(name)}" for name in ("torch", "timm", "tokenlens-vit")]
    return f"{chip}; Python {platform.python_version()}, {', '.join(packages)}"


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, three significant digits."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return "–" if np.isnan(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
        return str(value)

    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in table.itertuples(index=False)]
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
    parser.add_argument("what", choices=["time", "memory", "growth", "all"])
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
            "runs every way on the same batch in random order in one process; ratio is to the plain forward of the "
            "same round, of elapsed time and of the processor's in all threads: median over rounds and its bootstrap "
            "95 % interval. “plain forward again” shows the noise. The competitors only store tensors or maps; "
            f"tokenlens computes all of its default metrics. Sums in {how_summed(torch.device(options.device))}.",
            options.device,
            time_table(frames),
        )
    if options.what in ("memory", "all"):
        write(
            "analyze_memory",
            "Peak memory of analyze over a plain forward",
            "Batch 8. Peak resident memory of a fresh process that has imported tokenlens, minus its peak after three "
            "plain forwards; median, "
            "minimum and maximum over runs. The competitors keep what they store over the 16 images, as users do.",
            "cpu",
            memory_table(options.repeats),
        )
    if options.what in ("growth", "all"):
        write(
            "analyze_growth",
            "Growth of analyze with images, tokens and blocks",
            "ViT-S/16, batch 8, seconds of a whole run in a fresh process (without loading). Exponents from a straight "
            "line through the logarithms.",
            "cpu",
            *growth_table(options.repeats),
        )


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "_memory_of":
        print(json.dumps(memory_of(**json.loads(sys.argv[2]))))
    else:
        main()
