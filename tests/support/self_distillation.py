"""Tiny students with teachers, their batches, and two steps of training, in one process or in two.

``python -m tests.support.self_distillation CASES STORE OUT RANK`` does the steps of all cases as one of two processes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tokenlens import specialize
from tokenlens.training.objectives.base import Objective, Progress, Setting, TrainingBatch, make_options, objectives

SIZE, IMAGES = 32, 8
SMALL = {"local_crops": 2, "local_size": 16, "prototypes": 16, "hidden": 24, "bottleneck": 8, "momentum": 0.5}


def backbone(preset: str | None = None, name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    """Return a ViT of two blocks with 32 channels and 4×4 patches of 8 pixels; random weights in float64."""
    torch.manual_seed(0)
    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = timm.create_model(name, **{**sizes, "dynamic_img_size": True, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model if preset is None else specialize(model, preset)


def objective(name: str, model: nn.Module | None = None, **options: Any) -> Any:
    """Return an objective in training mode, in float64."""
    setting = Setting(SIZE, classes=(), batch_size=IMAGES, steps=4, seed=5, make_backbone=lambda classes: backbone())
    made = objectives.get(name)(model or backbone(), make_options(name, {**SMALL, **options}), setting)
    return made.double().train()


def batch(positions: list[int] | None = None, local_crops: int = 2) -> TrainingBatch:
    """Return the images at some positions of a step's batch, by default all of them."""
    chosen = torch.arange(IMAGES) if positions is None else torch.tensor(positions)
    generator = torch.Generator().manual_seed(7)
    views = [
        torch.randn(IMAGES, 3, size, size, generator=generator, dtype=torch.float64)[chosen]
        for size in [SIZE] * 2 + [SIZE // 2] * local_crops
    ]
    return TrainingBatch(views, None, chosen, chosen, IMAGES)


def progress(step: int = 0, steps: int = 4) -> Progress:
    """Return the position of a step; one step is one epoch."""
    return Progress(step, steps, steps_per_epoch=1.0, seed=3)


def two_steps(made: Objective, call: Any, positions: list[int] | None = None) -> dict[str, Tensor]:
    """Return losses and gradients of two steps, and the state dict after them."""
    optimizer = torch.optim.SGD([one for one in made.parameters() if one.requires_grad], lr=0.5)
    found: dict[str, Any] = {}
    for step in range(2):
        optimizer.zero_grad()
        losses = call(batch(positions), progress(step))
        losses["loss"].backward()
        found |= {f"step {step} {name}": loss.detach() for name, loss in losses.items()}
        found |= {
            f"step {step} gradient {name}": one.grad.clone()
            for name, one in made.named_parameters()
            if one.grad is not None
        }
        made.after_backward(progress(step))
        optimizer.step()
        made.after_step(progress(step))
    found |= made.state_dict()
    return {name: getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)() for name, tensor in found.items()}


def _as_one_of_two(cases: dict[str, dict[str, Any]], store: str, out: Path, rank: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mirrored = [[0, 1, 6, 7], [2, 3, 4, 5]][rank]
    found = {}
    for case, settings in cases.items():
        settings = dict(settings)
        strategy, preset = settings.pop("strategy", "ddp"), settings.pop("preset", None)
        made = objective(settings.pop("name"), backbone(preset), **settings)
        call: Any = made
        if strategy == "ddp":
            call = DistributedDataParallel(made)
        else:
            mesh = distributed.init_device_mesh("cpu", (2,))
            for block in [*made.backbone.blocks, *made.teacher.blocks, *made.heads.values()]:
                fully_shard(block, mesh=mesh)
            fully_shard(made, mesh=mesh)
        found[case] = two_steps(made, call, mirrored)
        for name, value in found[case].items():
            if value.dim() == 0:  # a process's losses are means over its own images
                distributed.all_reduce(value)
                value /= 2
            assert torch.isfinite(value).all(), (case, name)
    if rank == 0:
        torch.save(found, out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    _as_one_of_two(json.loads(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
