"""Copies of device tensors to the host that do not make the device wait."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor on the host; on CUDA it is only waited for when it is read."""

    def __init__(self, x: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if x.is_cuda:
            self._x = torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(x.device))
        else:
            self._x = x.cpu()

    def read(self) -> Tensor:
        """Return the tensor on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._x
