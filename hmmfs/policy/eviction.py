"""Which block leaves a full VRAM first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray


class EvictionPolicy(ABC):
    """Orders the blocks that have pages on a node."""

    name: ClassVar[str]

    @abstractmethod
    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        """Indices into `candidates` (struct hm_candidate: ino, block, last_cpu, last_device,
        last_migrated in ns of CLOCK_MONOTONIC, pages), the first to go first. Never empty."""


class LeastRecentlyUsed(EvictionPolicy):
    """The block that no device has used for longest. Coming to the device counts as a use, or
    a block fetched ahead would go before it was needed."""

    name = "lru"

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        used = np.maximum(candidates["last_device"], candidates["last_migrated"])
        return np.argsort(used, kind="stable")


class LeastRecentlyMigrated(EvictionPolicy):
    """The block that came first, whatever was done with it since: first in, first out."""

    name = "lrm"

    def order(self, candidates: NDArray[np.void]) -> NDArray[np.intp]:
        return np.argsort(candidates["last_migrated"], kind="stable")


BUILT_IN: tuple[type[EvictionPolicy], ...] = (LeastRecentlyUsed, LeastRecentlyMigrated)
