"""What a training's run folder says of where it ran, and how to repeat it."""

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

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LIBRARIES = ("lightning-fabric", "lightly", "torchmetrics", "torchvision", "pillow")
"""Those beside an analysis' own whose versions a training may depend on."""


def session(fabric: Fabric, from_step: int) -> dict[str, Any]:
    """Who goes on with a training from a step, where and when."""
    told = made_by("train")
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            told["versions"][name] = metadata.version(name)
    return {
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "from_step": from_step,
        "processes": fabric.world_size,
        "hardware": hardware(fabric.device),
        **told,
    }


def other_rounding(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a session has that the one before had not, by which sums round differently and weights differ."""
    was, has = (
        {
            "processes": one["processes"],
            **{name: one["hardware"][name] for name in ("gpu", "processor", "threads")},
            "torch": one["versions"]["torch"],
        }
        for one in (before, now)
    )
    return [f"{name} {has[name]}, before {was[name]}" for name in has if has[name] != was[name]]


def hardware(device: torch.device) -> dict[str, Any]:
    """What it is computed on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "gpu": gpu,
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


def readme(settings: dict[str, Any]) -> str:
    """The page of a run folder, in Markdown: what it is, how far it is, and how to make it again."""
    first = settings["sessions"][0]
    recipe, data = settings["recipe"], settings["data"]
    specialized = recipe["specialization"]
    kind = "standard" if specialized is None else f"specialized ({_short(specialized)})"
    start = "random weights" if settings["start"] is None else f"the weights {settings['start']['source']}"
    command = first["command"] if first["command"].startswith("tokenlens train ") else None
    more = "" if settings["start"] is None else f"checkpoint={settings['start']['given']!r}, "
    lines = [
        f"# {settings['name']}: {recipe['model']}, {kind}, seed {recipe['seed']}",
        "",
        f"Trained with tokenlens by the objective `{recipe['objective']}` from {start}, on {data['count']} images of "
        f"{data['source']} ({data['split']}).",
        "",
        f"- State: {settings['state']}, {settings['step']} of {settings['steps']} steps.",
        f"- Time: {settings['seconds']:.0f} s of steps, {settings['images_per_second']:.1f} images per second, "
        f"{100 * settings['data_wait_share']:.1f} % of it waiting for images.",
        f"- Images that could not be read: {settings['skipped']}" + (" (skipped.csv)." if settings["skipped"] else "."),
        f"- On: {first['processes']} process(es), {first['hardware']['gpu'] or first['hardware']['processor']}.",
        f"- With: {', '.join(f'{name} {version}' for name, version in first['versions'].items())}"
        + (f", commit {first['commit']}." if first["commit"] else "."),
        "",
        "## To repeat it",
        "",
        *(["```", command, "```", "", "or, from this folder alone:", ""] if command else []),
        "```python",
        "import json",
        "import tokenlens",
        "from tokenlens.training.recipe import Recipe",
        "",
        'settings = json.load(open("run.json"))',
        'recipe = Recipe.from_dict(settings["recipe"])',
        f'tokenlens.train(recipe, data={data["given"] or data["source"]!r}, {more}out="again")',
        "```",
        "",
        "## What is here",
        "",
        "- `run.json`: the recipe, the data, the seed, versions, command and hardware of every session.",
        "- `metrics.csv`, `tensorboard/`: losses (means since the row before), learning rate, norm of the gradient.",
        "- `diagnostics.csv`: how CLS and patches of a fixed batch differ, after so many steps.",
        "- `config.json`, `model.safetensors`: the model in timm's format; tokenlens takes this folder's name for it.",
        "- `checkpoints/`: the last two states; the same command goes on from them.",
        "",
    ]
    return "\n".join(lines)


def _short(specialization: Any) -> str:
    return specialization if isinstance(specialization, str) else json.dumps(specialization)
