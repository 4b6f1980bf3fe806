"""The state of a training in one file, the same whether one process wrote it or FSDP2 gathered it from many."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer

from tokenlens.storage.files import replacing
from tokenlens.storage.wording import counted

CHECKPOINTS_KEPT = 2
"""The newest checkpoint, and the one before it in case the newest turns out unreadable."""

_NAME = re.compile(r"step_(\d{8,})\.ckpt")


def collect_state(objective: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return complete weights and optimizer state by parameter name, on the CPU; empty in all but the first process.

    All processes must call it.
    """
    model, moments = get_state_dict(
        objective, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return {"objective": model, "optimizer": moments}


def restore_state(state: Mapping[str, Any], objective: nn.Module, optimizer: Optimizer) -> None:
    """Load a collected state into an objective and its optimizer, on any number of processes.

    Raises:
        RuntimeError: if it is the state of another objective.
    """
    set_state_dict(
        objective,
        optimizer,
        model_state_dict=state["objective"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(full_state_dict=True, strict=False),
    )
    expected, found = set(objective.state_dict()), set(state["objective"])
    if expected != found:
        raise RuntimeError(f"the checkpoint is of another objective: {sorted(expected ^ found)[:8]} are not in both")
    # PyTorch creates the optimizer's state by a step with gradients of zero. A parameter that was frozen so far had no
    # state, and must have none again.
    saved = state["optimizer"]["state"]
    for name, parameter in objective.named_parameters():
        if name not in saved:
            optimizer.state.pop(parameter, None)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, newest first."""
    found = [(int(match[1]), file) for file in folder.glob("step_*.ckpt") if (match := _NAME.fullmatch(file.name))]
    return [file for _, file in sorted(found, reverse=True)]


def write_checkpoint(folder: Path, step: int, content: Mapping[str, Any]) -> Path:
    """Write a checkpoint, whole or not at all, and remove all but the last two.

    Raises:
        OSError: if the disk is full or not writable; earlier checkpoints are left as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:08d}.ckpt"
    with replacing(target, durable=True) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(dict(content), file)
        except (RuntimeError, OSError) as error:  # PyTorch's writer raises RuntimeError
            raise OSError(f"{target} could not be written; is the disk full?") from error
    for old in list_checkpoints(folder)[CHECKPOINTS_KEPT:]:
        old.unlink(missing_ok=True)
    return target


def read_newest_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest readable checkpoint, None without one, and the names of newer ones that are damaged."""
    damaged: list[str] = []
    for file in list_checkpoints(folder):
        try:
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
            damaged.append(file.name)
            continue
        return content, damaged
    return None, damaged


def describe_last_checkpoint(folder: Path) -> str:
    """Return which checkpoint a training can be resumed from, as part of a sentence."""
    found = list_checkpoints(folder)
    if not found:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {found[0]}, after {counted(int(found[0].stem.removeprefix('step_')), 'step')}"
