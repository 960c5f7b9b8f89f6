"""Status as tables for people; programs read the JSON, which leaves nothing out."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hmmfs.common.units import format_size
from hmmfs.inspect.mount.reading import Values
from hmmfs.inspect.mount.rows import Rows, table
from hmmfs.inspect.mount.status import Status

PAGES = "pages_"


def print_status(status: Status) -> None:
    """Devices with their VRAM, regions with their pages per node, then counters that moved."""
    console = Console(highlight=False)
    console.print(f"hmmfs {status['version']} on {status['path']}", markup=False, soft_wrap=True)
    if status["devices"]:
        console.print(_devices(status))
    if status["regions"]:
        console.print(_regions(status))
    console.print(_counters("Mount", status["stats"]))
    for device in status["devices"]:
        console.print(_counters(device["name"], device["stats"]))


def _devices(status: Status) -> Table:
    found = table("Devices", "device", "VRAM", "used", "%", words=("device",))
    for device in status["devices"]:
        total, used = device["vram"]["total"], device["vram"]["used"]
        percent = f"{100 * used / total:.0f}" if total else ""
        found.add_row(device["name"], format_size(total), format_size(used), percent)
    return found


def _regions(status: Status) -> Rows:
    """A column for every node that holds a page of any region."""
    regions = [(region["name"], region["residency"]) for region in status["regions"]]
    nodes = dict.fromkeys(
        key for _, found in regions for key in found if key.startswith(PAGES) and found[key]
    )
    headings = [key.removeprefix(PAGES) for key in nodes]
    headings = ["region", "size", *headings, "dirty", "cpu_cached"]
    rows = Rows("Regions (pages of 4 KiB)", headings, words=("region",))
    for name, found in regions:
        dirty = sum(int(value) for key, value in found.items() if key.startswith("dirty_"))
        pages = [str(found.get(key, "")) for key in nodes]
        size = format_size(int(found.get("size", 0)))
        rows.add([name, size, *pages, str(dirty), str(found.get("cpu_cached", ""))])
    return rows


def _counters(title: str, values: Values) -> Table:
    """What is not zero."""
    table = Table("counter", title=title, title_justify="left", box=None, show_header=False)
    table.add_column("value", justify="right")
    for key, value in values.items():
        if value != 0:
            table.add_row(Text(key), Text(str(value)))
    return table
