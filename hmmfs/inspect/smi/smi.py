"""`hmmfs smi` as tables for people."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hmmfs.common.names import printable
from hmmfs.common.units import PAGE
from hmmfs.inspect.mount.rows import Rows, table
from hmmfs.inspect.mount.snapshot import Snapshot
from hmmfs.inspect.mount.thrash import is_recent, sentences
from hmmfs.inspect.mount.words import brief, duration, grouped, size
from hmmfs.inspect.smi.query import earlier, per_second

PIPE_WIDTH = 160  # where nobody's terminal limits it


def console() -> Console:
    """For stdout: as wide as the terminal, or wide enough."""
    found = Console(highlight=False, markup=False, emoji=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = max(found.width, PIPE_WIDTH)
    return found


def render(
    snapshot: Snapshot, chosen: Sequence[str], before: Snapshot | None
) -> list[Text | Table | Rows]:
    """Of the devices ``chosen``; with a snapshot from before also rates."""
    devices = [device for device in snapshot["devices"] if device["name"] in chosen]
    parts: list[Text | Table | Rows] = [_headline(snapshot)]
    if devices:
        parts.append(_devices(devices, snapshot, before))
    else:
        parts.append(Text("There are no devices."))
    if snapshot["regions"]:
        parts.append(_regions(snapshot))
    else:
        parts.append(Text("There are no regions."))
    return [*parts, *_thrashing(snapshot, chosen)]


def _headline(snapshot: Snapshot) -> Text:
    stats = snapshot["stats"]
    return Text(
        f"hmmfs {printable(snapshot['version'])} on {printable(snapshot['path'])}, "
        f"up {duration(stats['uptime_ns'])}, simulated clock {duration(stats['clock_ns'])}"
    )


def _devices(devices: list[Snapshot], snapshot: Snapshot, before: Snapshot | None) -> Table:
    rate = ["faults/s"] if before else []
    words = ("device", "type", "runs")
    found = table(
        "Devices",
        *("device", "type", "VRAM used", "%", "faults", *rate, "in", "out", "evicted", "runs"),
        words=words,
    )
    for device in devices:
        vram, stats = device["vram"], device["stats"]
        percent = f"{100 * vram['used'] / vram['total']:.0f}" if vram["total"] else ""
        cells = [
            device["name"],
            device["type"] + (" excluded" if device["excluded"] else ""),
            f"{size(vram['used'])} / {size(vram['total'])}",
            percent,
            brief(device["faults"]["total"]),
            *([_rate(device, snapshot, before)] if before else []),
            *(size(stats[key] * PAGE) for key in ("pages_in", "pages_out", "evicted_pages")),
            _queue(device["queue"]),
        ]
        found.add_row(*(Text(printable(cell)) for cell in cells))
    return found


def _rate(device: Snapshot, snapshot: Snapshot, before: Snapshot | None) -> str:
    then = earlier(device, snapshot, before)
    if then is None:
        return ""
    found = per_second(device["faults"]["total"], then.device["faults"]["total"], then.seconds)
    return "" if found is None else brief(found)


def _queue(entries: list[Snapshot]) -> str:
    """What runs, how far it is, and how many wait."""
    running = [
        f"{entry['verb']} {100 * entry['done'] // entry['total']} %"
        if entry["total"]
        else entry["verb"]
        for entry in entries
        if entry["state"] == "running"
    ]
    waiting = sum(entry["state"] == "waiting" for entry in entries)
    return ", ".join([*running, *([f"{waiting} waiting"] if waiting else [])]) or "-"


def _regions(snapshot: Snapshot) -> Rows:
    found = Rows(
        "Regions",
        ("region", "size", "pages by node", "dirty", "CPU faults", "device faults", "evicted"),
        words=("region", "pages by node"),
    )
    names = [device["name"] for device in snapshot["devices"]]
    for region in snapshot["regions"]:
        residency, faults = region["residency"], region["faults"]
        nodes = [(node, residency.get(f"pages_{node}", 0)) for node in ("host", *names)]
        cells = [
            region["name"],
            size(residency["size"]),
            " ".join(f"{node}={count}" for node, count in nodes if count) or "-",
            grouped(residency["dirty_host"] + residency["dirty_device"]),
            brief(faults["cpu"]),
            brief(sum(faults.get(name, 0) for name in names)),
            brief(sum(faults.get(f"{name}_evicted", 0) for name in names)),
        ]
        found.add(cells)
    return found


def _thrashing(snapshot: Snapshot, chosen: Sequence[str]) -> list[Text | Table]:
    said = [
        Text(sentence, style="bold" if is_recent(each) else "")
        for each, sentence in zip(snapshot["thrashing"], sentences(snapshot), strict=True)
        if each["device"] in chosen
    ]
    return [Text("Thrashing", style="italic"), *(said or [Text("No region thrashes.")])]
