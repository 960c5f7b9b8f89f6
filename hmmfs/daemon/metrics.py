"""What a mount's control files say, as metrics of Prometheus.

The files are read on the trio thread, where no region comes, goes or changes its name meanwhile:
the numbers are those that `cat` shows, all of one file of one moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar, TypeVarTuple

import trio
from prometheus_client import Metric
from prometheus_client.core import InfoMetricFamily
from prometheus_client.registry import Collector

from hmmfs import __version__
from hmmfs.common import names
from hmmfs.filesystem.tree import Tree

# How many of a file's units are one of Prometheus's, which are bytes and seconds.
PAGE = 1 / 4096
NS = 1e9
BATCH = 16  # regions that are read in one go: the trio thread has faults to serve

Labels = dict[str, str]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Row(NamedTuple):
    """Keys of a file, and what becomes of their numbers. Groups in `key` that have names are
    labels, as are `labels`; a name that ends in _total is a counter's, any other a gauge's. With
    _info at its end, it is of a word, which is a label then. No key: what the file says is that."""

    key: str
    name: str
    help: str
    unit: float = 1
    labels: Labels = {}  # noqa: RUF012


NODE = r"host|dev\d+"

MOUNT = (
    Row("pid", "process_id", "The daemon's process."),
    Row("clock_ns", "simulated_seconds_total", "The simulated clock.", NS),
    Row("uptime_ns", "uptime_seconds", "How long the mount has been there.", NS),
    Row("(?P<access>read|write)s", "requests_total", "Requests for data of regions."),
    Row("read_bytes", "requested_bytes_total", "Asked for.", labels={"access": "read"}),
    Row("written_bytes", "requested_bytes_total", "Asked for.", labels={"access": "write"}),
    Row("cpu_faults", "cpu_faults_total", "Accesses by programs to pages that a device had."),
    Row(
        "cpu_(?P<access>read|write)_faults",
        "cpu_faults_by_access_total",
        "cpu_faults_total, by what the program wanted.",
    ),
    Row(
        "(?P<path>express|service)_faults",
        "cpu_faults_by_path_total",
        "Of cpu_faults_total: resolved natively, and by the fault service.",
    ),
    Row("pages_touched", "touched_bytes", "Of all regions, what was ever touched.", PAGE),
    Row("directory_bytes", "directory_bytes", "Memory for the directory of pages."),
    Row("cached_pages", "cached_bytes", "What the kernel's page cache has of regions.", PAGE),
    Row("regions", "regions", "Regions."),
    Row("movers", "mover_threads", "Native threads that move pages."),
    Row("trace_recorded", "trace_events_total", "Events recorded."),
    Row("trace_lost", "trace_events_lost_total", "Events that a reader was too slow for."),
    Row(
        f"pages_(?P<from>{NODE})_(?P<to>{NODE})",
        "moved_pages_total",
        "Pages of 4 KiB that changed their node.",
    ),
    Row(
        f"bytes_(?P<from>{NODE})_(?P<to>{NODE})",
        "copied_bytes_total",
        "Copied from node to node; a clean page may move without a copy.",
    ),
)

OF_NODE = (
    Row("capacity", "node_capacity_bytes", "Memory that there is.", PAGE),
    Row("used", "node_used_bytes", "Memory in use.", PAGE),
    Row("peak", "node_peak_bytes", "Most memory used at any moment.", PAGE),
    Row("pages_(?P<direction>in|out)", "node_pages_total", "Pages that came and went."),
    Row(
        "(?P<direction>in|out)_(?P<trigger>\\w+)",
        "node_pages_by_trigger_total",
        "node_pages_total, by why they moved.",
    ),
    Row("thrashed_pages", "node_thrashed_pages_total", "Wanted back.", 1, {"cause": "capacity"}),
    Row("shared_pages", "node_thrashed_pages_total", "Wanted back.", 1, {"cause": "sharing"}),
    Row("fault_ns", "node_fault_seconds_total", "Simulated time of faults.", NS),
    Row(
        "copy_(?P<direction>in|out)_ns",
        "node_copy_seconds_total",
        "Simulated time of copies to the node and from it.",
        NS,
    ),
)

OF_DEVICE_FAULTS = (
    Row("total", "device_faults_total", "Accesses by a device to what it did not have."),
    Row("pending", "device_faults_pending", "Faults that are being resolved."),
    Row(
        "(?P<access>read|write)",
        "device_faults_by_access_total",
        "device_faults_total, by what the device wanted.",
    ),
    Row(
        r"(?P<outcome>\w+)",
        "device_faults_by_outcome_total",
        "device_faults_total, by what was done; device_faults_pending is the rest.",
    ),
)

LINK = (
    Row("type", "link_info", "Which link there is; host: copies go through the host."),
    Row("latency_ns", "link_latency_seconds", "Simulated, of a copy.", NS),
    Row("bandwidth", "link_bandwidth_bytes_per_second", "Simulated, of a long copy."),
    Row("bytes_(?P<direction>in|out)", "link_bytes_total", "Copied over a device's link."),
    Row("copies_(?P<direction>in|out)", "link_copies_total", "Copies over a device's link."),
    Row("busy_ns", "link_busy_seconds_total", "Simulated time in which a link was in use.", NS),
)

RESIDENCY = (
    Row(f"pages_(?P<node>{NODE})", "region_resident_bytes", "What is where.", PAGE),
    Row("dirty_(?P<owner>host|device)", "region_dirty_bytes", "Written to there.", PAGE),
    Row("cpu_cached", "region_cached_bytes", "What the kernel's page cache may have.", PAGE),
    Row("kept", "region_kept_bytes", "On a device, with the same bytes on the host.", PAGE),
    Row("copies", "region_copies_bytes", "Copies of read-mostly pages.", PAGE),
    Row("reserved", "region_reserved_bytes", "Host memory promised to the page cache.", PAGE),
    Row("size", "region_size_bytes", "The file's size."),
)

PROCESSOR = r"(?P<processor>cpu|dev\d+)"
REGION_FAULTS = (
    Row(PROCESSOR, "region_faults_total", "Faults on the region."),
    Row(
        f"{PROCESSOR}_(?P<access>read|write)",
        "region_faults_by_access_total",
        "region_faults_total, by what was wanted.",
    ),
    Row(
        f"{PROCESSOR}_evicted",
        "region_evicted_pages_total",
        "Pages that left a full device.",
    ),
    Row(
        f"{PROCESSOR}_thrashed",
        "region_thrashed_pages_total",
        "Wanted back.",
        labels={"cause": "capacity"},
    ),
    Row(
        f"{PROCESSOR}_shared",
        "region_thrashed_pages_total",
        "Wanted back.",
        labels={"cause": "sharing"},
    ),
    Row(f"{PROCESSOR}_pending", "region_faults_pending", "Faults that are being resolved."),
    Row(
        f"{PROCESSOR}_(?P<outcome>\\w+)",
        "region_faults_by_outcome_total",
        "region_faults_total of devices, by what was done.",
    ),
)

VISIBLE = (Row("", "device_visible_bytes", "Memory of a device that programs can reach."),)
TYPE = (Row("", "device_info", "The kind of a device's memory."),)


class File(NamedTuple):
    """A control file and its rows. Words of the path in <> are any names, and labels. Keys that no
    row has become PREFIX_KEY_total."""

    path: str
    rows: tuple[Row, ...]
    prefix: str = ""

    @property
    def keys(self) -> bool:
        """Whether it says several values, each with its key."""
        return self.rows[0].key != ""


HOST_NODE = File("stats", OF_NODE, "node_")
MACHINE = (
    File("stats", MOUNT),
    File("devices/<node>/stats", OF_NODE, "node_"),
    File("devices/<device>/faults", OF_DEVICE_FAULTS, "device_faults_"),
    File("devices/<device>/links/<peer>", LINK, "link_"),
    File("devices/<device>/vram/visible", VISIBLE),
    File("devices/<device>/type", TYPE),
)
REGION = (
    File("state/<region>/residency", RESIDENCY, "region_"),
    File("state/<region>/faults", REGION_FAULTS, "region_"),
)


class Found(NamedTuple):
    """One file as it was read."""

    file: File
    labels: Labels
    text: str


def read(tree: Tree, files: tuple[File, ...], regions: Sequence[bytes] = ()) -> list[Found]:
    """The files that there are; of those of regions only what `regions` names."""
    found = []

    def follow(file: File, words: list[str], path: tuple[bytes, ...], labels: Labels) -> None:
        if not words:
            text = tree.read(*path)
            if text is not None:
                found.append(Found(file, labels, text))
            return
        word, rest = words[0], words[1:]
        if not word.startswith("<"):
            return follow(file, rest, (*path, word.encode()), labels)
        for name in regions if word == "<region>" else tree.names(*path):
            follow(file, rest, (*path, name), {**labels, word[1:-1]: names.label(name)})

    for file in files:
        follow(file, file.path.split("/"), (), {})
    return found


def _family(name: str, text: str) -> Metric:
    stem = name.removesuffix("_total")
    return Metric(stem, text, "gauge" if stem == name else "counter")


class Families:
    """The metrics of one scrape: samples of one name stand together, whichever file they are of."""

    def __init__(self) -> None:
        self._by_name: dict[str, Metric] = {}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._by_name.values())

    def add(self, name: str, labels: Labels, value: float, text: str) -> None:
        family = self._by_name.setdefault(name, _family(name, text))
        family.add_sample(name, labels, value)

    def add_file(self, found: Found) -> None:
        """Every line."""
        for line in found.text.splitlines():
            key, _, text = line.partition(" ") if found.file.keys else ("", "", line)
            if found.file.path == "stats" and key.startswith("host_"):
                self._add(HOST_NODE, key.removeprefix("host_"), {"node": "host"}, text)
            else:
                self._add(found.file, key, found.labels, text)

    def _add(self, file: File, key: str, labels: Labels, text: str) -> None:
        is_number = re.fullmatch(r"-?\d+(\.\d+)?", text, re.ASCII)
        for row in file.rows:
            match = re.fullmatch(row.key, key)
            if match and row.name.endswith("_info"):
                self.add(f"hmmfs_{row.name}", {**labels, "type": text}, 1, row.help)
                return
            if match and is_number:
                every = {**labels, **row.labels, **match.groupdict()}
                self.add(f"hmmfs_{row.name}", every, float(text) / row.unit, row.help)
                return
        if is_number:
            self._add_unknown(file, key, labels, float(text))

    def _add_unknown(self, file: File, key: str, labels: Labels, value: float) -> None:
        stem = re.sub(r"\W", "_", key, flags=re.ASCII)
        text = f"{stem} of {file.path} in the mount."
        if stem.endswith("_ns"):
            stem, value = stem.removesuffix("_ns") + "_seconds", value / NS
        self.add(f"hmmfs_{file.prefix}{stem}_total", labels, value, text)

    def add_thrashing(self, text: str) -> None:
        """Lines as REGION DEVICE CAUSE pages=N seconds_ago=S."""
        for line in text.splitlines():
            words = line.split(" ")
            if len(words) < 4 or not words[3].startswith("pages="):
                continue
            region = names.label(names.unescaped(words[0].encode()))
            labels = {"region": region, "device": words[1], "cause": words[2]}
            pages = float(words[3].removeprefix("pages="))
            self.add("hmmfs_thrashing_pages", labels, pages, "Pages that thrash or did.")


class MountCollector(Collector):
    """Of one mount; collected in threads of trio.to_thread. trio.Cancelled: their task is."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def describe(self) -> Iterator[Metric]:
        """What there may be, for a registry that can't collect yet."""
        rows = (row for file in (*MACHINE, HOST_NODE, *REGION) for row in file.rows)
        return (_family(f"hmmfs_{row.name}", row.help) for row in rows)

    def collect(self) -> Iterator[Metric]:
        families, tree = Families(), self._tree
        for found in self._there(read, tree, MACHINE):
            families.add_file(found)
        families.add_thrashing(self._there(tree.read, b"thrashing") or "")
        # Not of state/, which would make what it has for all of them at once.
        names = self._there(tree.names, b"regions") + self._there(tree.programs)
        for first in range(0, len(names), BATCH):
            for found in self._there(read, tree, REGION, names[first : first + BATCH]):
                families.add_file(found)
        yield InfoMetricFamily("hmmfs_build", "The version.", {"version": __version__})
        yield from families

    def _there(self, look: Callable[[*Ts], T], *args: *Ts) -> T:
        """On the trio thread, which is waited for without the GIL."""
        return trio.from_thread.run_sync(look, *args)
