"""What is done about pages that the CPU and devices keep taking from each other.

The rules are in native/rules/thrash.c. Their time is the simulated clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from hmmfs.policy.named import Named
from hmmfs.policy.prefetch import within


@dataclass(frozen=True, slots=True)
class Thrashing:
    """struct hm_thrashing; `threshold` 0: nothing is done."""

    threshold: int = 0
    pin_threshold: int = 0
    max_resets: int = 0
    lapse_ns: int = 0
    nap_ns: int = 0
    epoch_ns: int = 0
    pin_ns: int = 0


class ThrashingPolicy(Named):
    """Says what the native core goes by."""

    def native(self) -> Thrashing:
        return Thrashing()


class Off(ThrashingPolicy):
    """They go on."""

    name = "off"


class Uvm(ThrashingPolicy):
    """As NVIDIA's UVM driver does (uvm_perf_thrashing.c), with its parameters and defaults: a page
    that moved `threshold` times, each time within `lapse` us of the last, thrashes; of two that
    want it one is throttled, in turn, for `nap` lapses; after `pin_threshold` throttles the page is
    pinned to the host for `pin` lapses (0: for ever), where the device uses it remotely.
    Preferring the host has it pinned at once, preferring a device never. A block that had peace for
    `epoch` lapses begins anew, `max_resets` times."""

    name = "uvm"

    def __init__(
        self,
        threshold: int = 3,
        pin_threshold: int = 10,
        lapse: int = 500,
        nap: int = 1,
        epoch: int = 2000,
        pin: int = 300,
        max_resets: int = 4,
    ) -> None:
        self.threshold = within("threshold", threshold, 1, 7)
        self.pin_threshold = within("pin_threshold", pin_threshold, 1, 255)
        self.lapse = within("lapse", lapse, 1, 1_000_000)
        self.nap = within("nap", nap, 1, 100)
        self.epoch = within("epoch", epoch, 1, 1_000_000)
        self.pin = within("pin", pin, 0, 1_000_000)
        self.max_resets = within("max_resets", max_resets, 0, 1_000_000)

    def native(self) -> Thrashing:
        lapse_ns = self.lapse * 1000
        return Thrashing(
            threshold=self.threshold,
            pin_threshold=self.pin_threshold,
            max_resets=self.max_resets,
            lapse_ns=lapse_ns,
            nap_ns=self.nap * lapse_ns,
            epoch_ns=self.epoch * lapse_ns,
            pin_ns=self.pin * lapse_ns,
        )


BUILT_IN: tuple[type[ThrashingPolicy], ...] = (Off, Uvm)
