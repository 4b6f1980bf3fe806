"""Run a training in one process, with DDP or with FSDP2, on Lightning Fabric."""

from __future__ import annotations

import atexit
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from tokenlens.families.base import find_family
from tokenlens.models.loading import find_device
from tokenlens.training.recipe import Recipe


def make_fabric(recipe: Recipe, device: str = "auto", devices: int = 1, nodes: int = 1) -> Fabric:
    """Return the engine: device, processes, strategy and precision of a training.

    Under torchrun its processes are used, and ``devices`` and ``nodes`` are ignored. One process needs no strategy, so
    a recipe for many processes runs in one as well.

    Args:
        recipe: the recipe.
        device: ``"auto"`` (cuda, then mps, then cpu), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        devices: processes on each machine, one device each.
        nodes: number of machines.

    Raises:
        ValueError: for a device that is not available, a precision that it does not support, or processes that cannot
            be started.
    """
    target = find_device(device)
    kind, index = target.type, target.index
    if torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"devices={devices}, but this machine has {torch.cuda.device_count()} GPUs")
    sharded = recipe.strategy == "fsdp2" and devices * nodes > 1
    if recipe.precision == "16-mixed" and (kind == "cpu" or sharded):
        where = "FSDP2" if sharded else "the CPU"
        raise ValueError(f"precision='16-mixed' does not work with {where}; expected 32-true or bf16-mixed")
    options: dict[str, Any] = {"precision": "32-true"}
    if recipe.precision != "32-true":
        options = {"plugins": _Autocast(recipe.precision, kind)}
    if sharded:
        options["strategy"] = ModelParallelStrategy(
            parallelize_fn=_shard,
            data_parallel_size=devices * nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
        )
    elif devices * nodes > 1:
        options["strategy"] = DDPStrategy()
    chosen: Any = [index] if index is not None and devices == 1 else devices
    fabric = Fabric(accelerator=kind, devices=chosen, num_nodes=nodes, **options)
    environment = getattr(fabric.strategy, "cluster_environment", None)
    if devices > 1 and environment is not None and not environment.creates_processes_externally:
        _check_script(devices)
    return fabric


def _check_script(devices: int) -> None:
    """Raise ValueError without a script, as after ``python -c``: Fabric starts processes by running it again."""
    if getattr(sys.modules["__main__"], "__spec__", None) is None and not Path(sys.argv[0]).is_file():
        raise ValueError(
            f"devices={devices} runs the same script again in each additional process, and there is no script; put the "
            "call into a file, or use `tokenlens train` or torchrun"
        )


GRACE = 2.0
"""Seconds that the processes started by this one have to end by themselves when it ends."""


@contextmanager
def launch(fabric: Fabric) -> Iterator[None]:
    """Start the other processes, or join those that exist; started processes do not outlive this one.

    Fabric kills this process when one that it started fails. That is right while this one waits for it, and wrong when
    this one has an error of its own to report.
    """
    log = logging.getLogger("lightning_fabric")
    level = log.level
    log.setLevel(logging.WARNING)  # each process would announce itself
    try:
        fabric.launch()
    finally:
        log.setLevel(level)
    started: list[subprocess.Popen[bytes]] = getattr(fabric.strategy.launcher, "procs", [])
    if started:
        atexit.register(_terminate, list(started))
    try:
        yield
    except BaseException:
        started.clear()  # the list that Fabric watches
        raise


def _terminate(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill processes that do not end by themselves: on a GPU they would wait half an hour for one that failed."""
    until = time.monotonic() + GRACE
    for one in processes:
        try:
            one.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.kill()


class _Autocast(MixedPrecision):
    """Autocast under every strategy, so that a recipe computes the same with DDP and FSDP2.

    Unlike Fabric's own it does not round the images to 16 bits: the objective may mix them, or show them to a teacher
    in full precision.
    """

    def convert_input(self, data: Any) -> Any:
        """Return the inputs unchanged."""
        return data


def _shard(objective: nn.Module, mesh: Any) -> nn.Module:
    """Shard with FSDP2: each block of the backbone and of its copies (teachers) separately, then the rest."""
    data_parallel = mesh["data_parallel"]
    kind = type(objective.backbone)
    for module in objective.modules():
        if isinstance(module, kind):
            for block in find_family(module).blocks(module):
                fully_shard(block, mesh=data_parallel)
    fully_shard(objective, mesh=data_parallel)
    return objective


def is_sharded(module: nn.Module) -> bool:
    """Return whether the module's weights are sharded over processes (FSDP2)."""
    return isinstance(module, FSDPModule)


def gather_tensor(tensor: Tensor) -> Tensor:
    """Return a possibly sharded tensor as a plain one; all processes must call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gather_items(fabric: Fabric, items: list[Any]) -> list[Any]:
    """Return the items of all processes, in the order of the processes; all of them must call it."""
    if fabric.world_size == 1:
        return items
    received: list[list[Any]] = [[] for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(received, items)
    return [item for part in received for item in part]
