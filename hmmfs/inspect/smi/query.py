"""The fields of `hmmfs smi --query`, each about one device, and their rows as CSV."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hmmfs.common.names import printable
from hmmfs.errors import UsageError
from hmmfs.inspect.mount.snapshot import Snapshot

MISSING = "N/A"  # there is no such link, or no rate before the second reading

Value = int | float | str | None


@dataclass(frozen=True)
class Field:
    """`unit` is "" for words and plain counts. `get` is given the snapshot, the device in it, and
    the same device in the snapshot before, with the seconds since, if there was one."""

    unit: str
    meaning: str
    get: Callable[[Snapshot, Snapshot, Earlier | None], Value]


@dataclass(frozen=True)
class Earlier:
    """The same device, `seconds` ago."""

    device: Snapshot
    seconds: float


@dataclass(frozen=True)
class Format:
    """What `--format` asks for."""

    header: bool = True
    units: bool = True


def parse_fields(text: str) -> list[str]:
    """The names in a list with commas. UsageError: one is unknown."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        _field(name)
    return names


def parse_format(text: str) -> Format:
    """UsageError: it is not csv, or has another word than these two."""
    first, *words = [word.strip() for word in text.split(",")]
    if first != "csv" or not set(words) <= {"noheader", "nounits"}:
        raise UsageError(
            f'"{printable(text[:80])}" is not a format. '
            "Give csv, csv,noheader, csv,nounits or both."
        )
    return Format(header="noheader" not in words, units="nounits" not in words)


def header(names: Sequence[str], form: Format) -> str:
    units = {name: _field(name).unit for name in names}
    return _csv(f"{name} [{unit}]" if unit and form.units else name for name, unit in units.items())


def row(
    names: Sequence[str],
    form: Format,
    snapshot: Snapshot,
    device: Snapshot,
    earlier: Earlier | None = None,
) -> str:
    """A device's line, its newline included."""
    return _csv(_cell(_field(name), form, snapshot, device, earlier) for name in names)


def earlier(device: Snapshot, snapshot: Snapshot, before: Snapshot | None) -> Earlier | None:
    """The device in the snapshot before this one."""
    if before is None:
        return None
    seconds = (snapshot["monotonic_ns"] - before["monotonic_ns"]) / 1e9
    found = (each for each in before["devices"] if each["name"] == device["name"])
    return next((Earlier(each, seconds) for each in found), None)


def per_second(now: Value, then: Value, seconds: float) -> float | None:
    """Of a counter; None where it is not a number."""
    if not isinstance(now, int) or not isinstance(then, int) or seconds <= 0:
        return None
    return max(0, now - then) / seconds


def help_lines() -> list[str]:
    """A line for every field: name, unit, meaning."""
    units = {name: f"[{field.unit}]" if field.unit else "" for name, field in FIELDS.items()}
    wide, unit = max(map(len, FIELDS)), max(map(len, units.values()))
    lines = [f"{name:{wide}}  {units[name]:{unit}}  {FIELDS[name].meaning}" for name in FIELDS]
    return [*lines, "link.NODE.… is the same of the link to another device, as in link.dev1.name"]


def _field(name: str) -> Field:
    peer = re.fullmatch(r"link\.(dev\d+|host)\.(.+)", name)
    if peer and peer[2] in LINK:
        return _link(peer[2], peer[1])
    if name in FIELDS:
        return FIELDS[name]
    near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.6)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    raise UsageError(
        f'There is no field "{printable(name[:80])}"{hint}: hmmfs smi --help-query lists them.'
    )


def _cell(
    field: Field, form: Format, snapshot: Snapshot, device: Snapshot, earlier: Earlier | None
) -> str:
    value = field.get(snapshot, device, earlier)
    if value is None:
        return MISSING
    text = f"{value:.1f}" if isinstance(value, float) else printable(str(value))
    return f"{text} {field.unit}" if field.unit and form.units else text


def _csv(cells: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _of(*keys: str) -> Callable[[Snapshot, Snapshot, Earlier | None], Value]:
    """What the device's snapshot has at those keys."""

    def get(_: Snapshot, device: Snapshot, __: Earlier | None) -> Value:
        found = device
        for key in keys:
            found = found.get(key, {})
        return None if isinstance(found, dict) else found

    return get


def _stat(key: str, meaning: str, unit: str = "pages") -> Field:
    return Field(unit, meaning, _of("stats", key))


def _fault(kind: str, meaning: str) -> Field:
    return Field("", meaning, _of("faults", kind))


def _link(key: str, node: str = "host") -> Field:
    file_key, unit, meaning = LINK[key]
    return Field(unit, f"{meaning} {node}", _of("links", node, file_key))


def _rate(*keys: str) -> Callable[[Snapshot, Snapshot, Earlier | None], Value]:
    def get(snapshot: Snapshot, device: Snapshot, earlier: Earlier | None) -> Value:
        if earlier is None:
            return None
        now, then = (_of(*keys)(snapshot, each, None) for each in (device, earlier.device))
        return per_second(now, then, earlier.seconds)

    return get


def _percent(_: Snapshot, device: Snapshot, __: Earlier | None) -> Value:
    total = device["vram"]["total"]
    return 100 * device["vram"]["used"] / total if total else None


LINK = {
    "name": ("type", "", "link to"),
    "latency": ("latency_ns", "ns", "latency of the link to"),
    "bandwidth": ("bandwidth", "B/s", "what a long copy gets over the link to"),
    "bytes_in": ("bytes_in", "B", "copied to the device from"),
    "bytes_out": ("bytes_out", "B", "copied from the device to"),
    "copies_in": ("copies_in", "", "copies to the device from"),
    "copies_out": ("copies_out", "", "copies from the device to"),
    "busy": ("busy_ns", "ns", "simulated time that copies took over the link to"),
}

FIELDS: dict[str, Field] = {
    "name": Field("", "the device", _of("name")),
    "type": Field("", "private, coherent or dax, and how it is that", _of("type")),
    "excluded": Field(
        "",
        "on: nothing comes here that could be elsewhere",
        lambda _, device, __: "on" if device["excluded"] else "off",
    ),
    "mount": Field("", "directory of the mount", lambda snapshot, *_: snapshot["path"]),
    "version": Field("", "version of hmmfs", lambda snapshot, *_: snapshot["version"]),
    "clock": Field("ns", "simulated clock", lambda snapshot, *_: snapshot["stats"]["clock_ns"]),
    "uptime": Field("ns", "since the mount", lambda snapshot, *_: snapshot["stats"]["uptime_ns"]),
    "memory.total": Field("B", "VRAM", _of("vram", "total")),
    "memory.used": Field("B", "VRAM in use", _of("vram", "used")),
    "memory.free": Field(
        "B", "VRAM left", lambda _, device, __: device["vram"]["total"] - device["vram"]["used"]
    ),
    "memory.visible": Field("B", "VRAM that programs can reach", _of("vram", "visible")),
    "memory.peak": _stat("peak", "most VRAM in use at any moment"),
    "utilization.memory": Field("%", "VRAM in use, of all", _percent),
    "faults": _fault("total", "page faults of the device"),
    "faults.read": _fault("read", "by loads"),
    "faults.write": _fault("write", "by stores"),
    "faults.migrated": _fault("migrated", "that had pages moved here"),
    "faults.populated": _fault("populated", "on pages that were nowhere before"),
    "faults.mapped": _fault("mapped", "that had host pages mapped remotely"),
    "faults.copied": _fault("copied", "that had copies made of read_mostly pages"),
    "faults.upgraded": _fault("upgraded", "by stores to pages here that were for loads alone"),
    "faults.duplicate": _fault(
        "duplicate", "on a page that another thread asked for in the same batch"
    ),
    "faults.stale": _fault("stale", "with nothing left to do when they were served"),
    "faults.failed": _fault("failed", "that could not be resolved"),
    "faults.pending": _fault("pending", "not answered yet"),
    "faults.rate": Field("1/s", "since the reading before, with -l", _rate("faults", "total")),
    "pages.in": _stat("pages_in", "came to the device"),
    "pages.out": _stat("pages_out", "left it"),
    "pages.populated": _stat("populated_pages", "first touched on the device"),
    "pages.dropped": _stat("dropped_pages", "gone with their region, or punched out"),
    "evicted.pages": _stat("evicted_pages", "evicted because VRAM was full"),
    "evicted.blocks": _stat("evicted_blocks", "the same in blocks of 2 MiB", "blocks"),
    "evicted.rate": Field(
        "pages/s", "since the reading before, with -l", _rate("stats", "evicted_pages")
    ),
    "refaulted.pages": _stat("refaulted_pages", "evicted, and wanted back later"),
    "thrashed.pages": _stat(
        "thrashed_pages", "of these, those that would have stayed with twice the VRAM"
    ),
    "shared.pages": _stat("shared_pages", "taken to and fro between programs and the device"),
    "queue.length": Field(
        "",
        "operations and launches, also those that wait",
        lambda _, device, __: len(device["queue"]),
    ),
    "queue.running": Field(
        "",
        "what runs",
        lambda _, device, __: next(
            (entry["verb"] for entry in device["queue"] if entry["state"] == "running"), None
        ),
    ),
    **{
        f"policy.{name}": Field("", f"{name} policy", _of("policy", name))
        for name in ("prefetch", "eviction", "placement", "watermark")
    },
    **{
        f"{way}.{trigger}": _stat(f"{way}_{trigger}", f"{verb} because of {cause}")
        for way, verb in (("in", "came"), ("out", "left"))
        for trigger, cause in (
            ("cpu_fault", "a program's fault"),
            ("device_fault", "a device's fault"),
            ("prefetch", "a prefetch somebody asked for"),
            ("eviction", "an eviction"),
            ("operation", "an operation"),
        )
    },
    **{f"link.{key}": _link(key) for key in LINK},
}
