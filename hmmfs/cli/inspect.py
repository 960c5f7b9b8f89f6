"""The commands that look into a mount: smi, top, topo, map."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmmfs.errors import UsageError
from hmmfs.inspect.heat.heat import KINDS

if TYPE_CHECKING:
    from hmmfs.inspect.mount.snapshot import Snapshot
    from hmmfs.inspect.smi.query import Format

Show = Callable[["Snapshot", "Snapshot | None"], None]

_directory = click.argument("directory", metavar="[DIR]", required=False)


class Seconds(click.FloatRange):
    """click's own ranges let a NaN pass."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return found


_SECONDS = Seconds(min=0.05, max=86400)


@click.command("smi")
@_directory
@click.option("--query", metavar="FIELD,...", help="These fields of each device, as CSV.")
@click.option("--format", "form", metavar="csv[,noheader][,nounits]", help="Of --query.")
@click.option("--help-query", is_flag=True, help="List the fields.")
@click.option("--json", "as_json", is_flag=True, help="All there is; its schema has a version.")
@click.option("-l", "seconds", metavar="SEC", type=_SECONDS, help="Repeat until Ctrl-C.")
@click.option("-i", "devices", metavar="DEV,...", help="These devices alone, as in dev0,dev1.")
def smi_command(
    directory: str | None,
    query: str | None,
    form: str | None,
    help_query: bool,
    as_json: bool,
    seconds: float | None,
    devices: str | None,
) -> int:
    """Show devices, regions and what thrashes, of the mount on DIR or of the only one there is."""
    from hmmfs.inspect.mount.mounts import choose
    from hmmfs.inspect.smi import query as fields

    tolerate_names()
    if help_query:
        print(*fields.help_lines(), sep="\n")
        return 0
    if as_json and query is not None:
        raise UsageError("--json says all there is. Give it or --query.")
    if form is not None and query is None:
        raise UsageError("--format is of --query: say which fields.")
    names = fields.parse_fields(query) if query is not None else []
    csv = fields.parse_format(form if form is not None else "csv")
    path = choose(directory)
    show = _as_json(devices, seconds is None) if as_json else _as_table(devices, seconds)
    show = _as_csv(devices, names, csv) if names else show
    for snapshot, before in _readings(path, seconds):
        show(snapshot, before)
        sys.stdout.flush()
    return 0


@click.command("top")
@_directory
@click.option(
    "-d",
    "seconds",
    metavar="SEC",
    type=_SECONDS,
    default=1.0,
    help="Between readings; 1.",
)
def top_command(directory: str | None, seconds: float) -> int:
    """Watch the mount on DIR, or the only one there is; the key h says what the others do."""
    from hmmfs.inspect.mount.mounts import choose
    from hmmfs.inspect.top.top import watch

    return watch(choose(directory), seconds)


@click.command("topo")
@_directory
@click.option("-m", "matrix", is_flag=True, help="The matrix, which is all there is to show.")
@click.option("--json", "as_json", is_flag=True, help="With latencies in ns and bandwidths.")
def topo_command(directory: str | None, matrix: bool, as_json: bool) -> int:
    """Show the links between nodes, of the mount on DIR or of the only one there is."""
    from hmmfs.inspect.mount import topo
    from hmmfs.inspect.mount.mounts import choose

    tolerate_names()
    found = topo.read_topology(choose(directory))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print(topo.render(found), end="")
    return 0


@click.command("map")
@click.argument("words", metavar="[DIR] REGION", nargs=-1, required=True)
@click.option("--by", type=click.Choice(KINDS), default=KINDS[0], help="What to show; the owner.")
@click.option("-o", "output", metavar="FILE.png|FILE.svg", help="A picture, not the terminal.")
def map_command(words: tuple[str, ...], by: str, output: str | None) -> int:
    """Show where the pages of REGION are, over its address space.

    REGION is a name, of the mount on DIR or of the only one there is, or a path DIR/regions/NAME.
    """
    from hmmfs.inspect.heat import map as heat_map
    from hmmfs.inspect.heat.heat import read_region

    tolerate_names()
    ending = heat_map.picture_ending(output) if output is not None else ""
    path, name = heat_map.parse_place(words)
    if output is None:
        heat_map.show(read_region(path, name), by)
    else:
        from hmmfs.inspect.heat.plot import write

        write(read_region(path, name), by, output, ending)
    return 0


@click.command("audit")
@_directory
def audit_command(directory: str | None) -> int:
    """Check what the mount on DIR, or the only one there is, has where, and that its counters add
    up. Exact while nothing runs there. Exit status 1: something is wrong."""
    from hmmfs.inspect.mount.accounts import disagreements
    from hmmfs.inspect.mount.mounts import choose
    from hmmfs.inspect.mount.reading import ask, text

    def look(point: str) -> list[str]:
        wrong = [] if text(point, "audit") == "ok\n" else [text(point, "audit").strip()]
        return [*wrong, *disagreements(Path(point))]

    tolerate_names()
    found = ask(choose(directory), look)
    print(*(found or ["ok"]), sep="\n")
    return 1 if found else 0


COMMANDS = (smi_command, top_command, topo_command, map_command, audit_command)


def tolerate_names() -> None:
    """Names of regions may have characters that the terminal's encoding has not."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _readings(path: str, seconds: float | None) -> Iterator[tuple[Snapshot, Snapshot | None]]:
    """Snapshots, each with the one before; only one without an interval."""
    from hmmfs.inspect.mount.snapshot import read_snapshot

    before, due = None, time.monotonic()
    while True:
        snapshot = read_snapshot(path)
        yield snapshot, before
        if seconds is None:
            return
        before = snapshot
        due = max(due + seconds, time.monotonic())
        time.sleep(due - time.monotonic() if due > time.monotonic() else 0)


def _chosen(snapshot: Snapshot, devices: str | None) -> list[str]:
    """Names of the devices that -i names, as dev0 or 0; all without."""
    there = [device["name"] for device in snapshot["devices"]]
    if devices is None:
        return there
    wanted = [f"dev{word}" if word.isdecimal() else word for word in devices.split(",")]
    for name in wanted:
        if name not in there:
            from hmmfs.common.names import no_device

            raise UsageError(no_device(name, there))
    return wanted


def _as_json(devices: str | None, indented: bool) -> Show:
    def show(snapshot: Snapshot, before: Snapshot | None) -> None:
        chosen = _chosen(snapshot, devices)
        shown = [device for device in snapshot["devices"] if device["name"] in chosen]
        print(json.dumps(snapshot | {"devices": shown}, indent=2 if indented else None))

    return show


def _as_csv(devices: str | None, names: list[str], form: Format) -> Show:
    from hmmfs.inspect.smi import query

    def show(snapshot: Snapshot, before: Snapshot | None) -> None:
        chosen = _chosen(snapshot, devices)
        if form.header and before is None:
            print(query.header(names, form), end="")
        for device in snapshot["devices"]:
            if device["name"] in chosen:
                then = query.earlier(device, snapshot, before)
                print(query.row(names, form, snapshot, device, then), end="")

    return show


def _as_table(devices: str | None, seconds: float | None) -> Show:
    def show(snapshot: Snapshot, before: Snapshot | None) -> None:
        from rich.text import Text

        from hmmfs.inspect.smi import smi

        console = smi.console()
        chosen = _chosen(snapshot, devices)
        if seconds is not None and console.is_terminal:
            console.clear()
        # A sentence is one line, and a command to be copied, too: the terminal wraps them.
        for part in smi.render(snapshot, chosen, before):
            console.print(part, soft_wrap=isinstance(part, Text))
        if seconds is not None and not console.is_terminal:
            console.print()

    return show
