"""Status as tables for people; programs read the JSON."""

from rich.console import Console
from rich.table import Table

from hmmfs.inspect.status import Status
from hmmfs.units import format_size


def print_status(status: Status) -> None:
    """Devices with their VRAM, regions with their pages per node, then the mount's counters."""
    console = Console(highlight=False)
    console.print(f"hmmfs {status['version']} on {status['path']}", markup=False, soft_wrap=True)
    devices = Table("device", title="Devices", title_justify="left")
    for heading in ("VRAM", "used", "%"):
        devices.add_column(heading, justify="right")
    for device in status["devices"]:
        total, used = device["vram"]["total"], device["vram"]["used"]
        devices.add_row(
            device["name"],
            format_size(total),
            format_size(used),
            f"{100 * used / total:.0f}" if total else "",
        )
    if status["devices"]:
        console.print(devices)
    if status["regions"]:
        console.print(_regions(status))
    console.print(_counters("Mount", status["stats"]))
    for device in status["devices"]:
        console.print(_counters(device["name"], device["stats"]))


def _regions(status: Status) -> Table:
    """A column for every key that any region has, in the order of first sight."""
    keys = dict.fromkeys(key for region in status["regions"] for key in region["residency"])
    table = Table("region", title="Regions (pages of 4 KiB)", title_justify="left")
    for key in keys:
        table.add_column(key, justify="right")
    for region in status["regions"]:
        values = region["residency"]
        table.add_row(region["name"], *(str(values.get(key, "")) for key in keys))
    return table


def _counters(title: str, values: dict[str, int | str]) -> Table:
    table = Table("counter", title=title, title_justify="left", box=None, show_header=False)
    table.add_column("value", justify="right")
    for key, value in values.items():
        table.add_row(key, str(value))
    return table
