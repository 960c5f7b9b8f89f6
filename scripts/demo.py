"""What scripts/demo runs once everything is set up; see there."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

HMMFS = (sys.executable, "-m", "hmmfs")
MIB = 1 << 20
SIZE = 256 * MIB
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# An ordinary program: it knows mmap and nothing of devices. Told so, it stores a page in every MiB;
# then it prints the checksum of all that it sees.
PROGRAM = """
import mmap, sys, zlib
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    if "store" in sys.argv:
        for offset in range(0, len(memory), 1 << 20):
            memory[offset:offset + 4096] = bytes([offset >> 20 & 255]) * 4096
    print(zlib.crc32(memory))
"""

console = Console(soft_wrap=True)


def hmmfs(*words: str) -> str:
    return subprocess.run([*HMMFS, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def program(path: Path, *words: str) -> int:
    """Run the program in a process of its own; the checksum it prints."""
    command = [sys.executable, "-c", PROGRAM, str(path), *words]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def values(path: Path) -> dict[str, int]:
    return {key: int(value) for key, value in map(str.split, path.read_text().splitlines())}


def agree(step: str, program_sees: int, device_sees: int, expected: int) -> None:
    right = program_sees == device_sees == expected
    mark = "[green]equal[/]" if right else "[red]NOT EQUAL[/]"
    console.print(
        f"  checksum: program {program_sees:08x}, device {device_sees:08x}, "
        f"expected {expected:08x}: {mark}"
    )
    if not right:
        raise SystemExit(f"demo: after the step «{step}» somebody saw wrong bytes")


def steps(top: Path) -> None:
    path = top / "regions/a"

    def device(operation: str) -> str:
        return hmmfs("submit", str(top), "dev0", operation).strip()

    def check(step: str, shadow: bytearray) -> None:
        agree(step, program(path), int(device("checksum a"), 16), zlib.crc32(shadow))

    console.print("1. dd writes 256 MiB of random bytes; the device, with 64 MiB, reads them all.")
    command = ["dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={SIZE // MIB}"]
    subprocess.run([*command, "status=none"], check=True)
    shadow = bytearray(path.read_bytes())
    check("dd", shadow)

    console.print("2. A program stores a page in every MiB through mmap; the device must see that.")
    program(path, "store")
    for offset in range(0, SIZE, MIB):
        shadow[offset : offset + 4096] = bytes([offset >> 20 & 255]) * 4096
    check("stores through mmap", shadow)

    console.print("3. The device fills 96 MiB and copies 32 MiB; the program must see that.")
    device("fill a:16M+96M 0x5a")
    device("copy a:200M+32M to a:130M")
    shadow[16 * MIB : 112 * MIB] = b"\x5a" * (96 * MIB)
    shadow[130 * MIB : 162 * MIB] = shadow[200 * MIB : 232 * MIB]
    check("fill and copy", shadow)
    if subprocess.run(["cmp", "-", path], input=shadow, check=False).returncode:
        raise SystemExit("demo: cmp found a byte that differs from the shadow's")
    console.print("  every byte compared with a shadow, by cmp: [green]equal[/]")


def report(top: Path) -> None:
    dev, all_ = values(top / "devices/dev0/stats"), values(top / "stats")
    peak, capacity = dev["peak"], dev["capacity"]
    table = Table(title="What happened, in pages of 4 KiB", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("moved to the device", dev["pages_in"]),
        ("moved back to the host", dev["pages_out"]),
        ("  of these copied", dev["copies_made"]),
        ("  of these clean there, so no copy", dev["copies_saved"]),
        ("evicted from full VRAM", dev["evicted_pages"]),
        ("  in blocks of 2 MiB", dev["evicted_blocks"]),
        ("recalled from the CPU's page cache", all_["recalled_pages"]),
        ("CPU faults on pages of the device", all_["cpu_faults"]),
        ("most VRAM used at any moment", peak),
        ("VRAM there is", capacity),
    ):
        table.add_row(name, str(value))
    console.print(table)
    if (top / "audit").read_text() != "ok\n" or peak > capacity:
        raise SystemExit("demo: the books do not balance: " + (top / "audit").read_text())
    if not dev["evicted_blocks"]:
        raise SystemExit("demo: nothing was evicted, so the device was never short of memory")


@contextlib.contextmanager
def mounted(directory: str) -> Iterator[Path]:
    try:
        hmmfs("mount", directory, "-o", "vram=64M,devices=1,host=1G,log=/dev/null")
        yield Path(directory)
    finally:
        # An operation that was interrupted may have the mount busy for a moment: then detach it.
        if (
            Path(directory).is_mount()
            and subprocess.run([*HMMFS, "umount", directory], capture_output=True).returncode
        ):
            hmmfs("umount", "-z", directory)


def stop(number: int, _frame: object) -> NoReturn:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # the unmounting is not to be cut short
    raise SystemExit(128 + number)


def main() -> None:
    for number in SIGNALS:
        signal.signal(number, stop)
    with tempfile.TemporaryDirectory(prefix="hmmfs-demo-") as directory, mounted(directory) as top:
        steps(top)
        report(top)
    console.print("Every check was right, and the mount is gone.")


try:
    main()
except subprocess.CalledProcessError as error:
    sys.exit(f"demo: `{error.cmd[0]}` failed with status {error.returncode}; see above.")
