"""What `hmmfs top` shows: a snapshot, the one before it, and a size of terminal become lines.

Colours repeat what letters say: regions have letters in the bars of devices, nodes those of
``state/NAME/map`` in the bars and the map of regions.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from hmmfs.common.names import printable
from hmmfs.common.units import PAGE, format_size
from hmmfs.inspect.heat import map as heat_map
from hmmfs.inspect.heat.heat import NOTHING, OWNER, Detail, heat, per_row
from hmmfs.inspect.mount.snapshot import Snapshot
from hmmfs.inspect.mount.thrash import is_recent
from hmmfs.inspect.mount.words import brief, duration, size
from hmmfs.inspect.smi.query import Earlier, earlier, per_second

SHORT = 8  # of a path
SORTS = ("name", "faults", "size", "evictions")
LETTERS = string.ascii_letters
OTHERS = "#"  # regions past the last letter
REMOVED = "?"  # pages of regions that are open still, but have no name
REGION_STYLES = heat_map.OWNER_STYLES
ADDRESS = heat_map.ADDRESS
NODE_LETTERS = "0123456789abcde"  # of dev0 to dev14

HELP = """\
q            quit
p, space     pause, or go on
s            sort regions by the next of: name, faults/s, size, evictions/s
r            the other way round
up down k j  choose the region of the map
+ -          read less or more often
h ?          this text, or back

Bars of devices  their VRAM: a letter for each region (key), . free, ? removed but still open
Bars of regions  their pages: h host, 0 to 9 and a to e devices dev0 to dev14, . nowhere
Map              who owns what, and below each row how many faults its blocks of 2 MiB have had:
                 1 to 9 are ninths of the most
Thrashes         capacity: the device's VRAM is too small for what kernels use by turns
                 sharing: programs and the device keep taking pages from each other
                 an ! means within the last 10 s; hmmfs smi says more"""


@dataclass
class View:
    """What is shown, and how. ``chosen`` is the region of the map."""

    snapshot: Snapshot
    interval: float = 1.0
    before: Snapshot | None = None
    detail: Detail | None = None
    chosen: str | None = None
    sort: str = SORTS[0]
    reverse: bool = False
    paused: bool = False
    helping: bool = False

    def __post_init__(self) -> None:
        self._choose_something()

    def take(self, snapshot: Snapshot) -> None:
        self.before, self.snapshot = self.snapshot, snapshot
        self._choose_something()

    def next_sort(self) -> None:
        self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]

    def move(self, by: int) -> None:
        """Choose another region, as far as there are any."""
        names = [region["name"] for region in self.regions()]
        if names:
            at = names.index(self.chosen) + by if self.chosen in names else 0
            self.chosen = names[max(0, min(at, len(names) - 1))]

    def regions(self) -> list[Snapshot]:
        """In the order chosen: the largest number first, but names from the beginning."""
        by_name = sorted(self.snapshot["regions"], key=lambda region: str(region["name"]))
        if self.sort == "name":
            return by_name[::-1] if self.reverse else by_name
        return sorted(by_name, key=self._rank, reverse=not self.reverse)

    def fault_rate(self, region: Snapshot) -> float:
        return self._rate(region, ("cpu", *self._devices()))

    def eviction_rate(self, region: Snapshot) -> float:
        return self._rate(region, [f"{name}_evicted" for name in self._devices()])

    def _devices(self) -> list[str]:
        return [device["name"] for device in self.snapshot["devices"]]

    def _rank(self, region: Snapshot) -> tuple[float, float]:
        """By rate, then by total."""
        if self.sort == "size":
            return region["residency"]["size"], 0.0
        if self.sort == "faults":
            return self.fault_rate(region), total(region, ("cpu", *self._devices()))
        evicted = [f"{name}_evicted" for name in self._devices()]
        return self.eviction_rate(region), total(region, evicted)

    def _rate(self, region: Snapshot, keys: Iterable[str]) -> float:
        if self.before is None:
            return 0.0
        keys = list(keys)
        then = next(
            (each for each in self.before["regions"] if each["name"] == region["name"]), None
        )
        seconds = (self.snapshot["monotonic_ns"] - self.before["monotonic_ns"]) / 1e9
        if then is None:
            return 0.0
        return per_second(total(region, keys), total(then, keys), seconds) or 0.0

    def _choose_something(self) -> None:
        names = [region["name"] for region in self.regions()]
        if self.chosen not in names:
            self.chosen = names[0] if names else None


def total(region: Snapshot, keys: Iterable[str]) -> int:
    return sum(int(region["faults"].get(key, 0)) for key in keys)


def compose(view: View, width: int, height: int) -> list[Text]:
    """At most ``height`` lines of at most ``width`` cells."""
    lines = [_headline(view, width)]
    if view.helping:
        lines += [Text(line) for line in HELP.split("\n")]
    else:
        rest = height - 1
        lines += _devices(view, width, min(max(1, rest // 3), rest))
        rest = height - len(lines)
        regions = 1 + max(1, len(view.snapshot["regions"]))
        rows = min(regions, max(2, rest // 2)) if rest >= 6 else rest
        lines += _regions(view, width, rows)
        lines += _map(view, width, height - len(lines))
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="crop")
    return lines[: max(0, height)]


def _headline(view: View, width: int) -> Text:
    """A path that leaves no space for the rest is shown by its end."""
    stats = view.snapshot["stats"]
    line = Text()
    if view.paused:
        line.append("PAUSED", "reverse").append(" ")
    order = f"{view.sort}{' reversed' if view.reverse else ''}"
    rest = (
        f"  up {duration(stats['uptime_ns'])}, simulated {duration(stats['clock_ns'])}, "
        f"every {view.interval:g} s, by {order}, h: help"
    )
    path, left = printable(view.snapshot["path"]), max(SHORT, width - line.cell_len - len(rest))
    return line.append(path if len(path) <= left else f"…{path[1 - left :]}", "bold").append(rest)


# ---- devices


def _devices(view: View, width: int, rows: int) -> list[Text]:
    devices = view.snapshot["devices"]
    if not devices:
        return [Text("There are no devices.", "dim")]
    two = 2 * len(devices) <= rows
    fit = len(devices) if two or len(devices) <= rows else max(0, rows - 1)
    lines = []
    for device in devices[:fit]:
        then = earlier(device, view.snapshot, view.before)
        says = _flow(device, then) if two else _sums(device, then)
        bar = _vram(view, device, max(8, width - 26 - (0 if two else cell_len(says))))
        line = Text(f"{device['name']:6}").append_text(bar)
        total = device["vram"]["total"]
        line.append(f" {_percent(device):>4} of {size(total)}")
        lines += [line, Text("      " + says)] if two else [line.append("  " + says)]
    if fit < len(devices):
        lines.append(Text(f"… {len(devices) - fit} more devices than fit", "dim"))
    return lines[:rows]


def _percent(device: Snapshot) -> str:
    vram = device["vram"]
    return f"{100 * vram['used'] / vram['total']:.0f}%" if vram["total"] else "-"


def _vram(view: View, device: Snapshot, cells: int) -> Text:
    """A bar of all VRAM, in which each region has its letter."""
    parts, known = [], 0
    for number, region in enumerate(_by_name(view)):
        pages = region["residency"].get(f"pages_{device['name']}", 0)
        known += pages
        parts.append((letter(number), REGION_STYLES[number % len(REGION_STYLES)], pages))
    capacity = device["vram"]["total"] // PAGE
    parts.append((REMOVED, "", max(0, device["vram"]["used"] // PAGE - known)))
    return bar(((mark, f"reverse {style}", pages) for mark, style, pages in parts), capacity, cells)


def bar(parts: Iterable[tuple[str, str, int]], whole: int, cells: int) -> Text:
    """(mark, style, share) one after the other, as cells of a whole; the rest is dots."""
    text, begun, done = Text("["), 0, 0
    for mark, style, share in parts:
        done += share
        end = min(cells, round(cells * done / whole)) if whole else 0
        text.append(mark * (end - begun), style)
        begun = max(begun, end)
    return text.append(NOTHING * (cells - begun), "dim").append("]")


def letter(number: int) -> str:
    return LETTERS[number] if number < len(LETTERS) else OTHERS


def _by_name(view: View) -> list[Snapshot]:
    return sorted(view.snapshot["regions"], key=lambda region: str(region["name"]))


def _rate(now: Snapshot, then: Earlier | None, *keys: str) -> float:
    if then is None:
        return 0.0
    old = then.device
    for key in keys[:-1]:
        now, old = now[key], old.get(key, {})
    return per_second(now[keys[-1]], old.get(keys[-1]), then.seconds) or 0.0


def _flow(device: Snapshot, then: Earlier | None) -> str:
    links = ", ".join(
        f"{node} {size(_rate(device, then, 'links', node, 'bytes_in'))}/s in "
        f"{size(_rate(device, then, 'links', node, 'bytes_out'))}/s out"
        for node, link in device["links"].items()
        if link["type"] != "host"
    )
    return (
        f"{brief(_rate(device, then, 'faults', 'total'))} faults/s, "
        f"{brief(_rate(device, then, 'stats', 'evicted_pages'))} evicted/s, {links}"
    )


def _sums(device: Snapshot, then: Earlier | None) -> str:
    """In so many cells that they stand below each other."""
    ways = [
        sum(_rate(device, then, "links", node, way) for node in device["links"]) / 1e6
        for way in ("bytes_in", "bytes_out")
    ]
    return (
        f"{brief(_rate(device, then, 'faults', 'total')):>5} faults/s "
        f"{brief(_rate(device, then, 'stats', 'evicted_pages')):>5} evicted/s "
        f"MB/s {brief(ways[0]):>5} in {brief(ways[1]):>5} out"
    )


# ---- regions


def _regions(view: View, width: int, rows: int) -> list[Text]:
    if rows < 1:
        return []
    regions = view.regions()
    if not regions:
        return [Text("There are no regions.", "dim")]
    spare = max(0, width - 80)
    name_cells, bar_cells = 14 + spare // 3, 16 + spare // 2
    head = (
        f"  key {'region':{name_cells}} {'size':>8} {'pages':{bar_cells + 2}} "
        f"{'faults/s':>8} {'evict/s':>7} thrashes"
    )
    names = [region["name"] for region in regions]
    at = names.index(view.chosen) if view.chosen in names else 0
    first = max(0, min(at - (rows - 1) // 2, len(regions) - (rows - 1)))
    numbers = {region["name"]: number for number, region in enumerate(_by_name(view))}
    lines = [Text(head, "bold")]
    for region in regions[first : first + rows - 1]:
        is_chosen = region["name"] == view.chosen
        number = numbers[region["name"]]
        line = Text("> " if is_chosen else "  ", "bold" if is_chosen else "")
        line.append(f" {letter(number)} ", f"reverse {REGION_STYLES[number % len(REGION_STYLES)]}")
        line.append(" " + set_cell_size(printable(region["name"]), name_cells))
        line.append(f" {size(region['residency']['size']):>8} ")
        line.append_text(_residency(region, bar_cells))
        line.append(f" {brief(view.fault_rate(region)):>8} {brief(view.eviction_rate(region)):>7} ")
        lines.append(line.append_text(_marks(view, region["name"])))
    return lines


def _residency(region: Snapshot, cells: int) -> Text:
    """A bar of the region's size, in which each node has its letter."""
    residency = region["residency"]
    nodes = [("h", "host"), *((mark, f"dev{n}") for n, mark in enumerate(NODE_LETTERS))]
    parts = (
        (mark, heat_map.style(mark, OWNER), residency.get(f"pages_{node}", 0))
        for mark, node in nodes
    )
    return bar(parts, -(-residency["size"] // PAGE), cells)


def _marks(view: View, name: str) -> Text:
    text = Text()
    for each in view.snapshot["thrashing"]:
        if each["region"] == name:
            mark = "!" if is_recent(each) else ""
            text.append(f"{mark}{each['cause']} {each['device']} ", "bold red" if mark else "dim")
    return text


# ---- the map


def _map(view: View, width: int, rows: int) -> Iterator[Text]:
    if rows < 2 or view.chosen is None:
        return
    if view.detail is None or view.detail["name"] != view.chosen:
        yield Text(f"The map of {printable(view.chosen)} has not been read.", "dim")
        return
    row = per_row(width - ADDRESS)
    owners = heat(view.detail, OWNER, row * max(1, (rows - 1) // 2))
    faults = heat(view.detail, "faults", len(owners.cells))
    title = Text(
        f"{printable(view.chosen)}, {format_size(owners.pages * PAGE)} a character: ", "bold"
    )
    yield title.append_text(heat_map.legend(owners, OWNER))
    for start in range(0, len(owners.cells), row):
        cells = range(start, min(start + row, len(owners.cells)))
        address = f"{start * owners.pages * PAGE:012x}  "
        yield Text(address).append_text(heat_map.styled(owners.cells[start : start + row], OWNER))
        heats = "".join(faults.cells[cell * owners.pages // faults.pages] for cell in cells)
        label = f"{'faults':>12}  "
        yield Text(label, "dim").append_text(heat_map.styled(heats.replace(NOTHING, " "), "faults"))
