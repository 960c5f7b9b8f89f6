"""Where a page comes to be that a device touches and no advice tells of.

Devices reach the host's memory remotely, so a page need not move to be used. What advice says, and
in which order the rules go, is in native/rules/placement.c, which carries the built-in policies
out; what stands here is the same for everybody to read. A policy of yours is asked for each fault,
which makes the fault some 100 us longer.

An access is counted when it is a fault: what a launch has mapped remotely it uses unseen until it
ends. So the counters count launches that touch the 64 KiB, where hardware counts loads and stores.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter

import numpy as np

from hmmfs.memory import BLOCK_PAGES, PlacementKind
from hmmfs.policy.named import Named
from hmmfs.policy.prefetch import BIG_PAGES, Fault, Pages, within


class PlacementPolicy(Named):
    """Chooses between bringing pages to a device and leaving them on the host, where it reaches
    them. Pages that are nowhere yet come to the device that touches them, unless `never` says no;
    those of another device, which can't be reached there, come home when they are left."""

    @abstractmethod
    def brings(self, fault: Fault) -> Pages:
        """The pages that may come to the device: of those touched, and of those that a prefetch
        policy would have come with them."""

    def native(self) -> tuple[PlacementKind, int] | None:
        """What the native core does in its place; None: ask `brings` each time."""
        return None


class FirstTouch(PlacementPolicy):
    """A page comes to the device at its first touch."""

    name = "first-touch"

    def native(self) -> tuple[PlacementKind, int]:
        return PlacementKind.FIRST_TOUCH, 0

    def brings(self, fault: Fault) -> Pages:
        return np.ones(BLOCK_PAGES, dtype=np.bool_)


class Preferred(PlacementPolicy):
    """A page stays where it is, unless its preferred location is the device."""

    name = "preferred"

    def native(self) -> tuple[PlacementKind, int]:
        return PlacementKind.PREFERRED, 0

    def brings(self, fault: Fault) -> Pages:
        return ~fault.present


class Never(PlacementPolicy):
    """Nothing comes to the device that does not prefer to: zero-copy memory."""

    name = "never"

    def native(self) -> tuple[PlacementKind, int]:
        return PlacementKind.NEVER, 0

    def brings(self, fault: Fault) -> Pages:
        return np.zeros(BLOCK_PAGES, dtype=np.bool_)


class AccessCounter(PlacementPolicy):
    """64 KiB come to the device when it has touched them `threshold` times; until then they are
    used remotely. After the access counters of NVIDIA's GPUs (uvm_gpu_access_counters.c), whose
    threshold is 256 loads and stores; 8 is that of Ganguly et al., IPDPS 2020."""

    name = "access-counter"

    def __init__(self, threshold: int = 8) -> None:
        self.threshold = within("threshold", threshold, 1, 65535)
        self._accesses: Counter[tuple[int, int, int]] = Counter()

    def native(self) -> tuple[PlacementKind, int]:
        return PlacementKind.COUNTER, self.threshold

    def brings(self, fault: Fault) -> Pages:
        ripe = ~fault.present
        for group in np.unique(np.flatnonzero(fault.touched & fault.present) // BIG_PAGES).tolist():
            self._accesses[*fault.key, group] += 1
        for group in range(BLOCK_PAGES // BIG_PAGES):
            if self._accesses[*fault.key, group] >= self.threshold:
                ripe[group * BIG_PAGES : (group + 1) * BIG_PAGES] = True
        return ripe


BUILT_IN: tuple[type[PlacementPolicy], ...] = (FirstTouch, Preferred, Never, AccessCounter)
