"""Merge what the processes of a distributed analysis have seen."""

from __future__ import annotations

import io
from typing import Any

import torch

from tokenlens.analysis.provenance import Seen, Skipped
from tokenlens.analysis.run import AnalysisRun


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) outside ``torch.distributed``."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def merge_ranks(run: AnalysisRun, seen: Seen, skipped: Skipped, world_size: int) -> tuple[Seen, Skipped]:
    """Merge the metrics of all ranks into ``run``, in rank order, and return the images of all in source order."""
    if world_size > 1:
        mine = (run.applicable, run.not_applicable, run.image_size, run.layout, run.notes, seen, skipped)
        buffer = io.BytesIO()
        torch.save(mine, buffer)
        received: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(received, buffer.getvalue())
        # States of our own processes, not somebody's file. They meet on the CPU because each rank has its own device.
        states = [torch.load(io.BytesIO(state), map_location="cpu", weights_only=False) for state in received]
        with_images = [state for state in states if state[5]]
        if with_images:
            run.applicable, run.not_applicable, run.image_size, run.layout, run.notes = with_images[0][:5]
            for state in with_images[1:]:
                for metric, other in zip(run.applicable, state[0], strict=True):
                    metric.merge(other)
        seen, skipped = ([item for state in states for item in state[part]] for part in (5, 6))
    return sorted(seen, key=lambda image: image[0]), skipped
