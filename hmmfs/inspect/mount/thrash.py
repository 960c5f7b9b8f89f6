"""What thrashes, as sentences for somebody who has never heard the word."""

from __future__ import annotations

from hmmfs.common.names import printable, quoted
from hmmfs.inspect.mount.snapshot import Snapshot
from hmmfs.inspect.mount.words import grouped, pages, size

RECENT_S = 10.0


def sentences(snapshot: Snapshot) -> list[str]:
    """One for every line of ``DIR/thrashing`` in the snapshot, in their order; each ends with a
    command on a line of its own."""
    vram = {device["name"]: device["vram"]["total"] for device in snapshot["devices"]}
    return [
        _capacity(each, snapshot["path"], vram)
        if each["cause"] == "capacity"
        else _sharing(each, snapshot["path"])
        for each in snapshot["thrashing"]
    ]


def is_recent(each: Snapshot) -> bool:
    return bool(each["seconds_ago"] <= RECENT_S)


def remedy(cause: str, path: str, region: str, device: str) -> tuple[str, str]:
    """What to do about it, without a point, and the command that is the last of it."""
    advise = f"hmmfs advise {quoted(path)} {quoted(region)}"
    if cause == "capacity":
        return (
            "mount with a larger vram=, let kernels work on smaller parts, or have "
            f"{printable(device)} use the pages remotely",
            f"{advise} accessed_by={quoted(device)}",
        )
    return (
        "mount with thrashing=uvm, or let the pages stay on the host, where both sides reach them",
        f"{advise} no_migrate",
    )


def _capacity(each: Snapshot, path: str, vram: dict[str, int]) -> str:
    device, region = each["device"], each["region"]
    vram_holds = f"its {size(vram[device])} of VRAM hold" if device in vram else "its VRAM holds"
    was = "were" if each["pages"] != 1 else "was"
    what, command = remedy("capacity", path, region, device)
    return (
        f"Region {printable(region)} {_verb(each)} on {device}: {pages(each['pages'])} {was} "
        f"evicted and wanted back, last {_ago(each)}. Kernels on {device} use more by turns than "
        f"{vram_holds}; with twice as much {_staying(each)} would have stayed. "
        f"{what[0].upper()}{what[1:]}:\n    {command}"
    )


def _staying(each: Snapshot) -> str:
    stay = each["stay_with_twice"]
    return "all" if stay >= each["pages"] else f"{grouped(stay)} of them" if stay else "none"


def _sharing(each: Snapshot, path: str) -> str:
    device, region = each["device"], each["region"]
    what, command = remedy("sharing", path, region, device)
    return (
        f"Region {printable(region)} {_verb(each)} between programs and {device}: they "
        f"{_keep(each)} taking its pages from each other, {pages(each['pages'])} so far, "
        f"last {_ago(each)}. {what[0].upper()}{what[1:]}:\n    {command}"
    )


def _keep(each: Snapshot) -> str:
    return "keep" if is_recent(each) else "kept"


def _verb(each: Snapshot) -> str:
    return "thrashes" if is_recent(each) else "thrashed"


def _ago(each: Snapshot) -> str:
    seconds = each["seconds_ago"]
    return f"{seconds:.1f} s ago" if seconds < 100 else f"{seconds / 60:.0f} min ago"
