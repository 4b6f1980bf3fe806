"""Copy images to the device ahead of the model, and numbers to the host without waiting for them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from tokenlens.images.preprocessing import Batch

Loaded = tuple[Batch, Tensor]
"""A batch, and its images on the device and in the precision of the model."""


def load_ahead(batches: Iterable[Batch], weights: Tensor) -> Generator[Loaded, None, None]:
    """Yield the batches with their images on the device and in the precision of the model's weights.

    On CUDA a thread decodes the next batch and copies it from pinned memory while the model runs. On the CPU it would
    take the cores that the model runs on.
    """
    if weights.is_cuda:
        yield from _load_in_thread(iter(batches), weights)
        return
    for batch in batches:
        yield batch, batch.images.to(weights.device, weights.dtype)


def _load_in_thread(batches: Iterator[Batch], weights: Tensor) -> Generator[Loaded, None, None]:
    stream = torch.cuda.Stream(weights.device)

    def load() -> tuple[Batch, Tensor, torch.cuda.Event] | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.no_grad(), torch.cuda.stream(stream):
            pixels = batch.images if batch.images.is_cuda else batch.images.pin_memory()
            return batch, pixels.to(weights.device, weights.dtype, non_blocking=True), stream.record_event()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="load_ahead") as thread:
        following = thread.submit(load)
        while (loaded := following.result()) is not None:
            following = thread.submit(load)
            batch, pixels, copied = loaded
            current = torch.cuda.current_stream(weights.device)
            current.wait_event(copied)
            pixels.record_stream(current)
            yield batch, pixels
