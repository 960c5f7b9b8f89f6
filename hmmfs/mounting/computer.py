"""How much memory the computer has for a mount: what is available, and what cgroups allow."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from hmmfs.common.units import K, format_size

NONE_V1 = 1 << 62  # a limit from here on is none


def complaint(wanted: int, root: Path = Path("/")) -> str | None:
    """One sentence if a mount's memories, of that many bytes in all, are more than there is. `root`
    is where /proc and cgroups are looked for."""
    found = list(_available(root))
    if not found:
        return None
    there, where = min(found)
    if wanted <= there:
        return None
    return (
        f"Warning: host= and all vram= together are {format_size(wanted)}, and {where} "
        f"{_shown(there)}: programs that fill them may be killed for it, so mount with less."
    )


def _shown(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{max(0, count) // K} KiB"


def _available(root: Path) -> Iterator[tuple[int, str]]:
    """Bytes that can be had, and by what that is limited, as a sentence says it."""
    with contextlib.suppress(OSError):
        text = (root / "proc/meminfo").read_text()
        if match := re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE):
            yield int(match[1]) * K, "this computer has"
    for top, group, names in _groups(root):
        for directory in (top / group, *(top / group).parents):
            if not directory.is_relative_to(top):
                break
            left = _left(directory, *names)
            if left is not None:
                path = "/" + str(directory.relative_to(top)).removeprefix(".")
                yield left, f"the limit of the cgroup {path} leaves"


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
V2 = ("memory.max", "memory.current", "")


def _groups(root: Path) -> Iterator[tuple[Path, str, tuple[str, str, str]]]:
    """This process's memory cgroups: where the hierarchy is mounted, the path below that, and what
    the files are called."""
    with contextlib.suppress(OSError, ValueError):
        ours = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
        for line in ours:
            number, controllers, path = line.split(":", 2)
            first = number == "0" and not controllers
            if not first and "memory" not in controllers.split(","):
                continue
            for mount in mounts:
                before, _, after = mount.partition(" - ")
                kind, _, options = after.split(" ", 2)
                if kind != ("cgroup2" if first else "cgroup"):
                    continue
                if not first and "memory" not in options.split(","):
                    continue
                top, point = before.split(" ")[3:5]
                yield root / point.lstrip("/"), _below(path, top), V2 if first else V1
                break


def _below(path: str, top: str) -> str:
    """A cgroup's path below the one that is mounted. In a namespace it may lie outside: then what
    can be seen is the mounted one."""
    with contextlib.suppress(ValueError):
        below = PurePosixPath(path).relative_to(top)
        return "" if ".." in below.parts else str(below)
    return ""


def _left(directory: Path, limit: str, usage: str, prefix: str) -> int | None:
    """What a cgroup may still take, with the cache of files that it would drop; None: no limit."""
    try:
        text = (directory / limit).read_text().strip()
        if text == "max" or int(text) >= NONE_V1:
            return None
        used = int((directory / usage).read_text())
        stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return max(0, int(text) - max(0, used - cache))
