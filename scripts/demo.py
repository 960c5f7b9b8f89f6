"""What scripts/demo runs once everything is set up; see there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
import zlib
from pathlib import Path

from rich.console import Console
from rich.table import Table

HMMFS = (sys.executable, "-m", "hmmfs")
MIB = 1 << 20
SIZE = 256 * MIB

# An ordinary program: it knows mmap and nothing of devices. It prints the checksum of what it sees.
PROGRAM = """
import mmap, sys, zlib
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    for offset in range(0, len(memory), 1 << 20):
        exec(sys.argv[2])
    print(zlib.crc32(memory))
"""
STORE = "memory[offset:offset + 4096] = bytes([offset >> 20 & 255]) * 4096"

console = Console(soft_wrap=True)


def hmmfs(*words: str) -> str:
    return subprocess.run([*HMMFS, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def program(path: Path, statement: str = "pass") -> int:
    """Run the program in a process of its own; the checksum it prints."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(path), statement]
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
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    shadow = bytearray(path.read_bytes())
    check("dd", shadow)

    console.print("2. A program stores a page in every MiB through mmap; the device must see that.")
    program(path, STORE)
    for offset in range(0, SIZE, MIB):
        shadow[offset : offset + 4096] = bytes([offset >> 20 & 255]) * 4096
    check("stores through mmap", shadow)

    console.print("3. The device fills 96 MiB and copies 32 MiB; the program must see that.")
    device("fill a:16M+96M 0x5a")
    device("copy a:200M+32M to a:130M")
    shadow[16 * MIB : 112 * MIB] = b"\x5a" * (96 * MIB)
    shadow[130 * MIB : 162 * MIB] = shadow[200 * MIB : 232 * MIB]
    check("fill and copy", shadow)
    if path.read_bytes() != shadow:
        raise SystemExit("demo: the file differs from its shadow")
    console.print("  every byte compared with a shadow: [green]equal[/]")


def report(top: Path) -> None:
    dev, all_ = values(top / "devices/dev0/stats"), values(top / "stats")
    table = Table(title="What happened", show_header=False)
    for name, value in (
        ("pages moved to the device", dev["pages_in"]),
        ("pages moved back to the host", dev["pages_out"]),
        ("  of these copied", dev["copies_made"]),
        ("  of these clean, so not copied", dev["copies_saved"]),
        ("blocks evicted from full VRAM", dev["evicted_blocks"]),
        ("pages recalled from the CPU", all_["recalled_pages"]),
        ("CPU faults on device pages", all_["cpu_faults"]),
        ("VRAM used at most / there is (pages)", f"{dev['peak']} / {dev['capacity']}"),
    ):
        table.add_row(name, str(value))
    console.print(table)
    if (top / "audit").read_text() != "ok\n" or dev["peak"] > dev["capacity"]:
        raise SystemExit("demo: the books do not balance: " + (top / "audit").read_text())


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="hmmfs-demo-") as directory:
        top = Path(directory)
        hmmfs("mount", directory, "-o", "vram=64M,devices=1,host=1G,log=/dev/null")
        try:
            steps(top)
            report(top)
        finally:
            hmmfs("umount", directory)


main()
