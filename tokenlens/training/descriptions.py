"""Describe a training: its sessions in run.json, and the README.md of its run folder."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokenlens.storage.provenance import made_by
from tokenlens.storage.wording import counted

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LIBRARIES = ("lightning-fabric", "lightly", "torchmetrics", "torchvision", "pillow")
"""Packages that a training depends on, in addition to those of ``tokenlens.storage.provenance.versions``."""


def describe_session(fabric: Fabric, from_step: int) -> dict[str, Any]:
    """Return time, processes, hardware, versions and command of a session that starts after ``from_step`` steps."""
    made = made_by("train")
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            made["versions"][name] = metadata.version(name)
    return {
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "from_step": from_step,
        "processes": fabric.world_size,
        "hardware": describe_hardware(fabric.device),
        **made,
    }


def rounding_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what makes a session round differently from the one before, e.g. another number of processes."""
    was, has = (
        {
            "processes": one["processes"],
            **{name: one["hardware"][name] for name in ("gpu", "processor", "threads")},
            "torch": one["versions"]["torch"],
        }
        for one in (before, now)
    )
    return [f"{name} {has[name]}, before {was[name]}" for name in has if has[name] != was[name]]


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """Return the device, GPU, processor, cores and threads of this process."""
    return {
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def describe_run(settings: dict[str, Any]) -> str:
    """Return README.md from the content of run.json: what was trained, how far it got, and how to repeat it."""
    first = settings["sessions"][0]
    recipe, data = settings["recipe"], settings["data"]
    specialization = recipe["specialization"]
    preset = specialization if isinstance(specialization, str) else json.dumps(specialization)
    variant = "standard" if specialization is None else f"specialized ({preset})"
    variant += ", attention bias" if recipe.get("attention_bias") else ""
    start = "random weights" if settings["start"] is None else f"the weights {settings['start']['source']}"
    command = first["command"] if first["command"].startswith("tokenlens train ") else None
    checkpoint = "" if settings["start"] is None else f"checkpoint={settings['start']['given']!r}, "
    lines = [
        f"# {settings['name']}: {recipe['model']}, {variant}, seed {recipe['seed']}",
        "",
        f"Trained with tokenlens by the objective `{recipe['objective']}` from {start}, on "
        f"{counted(data['count'], 'image')} of {data['source']} ({data['split']}).",
        "",
        f"- State: {settings['state']}, {settings['step']} of {settings['steps']} steps.",
        f"- Time: {settings['seconds']:.0f} s of steps, {settings['images_per_second']:.1f} images per second, "
        f"{100 * settings['data_wait_share']:.1f} % of it waiting for images.",
        f"- Unreadable images: {settings['skipped']}" + (" (skipped.csv)." if settings["skipped"] else "."),
        f"- Hardware: {first['processes']} process(es), {first['hardware']['gpu'] or first['hardware']['processor']}.",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in first['versions'].items())}"
        + (f", commit {first['commit']}." if first["commit"] else "."),
        "",
        "## Repeat this training",
        "",
        *(["```", command, "```", "", "or, from this folder alone:", ""] if command else []),
        "```python",
        "import json",
        "import tokenlens",
        "from tokenlens.training.recipe import Recipe",
        "",
        'settings = json.load(open("run.json"))',
        'recipe = Recipe.from_dict(settings["recipe"])',
        f'tokenlens.train(recipe, data={data["given"] or data["source"]!r}, {checkpoint}out="again")',
        "```",
        "",
        "## Files",
        "",
        "- `run.json`: the recipe, the data, the seed, and versions, command and hardware of every session.",
        "- `metrics.csv`, `tensorboard/`: losses (means since the previous row), learning rate, gradient norm.",
        "- `diagnostics.csv`: how CLS and patches of a fixed batch differ, during training.",
        "- `config.json`, `model.safetensors`: the model in timm's format; tokenlens accepts this folder as a model.",
        "- `report.html`, `figures/`: the page with the figures.",
        "- `checkpoints/`: the last two states. Run the same command again to resume an unfinished training.",
        "",
    ]
    return "\n".join(lines)
