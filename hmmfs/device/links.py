"""What faults and copies cost on the machine that is emulated: the links between its nodes.

A link is one of the presets, or ``LATENCY:BANDWIDTH`` such as ``600ns:64G``. Every device has one
to the host; two devices may have one of their own. A copy goes over the link of its two nodes;
where devices have none it goes through the host, and takes what the two links there take, one after
the other.

The NUMA distance of two nodes is 10 from a node to itself, as in Linux; otherwise 10, and 1 for
every 100 ns begun that a page of 4 KiB takes on the way that copies go, but at least 11 and at most
254, which is 24.4 us and more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hmmfs.common import toml
from hmmfs.common.units import parse_size
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory import BLOCK_PAGES, HOST, PAGE_SIZE, Core

FAULT_US = 45  # of a GPU's far fault; Ganguly et al., ISCA 2019
# GiB/s that a long copy comes near to, of 16, 32 and 64 GB/s links.
PCIE = {"pcie3": 12.0, "pcie4": 24.0, "pcie5": 48.0}
# ns of a load from another A100's DRAM over NVLink, 1120 cycles at 1.41 GHz: what CSCS expects of
# its pointer chase (github.com/reframe-hpc/reframe, cscs-checks/microbenchmarks/gpu/pointer_chase).
# We know of no figure for each generation or for C2C, so it stands for all of them.
NVLINK_NS = 800.0
# ns of a load from one of the first CXL memory modules: 170 to 250 (The Next Platform, 5 December
# 2022, "Just how bad is CXL memory latency?"). CXL 3.0 adds none (CXL Consortium, 2 August 2022).
CXL_NS = 250.0
# Latency in ns, and the bytes/s that a long copy gets one way, over all the links that a device of
# that generation has.
STRAIGHT = {
    # 73.06 of 80 GB/s by the 4 links of a P100, 143.71 of 150 by the 6 of a V100, in a C4130 (Dell,
    # "High Performance Computing Solution Resources", unidirectional peer-to-peer bandwidth).
    "nvlink1": (NVLINK_NS, 73e9),
    "nvlink2": (NVLINK_NS, 144e9),
    # A100, 12 links, of 300 GB/s: half of 518 both ways, by p2pBandwidthLatencyTest
    # (github.com/NVIDIA/nccl-tests/issues/100).
    "nvlink3": (NVLINK_NS, 259e9),
    # H100, 18 links, of 450 GB/s, by the same (github.com/NVIDIA/nccl/issues/1264).
    "nvlink4": (NVLINK_NS, 376e9),
    # Grace Hopper, host to device, of 450 GB/s; 297 the other way (Schieffer et al., ICPP 2024).
    "nvlink-c2c": (NVLINK_NS, 375e9),
    # What 16 lanes carry, not measured: of PCIe 5, 32 GT/s in 128b/130b; of PCIe 6, 64 GT/s.
    "cxl2": (CXL_NS, 63e9),
    "cxl3": (CXL_NS, 128e9),
}
PRESETS = (*PCIE, *STRAIGHT)
UNITS = {"ns": 1.0, "us": 1e3, "ms": 1e6}
LOCAL, FARTHEST = 10, 254  # Linux's LOCAL_DISTANCE; 255 means unreachable there
NS_PER_DISTANCE = 100
PAIRS = "host-dev0:pcie4+dev0-dev1:nvlink3"


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
    if name in STRAIGHT:
        return _straight(name, *STRAIGHT[name])
    found = re.fullmatch(r"(\d{1,9})(ns|us|ms):(\S+)", name, re.ASCII)
    try:
        bandwidth = parse_size(found[3]) if found else 0
    except HmmfsError:
        bandwidth = 0
    if not found or not bandwidth:
        known = ", ".join(PRESETS)
        raise UsageError(
            f"{name!r} is not a link. Use {known}, or LATENCY:BANDWIDTH as in 600ns:64G."
        )
    return _straight(name, float(found[1]) * UNITS[found[2]], bandwidth)


def _straight(name: str, latency_ns: float, bandwidth: float) -> Link:
    """A latency, then bytes at that many a second."""
    costs = (latency_ns + n * PAGE_SIZE / bandwidth * 1e9 for n in range(1, BLOCK_PAGES + 1))
    return Link(name, (0, *(min(round(cost), 0xFFFFFFFF) for cost in costs)))


def _pcie_ns(peak: float, size: int) -> int:
    """The bandwidth that a copy of `size` bytes gets, as measured over PCIe and fitted in
    GPGPU-Sim's UVM model (Ganguly et al., ISCA 2019): (2 peak / pi) atan(0.07292 KiB) GiB/s."""
    if not size:
        return 0
    bandwidth = 2 * peak / math.pi * math.atan(0.07292 * size / 1024)
    return round(size / (bandwidth * 2**30) * 1e9)


# ---- which nodes have which


@dataclass(frozen=True, slots=True)
class Topology:
    """The links of a machine, by pair of nodes, the lower one first: each device's to the host, and
    of devices those that have one. A link is the same both ways."""

    devices: int
    links: Mapping[tuple[int, int], Link]

    def between(self, one: int, two: int) -> Link | None:
        """The direct link of two nodes; None: copies go through the host."""
        return self.links.get((min(one, two), max(one, two)))

    def run_ns(self, one: int, two: int, pages: int) -> int:
        """What copying a run of so many pages takes, on the way it goes."""
        if one == two:
            return 0
        direct = self.between(one, two)
        if direct:
            return direct.run_ns[pages]
        return self.run_ns(one, HOST, pages) + self.run_ns(HOST, two, pages)

    def charge(self, core: Core, fault_us: int = FAULT_US) -> None:
        """Have copies charged for these links, and every fault `fault_us`."""
        for node in range(core.nodes):
            core.set_fault_cost(node, fault_us * 1000)
        for (one, two), found in self.links.items():
            core.set_link(one, two, found.run_ns)

    def matrix(self) -> str:
        """From each node, a line, to each: X is itself, `host` that the host lies between."""
        names = _names(self.devices)
        lines = [" ".join(["-", *names])]
        for one, name in enumerate(names):
            lines.append(" ".join([name, *(self._between(one, two) for two in range(len(names)))]))
        return "\n".join(lines) + "\n"

    def _between(self, one: int, two: int) -> str:
        if one == two:
            return "X"
        direct = self.between(one, two)
        return direct.name if direct else "host"

    def distance(self, one: int, two: int) -> int:
        """The NUMA distance of two nodes; the formula is at the top of this file."""
        if one == two:
            return LOCAL
        hundreds = -(-self.run_ns(one, two, 1) // NS_PER_DISTANCE)
        return min(LOCAL + max(1, hundreds), FARTHEST)

    def distances(self) -> str:
        """All of them as `numactl --hardware` shows them; node 0 is the host, N + 1 is devN."""
        nodes = range(1 + self.devices)
        lines = ["node " + " ".join(f"{node:3}" for node in nodes)]
        for one in nodes:
            row = " ".join(f"{self.distance(one, two):3}" for two in nodes)
            lines.append(f"{one:3}: {row}")
        return "\n".join(lines) + "\n"


def topology(host: str, peer: str, devices: int, pairs: str = "") -> Topology:
    """The links of a mount: `host` of every device to the host, `peer`, which may be `none`, of any
    two devices, but for those that `pairs` names, in a FILE.toml or as in
    ``host-dev0:pcie4+dev0-dev1:nvlink3``. UsageError: there is no such link, node, pair or file."""
    to_host, direct = link(host), None if peer == "none" else link(peer)
    nodes = range(1, 1 + devices)
    links = {(HOST, node): to_host for node in nodes}
    if direct:
        links |= {(one, two): direct for two in nodes for one in range(1, two)}
    for pair, found in _named(pairs, devices):
        if found:
            links[pair] = found
        else:
            links.pop(pair, None)
    return Topology(devices, links)


def _names(devices: int) -> list[str]:
    return ["host", *(f"dev{number}" for number in range(devices))]


def _named(pairs: str, devices: int) -> Iterator[tuple[tuple[int, int], Link | None]]:
    """Each pair that is named, the lower node first, and its link; None: it is to have none."""
    seen = set()
    for text, name in _from_toml(pairs) if pairs.endswith(".toml") else _inline(pairs):
        pair = _pair(text, devices)
        if pair in seen:
            raise UsageError(f"The topology has the pair {text!r} twice. Give it one link.")
        seen.add(pair)
        if name == "none" and pair[0] != HOST:
            yield pair, None
            continue
        if name == "none":
            raise UsageError(
                f"The topology has no link for {text!r}: a device needs one to the host."
            )
        try:
            yield pair, link(name)
        except UsageError as error:
            raise UsageError(f"The topology is wrong about {text!r}: {error}") from None


def _pair(text: str, devices: int) -> tuple[int, int]:
    names = _names(devices)
    ends = text.split("-")
    if len(ends) != 2:
        raise UsageError(f"The topology has {text!r}, no pair of nodes. Write host-dev0.")
    for end in ends:
        if end not in names:
            known = " and ".join(names if devices < 2 else ("host", f"dev0 to {names[-1]}"))
            raise UsageError(
                f"The topology has {text!r}, but {end!r} is not a node: this mount has {known}."
            )
    one, two = sorted(names.index(end) for end in ends)
    if one == two:
        raise UsageError(f"The topology has {text!r}, a node with itself. Name two.")
    return one, two


def _inline(pairs: str) -> Iterator[tuple[str, str]]:
    for part in pairs.split("+") if pairs else ():
        pair, colon, name = part.partition(":")
        if not colon:
            raise UsageError(
                f"The topology has {part!r}. Name a FILE.toml, or links of pairs as in {PAIRS}."
            )
        yield pair, name


def _from_toml(path: str) -> Iterable[tuple[str, str]]:
    document = toml.document(path, "topology")
    table = document.pop("links", None)
    if document:
        raise UsageError(
            f"The topology {path} has {next(iter(document))!r}, where only [links] is known."
        )
    if not isinstance(table, dict):
        raise UsageError(f"The topology {path} has no table of links. Write [links].")
    return [(pair, _toml_link(pair, value)) for pair, value in table.items()]


def _toml_link(pair: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value.keys() == {"latency", "bandwidth"}:
        return f"{value['latency']}:{value['bandwidth']}"
    raise UsageError(
        f"The topology is wrong about {pair!r}. Give it a link's name, or "
        '{latency = "600ns", bandwidth = "64G"}.'
    )
