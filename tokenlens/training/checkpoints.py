"""A training's state in one file: the same file whether one process wrote it or FSDP2 gathered it from many."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

KEPT = 2
"""Checkpoints that are kept: the newest, and the one before it, should the newest turn out unreadable."""

_NAME = re.compile(r"step_(\d{8,})\.ckpt")


def training_state(objective: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Weights and optimizer state by parameter name, whole and on the CPU; on other processes than the first empty.

    All processes must ask.
    """
    model, moments = get_state_dict(
        objective, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return {"objective": model, "optimizer": moments}


def restore(state: Mapping[str, Any], objective: nn.Module, optimizer: Optimizer) -> None:
    """Give an objective and its optimizer a state back, on however many processes.

    Raises:
        RuntimeError: if it is the state of another objective.
    """
    # PyTorch makes an optimizer's state by a step with gradients of zero; what had none, because its parameter was held
    # still so far, must have none again.
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
    moved = state["optimizer"]["state"]
    for name, parameter in objective.named_parameters():
        if name not in moved:
            optimizer.state.pop(parameter, None)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    found = [(int(match[1]), file) for file in folder.glob("step_*.ckpt") if (match := _NAME.fullmatch(file.name))]
    return [file for _, file in sorted(found, reverse=True)]


def step_of(checkpoint: Path) -> int:
    """How many steps were done when it was written."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def write_checkpoint(folder: Path, step: int, content: Mapping[str, Any]) -> Path:
    """Write a checkpoint under a temporary name, to the disk, then give it its own; remove those before the last two.

    Raises:
        OSError: if the disk is full or not writable; the checkpoints before it are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:08d}.ckpt"
    temporary = folder / f".{target.name}.unfinished"
    try:
        with temporary.open("wb") as file:
            try:
                torch.save(dict(content), file)
            except RuntimeError as error:  # PyTorch's writer says so of a failed write
                raise OSError(f"{target} could not be written; is the disk full?") from error
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(folder)
    for old in checkpoints(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return target


def read_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that can be read, and the names of newer ones that cannot; None where there is none."""
    damaged: list[str] = []
    for file in checkpoints(folder):
        try:
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
            damaged.append(file.name)
            continue
        return content, damaged
    return None, damaged


def sync_folder(folder: Path) -> None:
    """Bring new names in a folder to the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
