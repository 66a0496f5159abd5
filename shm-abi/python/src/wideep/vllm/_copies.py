# SPDX-License-Identifier: Apache-2.0
"""Getting a device tensor to the host without ever waiting for the device.

A copy is put on the engine's own stream, into pinned memory, with an event behind it, and is used once the event has
come by. The engine zeroes the tensor after us on the same stream, so the copy sees it as it was."""

from __future__ import annotations

import sys
from typing import Any, Optional

BUFFERS = 8  # passes that may be under way; an engine that schedules asynchronously runs a few ahead


class Arrived:
    """An array that is on the host."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def arrived(self) -> bool:
        return True

    def release(self) -> None:
        """Nothing more is read from it."""


class Copy(Arrived):
    """A host copy, on its way or arrived."""

    def __init__(self, tensor: Any, event: Any, ring: Optional[list[Any]] = None) -> None:
        super().__init__(tensor.numpy())  # a view
        self._tensor, self._event, self._ring = tensor, event, ring

    def arrived(self) -> bool:
        if self._event is not None and self._event.query():
            self._event = None
        return self._event is None

    def release(self) -> None:
        """Its memory may be used again."""
        if self._ring is not None:
            self._ring.append(self._tensor)
            self._ring = None


def on_host(tensor: Any) -> bool:
    return str(tensor.device.type) == "cpu"


def version(tensor: Any) -> Optional[int]:
    """How often this tensor or a view of it was written to. None: torch does not count, as for one made in inference
    mode."""
    try:
        count: int = tensor._version
    except (AttributeError, RuntimeError):
        return None
    return count


def _start(tensor: Any, host: Any, ring: Optional[list[Any]]) -> Copy:
    host.copy_(tensor, non_blocking=True)
    event = None
    if not on_host(tensor):
        event = getattr(sys.modules["torch"], tensor.device.type).Event()
        event.record()
    return Copy(host, event, ring)


def host_like(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    return torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="cpu", pin_memory=not on_host(tensor))


def once(tensor: Any) -> Copy:
    """Into memory of its own, for what is rare."""
    return _start(tensor, host_like(tensor), None)


class Ring:
    """Memory for the copies of one tensor's passes."""

    def __init__(self, tensor: Any) -> None:
        self._free = [host_like(tensor) for _ in range(BUFFERS)]

    def start(self, tensor: Any) -> Optional[Copy]:
        """None when all are under way."""
        return _start(tensor, self._free.pop(), self._free) if self._free else None
