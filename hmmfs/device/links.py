"""What faults and copies cost on the machine that is emulated: the links between host and devices.

A link is one of the presets, or ``LATENCY:BANDWIDTH`` such as ``600ns:64G``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory import BLOCK_PAGES, HOST, PAGE_SIZE, Core
from hmmfs.units import parse_size

FAULT_US = 45  # of a GPU's far fault; Ganguly et al., ISCA 2019
# GiB/s that a long copy comes near to, of 16, 32 and 64 GB/s links.
PCIE = {"pcie3": 12.0, "pcie4": 24.0, "pcie5": 48.0}
UNITS = {"ns": 1.0, "us": 1e3, "ms": 1e6}


@dataclass(frozen=True, slots=True)
class Link:
    """`name` is what it was called; `run_ns[n]` what n pages that lie side by side take."""

    name: str
    run_ns: tuple[int, ...]


def link(name: str) -> Link:
    """The link of that name. UsageError: there is none."""
    if name in PCIE:
        return Link(
            name, tuple(_pcie_ns(PCIE[name], n * PAGE_SIZE) for n in range(BLOCK_PAGES + 1))
        )
    found = re.fullmatch(r"(\d{1,9})(ns|us|ms):(\S+)", name, re.ASCII)
    try:
        bandwidth = parse_size(found[3]) if found else 0
    except HmmfsError:
        bandwidth = 0
    if not found or not bandwidth:
        known = ", ".join(PCIE)
        raise UsageError(f"{name!r} is no link: use {known}, or LATENCY:BANDWIDTH as in 600ns:64G.")
    latency = float(found[1]) * UNITS[found[2]]
    costs = (latency + n * PAGE_SIZE / bandwidth * 1e9 for n in range(1, BLOCK_PAGES + 1))
    return Link(name, (0, *(min(round(cost), 0xFFFFFFFF) for cost in costs)))


def _pcie_ns(peak: float, size: int) -> int:
    """The bandwidth that a copy of `size` bytes gets, as measured over PCIe and fitted in
    GPGPU-Sim's UVM model (Ganguly et al., ISCA 2019): (2 peak / pi) atan(0.07292 KiB) GiB/s."""
    if not size:
        return 0
    bandwidth = 2 * peak / math.pi * math.atan(0.07292 * size / 1024)
    return round(size / (bandwidth * 2**30) * 1e9)


@dataclass(frozen=True, slots=True)
class Topology:
    """Which links there are: each device's to the host, and one between any two devices, or none:
    then their copies go through the host."""

    host: Link
    peer: Link | None
    devices: int

    def charge(self, core: Core, fault_us: int = FAULT_US) -> None:
        """Have copies charged for these links, and every fault `fault_us`."""
        free = (0,) * (BLOCK_PAGES + 1)
        for node in range(core.nodes):
            run_ns = free if node == HOST else self.host.run_ns
            peer_ns = self.peer.run_ns if node != HOST and self.peer else free
            core.set_cost(node, fault_us * 1000, run_ns, peer_ns)

    def matrix(self) -> str:
        """From each node, a line, to each: X is itself, `host` that the host lies between."""
        names = ["host", *(f"dev{number}" for number in range(self.devices))]
        lines = [" ".join(["-", *names])]
        for one in names:
            lines.append(" ".join([one, *(self._between(one, two) for two in names)]))
        return "\n".join(lines) + "\n"

    def _between(self, one: str, two: str) -> str:
        if one == two:
            return "X"
        if "host" in (one, two):
            return self.host.name
        return self.peer.name if self.peer else "host"


def topology(host: str, peer: str, devices: int) -> Topology:
    """The links of those names; peer may be `none`. UsageError: there is no such link."""
    return Topology(link(host), None if peer == "none" else link(peer), devices)
