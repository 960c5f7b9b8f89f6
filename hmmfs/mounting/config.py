"""What a mount is told: option names, their values, defaults and limits.

The same names serve ``-o a=1,b=2`` and the ``[mount]`` table of a TOML file; ``-o`` wins.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

from hmmfs.common import toml
from hmmfs.common.units import BLOCK, PAGE, G, K, M, T, format_size, parse_size
from hmmfs.errors import HmmfsError, UsageError

Value = int | float | bool | str


@dataclass(frozen=True)
class Config:
    """One mount's settings; sizes are bytes. ``vram`` is what each device has."""

    vram: int = 64 * M
    devices: int = 1
    host: int = 1 * G
    type: str = "private"
    passthrough: bool = True
    visible: int = 0
    readahead: int = 128 * K
    poll_us: int = 0
    keep_clean: bool = True
    express: bool = True
    prefetch: str = "grow"
    eviction: str = "lru"
    placement: str = "first-touch"
    thrashing: str = "off"
    policy_limit: float = 1.0  # seconds
    link: str = "pcie3"
    peer: str = "none"
    topology: str = ""
    fault_us: int = 45
    realtime: bool = False
    threads: int = 2
    allow_other: bool = False
    ro: bool = False
    noexec: bool = False
    noatime: bool = False
    fsname: str = "hmmfs"
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    log: str | None = None
    debug: bool = False
    foreground: bool = False

    @property
    def memory(self) -> int:
        """Bytes that regions can take, of the host and of all devices."""
        return self.host + self.devices * self.vram

    @property
    def types(self) -> list[str]:
        """Of each device; of several, the last named is that of the rest."""
        named = self.type.split("+")
        return [named[min(number, len(named) - 1)] for number in range(self.devices)]

    @property
    def passes(self) -> bool:
        """Whether the kernel passes regions through to one memory, so that nothing is recalled."""
        one = set(self.types) or {self.type}
        if one == {"dax"}:
            return True
        return one == {"coherent"} and self.passthrough and not self.visible

    @classmethod
    def from_options(
        cls, options: str = "", toml_path: str | None = None, **defaults: Value
    ) -> Self:
        """Defaults, then the TOML file, then ``-o``; among repeated options the last wins."""
        given = _from_toml(toml_path) if toml_path is not None else iter(())
        return cls.from_pairs([*given, *_split(options)], **defaults)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str | None]], **defaults: Value) -> Self:
        """Defaults, then names with their texts; None: the name stands alone."""
        chosen: dict[str, Any] = dict(defaults)
        for name, text in pairs:
            if name in GENERIC:
                if GENERIC[name] and text not in (None, "on"):
                    raise UsageError(f'The option "{name}={text}" is wrong: {name} stands alone.')
                chosen.update(GENERIC[name])
            elif not name.startswith(("x-", "X-")):
                chosen[name] = _known(name).parse(name, text)
        return cls(**chosen)


@dataclass(frozen=True)
class Option:
    """How one option's text becomes its value, and what to say of a text that does not."""

    read: Callable[[str], Value | None]
    takes: str
    bare: str | None = None  # the text meant by the name alone

    def parse(self, name: str, text: str | None) -> Value:
        """The value; ``text`` is None where the name stood without ``=``."""
        shown = name if text is None else f"{name}={text}"
        if text is None:
            text = self.bare
        try:
            value = None if text is None else self.read(text)
        except HmmfsError:
            value = None
        if value is None:
            raise UsageError(f'The option "{shown}" is wrong: {name} takes {self.takes}.')
        return value


def _size(low: int, high: int, example: str) -> Option:
    def read(text: str) -> int | None:
        count = parse_size(text)
        return count if low <= count <= high and count % PAGE == 0 else None

    limits = f"{format_size(low)} to {format_size(high)}"
    return Option(read, f"a size from {limits} in multiples of 4K, such as {example}")


def _integer(low: int, high: int) -> Option:
    def read(text: str) -> int | None:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
            return None
        return int(text) if low <= int(text) <= high else None

    return Option(read, f"a whole number from {low} to {high}")


def _seconds(low_ms: int, high: int) -> Option:
    def read(text: str) -> float | None:
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(ms|s|)", text, re.ASCII)
        seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else 0
        return seconds if low_ms / 1000 <= seconds <= high else None

    return Option(read, f"a time from {low_ms}ms to {high}s, such as 1s")


def _file_or_pairs(text: str) -> str | None:
    """A file's path made absolute, because the daemon leaves the directory it was started in."""
    return os.path.abspath(text) if text.endswith(".toml") else text.strip() or None


def _text(takes: str) -> Option:
    """For its own module to judge: of policies, installed packages and files add some."""
    return Option(lambda text: text if text.strip() else None, takes)


_SWITCHES = {"on": True, "off": False}
_SWITCH = Option(_SWITCHES.get, "on or off", bare="on")

OPTIONS: dict[str, Option] = {
    "vram": _size(BLOCK, 16 * T, "64M"),
    "devices": _integer(0, 15),
    "host": _size(BLOCK, 16 * T, "1G"),
    "type": Option(
        lambda text: text if set(text.split("+")) <= {"private", "coherent", "dax"} else None,
        "private, coherent or dax, or one for each device as in private+coherent",
    ),
    "passthrough": _SWITCH,
    "visible": _size(0, 16 * T, "16M"),
    "readahead": _size(0, 16 * M, "128K"),
    "poll_us": _integer(0, 10_000),
    "keep_clean": _SWITCH,
    "express": _SWITCH,
    "prefetch": _text("a prefetch policy, such as grow or density"),
    "eviction": _text("an eviction policy, such as lru or lrm"),
    "placement": _text("a placement policy, such as first-touch or never"),
    "thrashing": _text("a thrashing policy: off or uvm"),
    "policy_limit": _seconds(1, 3600),
    "link": _text("a link, such as pcie4 or nvlink3, or LATENCY:BANDWIDTH as in 600ns:64G"),
    "peer": _text("none, or a link as link= does"),
    "topology": Option(
        _file_or_pairs, "FILE.toml, or the links of pairs as in host-dev0:pcie4+dev0-dev1:nvlink3"
    ),
    "fault_us": _integer(0, 1_000_000),
    "realtime": _SWITCH,
    "threads": _integer(1, 64),
    "allow_other": _SWITCH,
    "ro": _SWITCH,
    "noexec": _SWITCH,
    "noatime": _SWITCH,
    "fsname": Option(lambda text: text or None, "a name, such as fsname=gpu"),
    "metrics_port": _integer(0, 65535),
    "metrics_host": Option(
        lambda text: text.strip() or None, "an address of this machine, such as 127.0.0.1"
    ),
    # Absolute, because the daemon leaves the directory that it was started in.
    "log": Option(lambda text: os.path.abspath(text) if text else None, "the path of a file"),
    "debug": _SWITCH,
}

# What mount(8) and fstab pass to every file system. Devices and set-uid programs are never
# honoured on a mount of hmmfs, so dev and suid change nothing; permissions are always checked by
# the kernel, the type is always fuse.hmmfs, and the watchdog does what auto_unmount is for.
GENERIC: dict[str, dict[str, Value]] = {
    name: {}
    for name in (  # noqa: SIM905 - a list would be one word a line
        "defaults dev nodev suid nosuid diratime nodiratime relatime norelatime strictatime "
        "nostrictatime lazytime nolazytime sync async dirsync silent loud user nouser users owner "
        "group auto noauto _netdev nofail comment user_id group_id subtype default_permissions "
        "auto_unmount nonempty"
    ).split()
} | {
    "rw": {"ro": False},
    "exec": {"noexec": False},
    "atime": {"noatime": False},
}

assert set(OPTIONS) <= {field.name for field in fields(Config)}


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean "...")`` for a name that is nearly a known one, else nothing."""
    matches = difflib.get_close_matches(name, sorted(known), n=1)
    return f' (did you mean "{matches[0]}"?)' if matches else ""


def _known(name: str) -> Option:
    if name not in OPTIONS:
        hint = nearest(name, [*OPTIONS, *GENERIC])
        raise UsageError(
            f'There is no option "{name}"{hint}; the options are {", ".join(OPTIONS)}.'
        )
    return OPTIONS[name]


def _split(options: str) -> Iterator[tuple[str, str | None]]:
    r"""Names and texts of ``a=1,b``; as in every FUSE file system ``\,`` is a plain comma."""
    for part in re.split(r"(?<!\\),", options):
        if part:
            name, equals, text = part.replace("\\,", ",").partition("=")
            yield name.strip(), text if equals else None


def _from_toml(path: str) -> Iterator[tuple[str, str | None]]:
    document = toml.document(path, "configuration")
    table = document.pop("mount", {})
    if document:
        raise UsageError(
            f'The configuration {path} has "{next(iter(document))}", where only a [mount] table '
            "with the names of -o is known."
        )
    if not isinstance(table, dict):
        raise UsageError(f"In the configuration {path} mount must be a table. Write [mount].")
    for name, value in table.items():
        yield name, _toml_text(name, value)


def _toml_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int | str):
        return str(value)
    raise UsageError(f'The option "{name}" is wrong: give it a string, a whole number or true.')
