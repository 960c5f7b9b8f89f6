"""What a recording holds besides events: the state of a mount, read from its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hmmfs.common.units import PAGE
from hmmfs.inspect.record.recording import Counts

PAGES = "pages_"
HOST = "host"


def counters(*parts: str) -> Counts:
    """The numbers of a file of ``key value`` lines; empty if there is no such file."""
    try:
        with open(os.path.join(*parts), errors="surrogateescape") as file:
            lines = [line.split() for line in file]
    except FileNotFoundError:
        return {}
    return {
        line[0]: int(line[1])
        for line in lines
        if len(line) == 2 and line[1].isascii() and line[1].isdecimal()
    }


class Sampler:
    """Reads one mount again and again. OSError: it does not answer, or is gone."""

    def __init__(self, point: str) -> None:
        self._point = point
        names = os.listdir(os.path.join(point, "devices"))
        self.devices = sorted(names, key=lambda name: (len(name), name))  # dev10 after dev9
        self._links = {device: self._list("devices", device, "links") for device in self.devices}

    def machine(self) -> dict[str, Any]:
        """The header's part that is about the machine."""
        stats = self.stats()
        capacity = {HOST: stats.get("host_capacity", 0) * PAGE}
        for device in self.devices:
            capacity[device] = self._number("devices", device, "vram", "total")
        return {
            "hmmfs": self._text("version").strip(),
            "nodes": [HOST, *self.devices],
            "capacity": capacity,
            "topology": self._text("topology"),
            "trace": self.trace(),
            "stats": stats,
            "devices": self.device_stats(),
        }

    def trace(self) -> str:
        """What the mount's trace keeps: "all", "nothing", or what its filter says."""
        return "nothing" if self._number("trace_size") == 0 else self._text("trace_filter").strip()

    def stats(self) -> Counts:
        return counters(self._point, "stats")

    def device_stats(self) -> dict[str, Counts]:
        return {
            device: counters(self._point, "devices", device, "stats") for device in self.devices
        }

    def sample(self, between: Callable[[], None]) -> dict[str, Any]:
        """All of a sample but its time. ``between`` is called now and then, for what can't wait."""
        used, faults = {}, {"cpu": self.stats().get("cpu_faults", 0)}
        links: dict[str, Counts] = {}
        for device in self.devices:
            used[device] = self._number("devices", device, "vram", "used")
            here = counters(self._point, "devices", device, "faults")
            faults[device] = here.get("total", 0)
            for node in self._links[device]:
                self._add_link(links, device, node)
            between()
        regions = {}
        for name in self._list("state"):
            found = counters(self._point, "state", name, "residency")
            between()
            if "size" in found:  # unlinked since it was listed, otherwise
                regions[name] = self._residency(found)
        return {"used": used, "regions": regions, "links": links, "faults": faults}

    def _add_link(self, links: dict[str, Counts], device: str, node: str) -> None:
        """Of two devices, the link as the first says it: forward is from the name's first node."""
        if node != HOST and self.devices.index(device) > self.devices.index(node):
            return
        found = counters(self._point, "devices", device, "links", node)
        come, gone = found.get("bytes_in", 0), found.get("bytes_out", 0)
        name = f"{HOST}-{device}" if node == HOST else f"{device}-{node}"
        forward, back = (come, gone) if node == HOST else (gone, come)
        links[name] = {"forward": forward, "back": back, "busy_ns": found.get("busy_ns", 0)}

    @staticmethod
    def _residency(found: Counts) -> Counts:
        pages = {
            key.removeprefix(PAGES): value for key, value in found.items() if key.startswith(PAGES)
        }
        return {"size": found["size"], **pages}

    def _list(self, *parts: str) -> list[str]:
        try:
            return sorted(os.listdir(os.path.join(self._point, *parts)))
        except FileNotFoundError:
            return []

    def _number(self, *parts: str) -> int:
        return int(self._text(*parts))

    def _text(self, *parts: str) -> str:
        with open(os.path.join(self._point, *parts), errors="surrogateescape") as file:
            return file.read()
