"""Paged KV caches to measure on, and the copy that nothing can beat, in host or GPU memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from typing import Any, Protocol

TILE = 16 << 20  # of random bytes, repeated: zeros, or one page, would stay in a cache


class PagedMemory(Protocol):
    """``bytes_total`` bytes of random content at ``address``, on a device."""

    device: str  # as the core names it
    address: int

    def stream(self) -> int:
        """The stream that transfers are to be ordered behind; 0 for none."""

    def copy_seconds(self, direction: str, host: int, size: int) -> float:
        """Seconds of one contiguous copy of ``size`` bytes between ``host`` and this memory.

        ``"gather"`` copies to the host, ``"scatter"`` from it; as fast as one copy can be.
        """


class HostMemory:
    """The KV cache of an engine on the CPU. The limit is one memcpy by one thread."""

    def __init__(self, bytes_total: int) -> None:
        self.device, self.bytes_total = "host", bytes_total
        self.content = mmap.mmap(-1, bytes_total)
        tile = os.urandom(min(TILE, bytes_total))
        for at in range(0, bytes_total, len(tile)):
            self.content[at : at + len(tile)] = tile[: bytes_total - at]
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.content))

    def stream(self) -> int:
        """An engine on the CPU has no stream."""
        return 0

    def copy_seconds(self, direction: str, host: int, size: int) -> float:
        """See PagedMemory."""
        gathers = direction == "gather"
        begin = time.perf_counter()
        ctypes.memmove(host if gathers else self.address, self.address if gathers else host, size)
        return time.perf_counter() - begin


class CudaMemory:
    """The KV cache of an engine on a GPU. The limit is one DMA to or from pinned memory."""

    def __init__(self, bytes_total: int, ordinal: int = 0) -> None:
        import torch

        self._torch: Any = torch
        self.device = f"cuda:{ordinal}"
        self.name = str(torch.cuda.get_device_name(ordinal))
        self._memory = torch.randint(0, 256, (bytes_total,), dtype=torch.uint8, device=self.device)
        self._pinned: Any = None
        self.address = int(self._memory.data_ptr())
        torch.cuda.synchronize(ordinal)

    def stream(self) -> int:
        """The current compute stream."""
        return int(self._torch.cuda.current_stream(self.device).cuda_stream)

    def copy_seconds(self, direction: str, host: int, size: int) -> float:
        """See PagedMemory. torch pins memory of its own, in place of ``host``."""
        del host
        torch = self._torch
        if self._pinned is None or self._pinned.numel() < size:
            self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        pinned, paged = self._pinned[:size], self._memory[:size]
        torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        if direction == "gather":
            pinned.copy_(paged, non_blocking=True)
        else:
            paged.copy_(pinned, non_blocking=True)
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin
