"""Memory that a client shares with a server on the same host (POSIX shared memory)."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SharedRegion"]


class SharedRegion:
    """A region of `size` bytes, called `name` here and `key` where servers open it. Raises OSError."""

    def __init__(self, size: int) -> None:
        self._memory: Any = SharedMemory(create=True, size=size)
        self.name = self._memory.name.lstrip("/")
        self.key = f"/{self.name}"
        self.size = size

    def write(self, values: NDArray[Any]) -> None:
        """Copy a contiguous array to the front of the region."""
        np.frombuffer(self._memory.buf, "u1")[: values.nbytes] = values.reshape(-1).view("u1")

    def close(self) -> None:
        """Free the region; whoever has it open keeps it until then."""
        self._memory.close()
        self._memory.unlink()
