"""How a training is spread over devices and processes: one process, DDP or FSDP2, all by Lightning Fabric."""

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
from tokenlens.training.recipe import Recipe


def fabric_of(recipe: Recipe, device: str = "auto", devices: int = 1, nodes: int = 1) -> Fabric:
    """The engine: where the recipe's training runs, and in which precision.

    Under torchrun the processes are those that it has started; ``devices`` and ``nodes`` are then not asked. One
    process needs no strategy, so a recipe for many runs in it as well.

    Args:
        device: ``"auto"`` (cuda, then mps, then cpu), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        devices: processes on each machine, each with its own device.
        nodes: machines.

    Raises:
        ValueError: for a device that is not there, a precision that it cannot, or processes that cannot be started.
    """
    kind, index = _kind_of(device)
    if torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(f"devices={devices}, but this machine has {torch.cuda.device_count()} GPUs")
    sharded = recipe.strategy == "fsdp2" and devices * nodes > 1
    if recipe.precision == "16-mixed" and (kind == "cpu" or sharded):
        where = "FSDP2" if sharded else "the CPU"
        raise ValueError(f"precision='16-mixed' does not go with {where}; expected 32-true or bf16-mixed")
    options: dict[str, Any] = {"precision": "32-true"}
    if recipe.precision != "32-true":
        options = {"plugins": _Autocast(recipe.precision, kind)}
    if sharded:
        options["strategy"] = ModelParallelStrategy(
            parallelize_fn=_sharded,
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
    """Fabric starts further processes by running this one's script again; without one it would wait for them in vain.

    Raises:
        ValueError: if there is none, as after ``python -c``.
    """
    if getattr(sys.modules["__main__"], "__spec__", None) is None and not Path(sys.argv[0]).is_file():
        raise ValueError(
            f"devices={devices} runs the same script again for each further process, and there is no script here; put "
            "the call into a file, or use `tokenlens train` or torchrun"
        )


GRACE = 2.0
"""Seconds that the processes which this one has started have to end by themselves, when it ends."""


@contextmanager
def launched(fabric: Fabric) -> Iterator[None]:
    """Start the further processes, or join those that are there; what was started does not outlive this process.

    Fabric kills this process when one that it has started ends with an error. That is right as long as this one waits
    for it, and wrong when it has an error of its own, and is about to say so.
    """
    log = logging.getLogger("lightning_fabric")
    level = log.level
    log.setLevel(logging.WARNING)  # each process would tell that it is there
    try:
        fabric.launch()
    finally:
        log.setLevel(level)
    started: list[subprocess.Popen[bytes]] = getattr(fabric.strategy.launcher, "procs", [])
    if started:
        atexit.register(_end, list(started))
    try:
        yield
    except BaseException:
        started.clear()  # the list that Fabric looks at
        raise


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes that do not do so by themselves: on a GPU they would wait half an hour for one that has failed."""
    until = time.monotonic() + GRACE
    for one in processes:
        try:
            one.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.kill()


class _Autocast(MixedPrecision):
    """Autocast under every strategy, so that a recipe computes the same under DDP and FSDP2.

    Fabric would round images to 16 bits before they reach the objective, which may mix them or show them to a teacher
    in full precision.
    """

    def convert_input(self, data: Any) -> Any:
        """As they are."""
        return data


def _kind_of(device: str) -> tuple[str, int | None]:
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if device == "auto":
        return available[0], None
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"no device is called {device!r}; available here: auto, {', '.join(available)}") from error
    if wanted.type not in available or (wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"no {device!r} on this machine; available here: auto, {', '.join(available)}")
    return wanted.type, wanted.index


def _sharded(objective: nn.Module, mesh: Any) -> nn.Module:
    """FSDP2: each block of the backbone and of its copies (teachers) on its own, then the rest as a whole."""
    data_parallel = mesh["data_parallel"]
    kind = type(objective.backbone)
    for module in objective.modules():
        if isinstance(module, kind):
            for block in find_family(module).blocks(module):
                fully_shard(block, mesh=data_parallel)
    fully_shard(objective, mesh=data_parallel)
    return objective


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's weights are spread over processes (FSDP2)."""
    return isinstance(module, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over processes, as a plain one; all processes must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(fabric: Fabric, items: list[Any]) -> list[Any]:
    """The items of all processes, in their order; all processes must ask."""
    if fabric.world_size == 1:
        return items
    received: list[list[Any]] = [[] for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(received, items)
    return [item for part in received for item in part]
