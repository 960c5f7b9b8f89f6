"""The tree of control files: what there is, who may read and write it, what it says.

regions/NAME                      the data; served by the gate
state/NAME/{residency,advice,numa,prefetched}  where a region's pages are, what was said of them
devices/devN/{type,stats,excluded,queue,last_error,submit,calls,reset,vram/{total,used,visible}}
devices/devN/policy/{prefetch,eviction,placement,watermark}  policy/{prefetch,thrashing}
stats audit topology distances version last_error
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import hmmfs
from hmmfs.device import Executor
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.filesystem import advice
from hmmfs.filesystem.submit import Submission
from hmmfs.memory import HOST, PAGE_SIZE, Core, Kind, Region, RegionTable
from hmmfs.policy import Policies

ROOT_INO = 1

CALL_NAME = re.compile(rb"[0-9a-f]{32}")
N = TypeVar("N", bound="Node")


@dataclass(eq=False)
class Node:
    """A control file or a directory. The inode numbers stay below those of regions."""

    ino: int
    mode: int
    # Seconds for which the kernel may believe a name: those in state/ go with their region, which
    # no request of theirs tells the kernel.
    entry_timeout: float = 3600.0

    @property
    def nlink(self) -> int:
        return 1


@dataclass(eq=False)
class Text(Node):
    """A file that is read-only; each open takes one snapshot."""

    produce: Callable[[], str] = field(default=str)


@dataclass(eq=False)
class Setting(Text):
    """A file that says a value and takes another. `device`: whose last_error hears of a bad one."""

    store: Callable[[str], None] = field(kw_only=True)
    device: int | None = None


@dataclass(eq=False)
class Submit(Node):
    """A device's transaction file."""

    executor: Executor = field(kw_only=True)
    device: int = 0
    name: str = ""  # in calls/

    def open(self) -> Submission:
        return Submission(self.executor, self.name)


@dataclass(eq=False)
class Action(Node):
    """A file to which anything is written to have something done."""

    act: Callable[[], Awaitable[None]] = field(kw_only=True)


@dataclass(eq=False)
class Directory(Node):
    """A directory whose names are fixed. Offsets in it are positions."""

    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def nlink(self) -> int:
        return 2 + sum(isinstance(child, Directory) for child in self.children.values())

    def get(self, name: bytes) -> Node | None:
        return self.children.get(name)

    def entries(self, after: int) -> Iterator[tuple[int, bytes, Node | Region]]:
        """(offset, name, what) of the entries past an offset; offsets 1 and 2 are "." and ".."."""
        for offset, (name, child) in enumerate(self.children.items(), 3):
            if offset > after:
                yield offset, name, child


@dataclass(eq=False)
class Regions(Directory):
    """regions/: the offset of an entry is the region's inode number, which no removal or rename of
    others changes."""

    table: RegionTable = field(kw_only=True)

    def entries(self, after: int) -> Iterator[tuple[int, bytes, Node | Region]]:
        for name, region in self.table.listed(after):
            yield region.ino, name, region


@dataclass(eq=False)
class State(Directory):
    """state/: a directory for each region, made when somebody first looks at it."""

    table: RegionTable = field(kw_only=True)
    make: Callable[[Region], Node] = field(kw_only=True)
    made: dict[int, Node] = field(default_factory=dict)

    @property
    def nlink(self) -> int:
        return 2 + len(self.table)

    def get(self, name: bytes) -> Node | None:
        region = self.table.get(name)
        return None if region is None else self._of(region)

    def entries(self, after: int) -> Iterator[tuple[int, bytes, Node | Region]]:
        for name, region in self.table.listed(after):
            yield region.ino, name, self._of(region)

    def _of(self, region: Region) -> Node:
        if region.ino not in self.made:
            self.made[region.ino] = self.make(region)
        return self.made[region.ino]


@dataclass(eq=False)
class Calls(Directory):
    """calls/: a submit file for each name that somebody opens, gone when it is closed. The kernel
    lets one write at a time into a file, and the next can't even be killed while it waits."""

    make: Callable[[str], Node] = field(kw_only=True)
    made: dict[bytes, Node] = field(default_factory=dict)

    def get(self, name: bytes) -> Node | None:
        if not CALL_NAME.fullmatch(name):
            return None
        if name not in self.made:
            self.made[name] = self.make(name.decode())
        return self.made[name]

    def drop(self, node: Node) -> None:
        self.made = {name: call for name, call in self.made.items() if call is not node}


class Errors:
    """The last sentence said about a bad request: of each device, and of the whole mount."""

    def __init__(self, devices: int) -> None:
        self.last = ""
        self.by_device = [""] * devices

    def say(self, sentence: str, device: int | None = None) -> None:
        """One line that can be read, whatever somebody's exception put into it."""
        sentence = " ".join(sentence.splitlines())
        sentence = os.fsencode(re.sub("[\ud800-\udc7f\udd00-\udfff]", "?", sentence)).decode(
            errors="surrogateescape"
        )
        self.last = sentence
        if device is not None:
            self.by_device[device] = sentence


class Tree:
    """All control files, by inode number."""

    def __init__(
        self,
        core: Core,
        table: RegionTable,
        executors: list[Executor],
        policies: Policies,
        pid: int,
        *,
        topology: str,
        distances: str,
        shared: bool,
    ) -> None:
        self._core = core
        self._table = table
        self._policies = policies
        self._pid = pid
        self._inos = itertools.count(ROOT_INO)
        self._by_ino: dict[int, Node] = {}
        self.errors = Errors(len(executors))
        self._calls: list[Calls] = []  # by device
        self.root = self._directory({}, mode=0o755)
        self.regions = self._add(
            # As in /tmp where others may come in: each removes only what is theirs.
            Regions(next(self._inos), stat.S_IFDIR | (0o1777 if shared else 0o755), table=table)
        )
        self._state = self._add(
            State(next(self._inos), stat.S_IFDIR | 0o555, table=table, make=self._region_state)
        )
        self.root.children |= {
            b"regions": self.regions,
            b"state": self._state,
            b"devices": self._directory(
                {
                    b"dev%d" % number: self._device(number, executor)
                    for number, executor in enumerate(executors)
                }
            ),
            b"policy": self._policy(HOST),
            b"stats": self._text(self._stats),
            b"audit": self._text(lambda: line(core.audit() or "ok")),
            b"topology": self._text(lambda: topology),
            b"distances": self._text(lambda: distances),
            b"version": self._text(lambda: line(hmmfs.__version__)),
            b"last_error": self._text(lambda: line(self.errors.last)),
        }

    def get(self, ino: int) -> Node | None:
        return self._by_ino.get(ino)

    def drop_region(self, ino: int) -> None:
        """A region is gone for good: so is what state/ said of it."""
        node = self._state.made.pop(ino, None)
        if isinstance(node, Directory):
            for gone in (node, *node.children.values()):
                del self._by_ino[gone.ino]

    # ---- building

    def _add(self, node: N) -> N:
        self._by_ino[node.ino] = node
        return node

    def _directory(self, children: dict[bytes, Node], mode: int = 0o555) -> Directory:
        return self._add(Directory(next(self._inos), stat.S_IFDIR | mode, children=children))

    def _text(self, produce: Callable[[], str]) -> Text:
        return self._add(Text(next(self._inos), stat.S_IFREG | 0o444, produce=produce))

    def close_call(self, node: Submit) -> None:
        """The open file of a submit file was closed: one in calls/ goes with it."""
        calls = self._calls[node.device]
        if node in calls.made.values():
            calls.drop(node)
            del self._by_ino[node.ino]

    def _device(self, number: int, executor: Executor) -> Directory:
        core, node = self._core, number + 1

        def submit() -> Submit:
            mode = stat.S_IFREG | 0o600
            return self._add(Submit(next(self._inos), mode, executor=executor, device=number))

        def call(name: str) -> Submit:
            made = submit()
            made.name, made.entry_timeout = name, 0.0
            return made

        calls = self._add(Calls(next(self._inos), stat.S_IFDIR | 0o500, make=call))
        self._calls.append(calls)
        vram = self._directory(
            {
                b"total": self._text(lambda: line(core.capacity[node] * PAGE_SIZE)),
                b"used": self._text(lambda: line(core.used(node) * PAGE_SIZE)),
                b"visible": self._text(lambda: line(core.visible(node) * PAGE_SIZE)),
            }
        )
        return self._directory(
            {
                b"type": self._text(lambda: line(self._type(node))),
                b"vram": vram,
                b"stats": self._text(lambda: table(core.node_stats(node))),
                b"policy": self._policy(node),
                b"excluded": self._setting(
                    lambda: line("on" if node in core.excluded else "off"),
                    lambda text: core.exclude(node, switch(text)),
                    number,
                ),
                b"queue": self._text(lambda: queue(executor)),
                b"submit": submit(),
                b"calls": calls,
                b"reset": self._add(
                    Action(next(self._inos), stat.S_IFREG | 0o200, act=executor.worker.reset)
                ),
                b"last_error": self._text(lambda: line(self.errors.by_device[number])),
            }
        )

    def _type(self, node: int) -> str:
        """Of a device: coherent memory says how it is that."""
        kind = self._core.device_kinds[node - 1]
        if kind is Kind.COHERENT and self._core.kind is Kind.PRIVATE:
            return f"{kind.value} recall"
        return kind.value

    def _setting(
        self, produce: Callable[[], str], store: Callable[[str], None], device: int | None
    ) -> Setting:
        mode = stat.S_IFREG | 0o644
        return self._add(
            Setting(next(self._inos), mode, produce=produce, store=store, device=device)
        )

    def _policy(self, node: int) -> Directory:
        """policy/: of a device, or of the host, which evicts nothing."""
        policies, device = self._policies, node - 1 if node else None

        def file(name: str, store: Callable[[int, str], None]) -> Setting:
            return self._setting(
                lambda: line(policies.names(node)[name]), lambda text: store(node, text), device
            )

        children: dict[bytes, Node] = {b"prefetch": file("prefetch", policies.set_prefetch)}
        if node == HOST:
            children[b"thrashing"] = file("thrashing", lambda _, text: policies.set_thrashing(text))
            return self._directory(children)
        children[b"eviction"] = file("eviction", policies.set_eviction)
        children[b"placement"] = file("placement", policies.set_placement)
        children[b"watermark"] = self._setting(
            lambda: line(policies.watermark(node)),
            lambda text: policies.set_watermark(node, text),
            device,
        )
        return self._directory(children)

    def _region_state(self, region: Region) -> Node:
        def store(text: str) -> None:
            self._alive(region)
            advice.apply(region, text, self._core.nodes)

        directory = self._directory(
            {
                b"residency": self._text(lambda: self._residency(region)),
                b"advice": self._setting(lambda: self._said(region), store, None),
                b"numa": self._setting(
                    lambda: line(advice.numa_shown(region)),
                    lambda text: advice.numa_apply(region, text, self._core.nodes),
                    None,
                ),
                b"prefetched": self._text(lambda: self._prefetched(region)),
            }
        )
        for node in (directory, *directory.children.values()):
            node.entry_timeout = 0.0
        return directory

    # ---- what the files say

    def _stats(self) -> str:
        host = {f"host_{key}": value for key, value in self._core.node_stats(HOST).items()}
        return table({"pid": self._pid, **self._core.stats(), **host})

    def _is_gone(self, region: Region) -> bool:
        """Removed while a file of state/ was open."""
        return self._table.by_ino(region.ino) is not region

    def _alive(self, region: Region) -> None:
        if self._is_gone(region):
            raise HmmfsError(errno.ENOENT, "The region was removed meanwhile.")

    def _said(self, region: Region) -> str:
        return "" if self._is_gone(region) else advice.shown(region)

    def _prefetched(self, region: Region) -> str:
        return "" if self._is_gone(region) else advice.prefetched(region)

    def _residency(self, region: Region) -> str:
        if self._is_gone(region):
            return ""
        found = region.residency()
        values = {"pages_host": found.pages[HOST]}
        for number, pages in enumerate(found.pages[1:]):
            values[f"pages_dev{number}"] = pages
        values |= {
            "dirty_host": found.dirty_host,
            "dirty_device": found.dirty_device,
            "cpu_cached": found.cpu_cached,
            "kept": found.kept,
            "copies": found.copies,
            "reserved": found.reserved,
            "size": region.size,
        }
        return table(values)


def switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise UsageError(f"{text[:80]!r} is neither on nor off.")
    return text == "on"


def line(value: object) -> str:
    """One value; nothing at all for nothing."""
    return f"{value}\n" if value != "" else ""


def queue(executor: Executor) -> str:
    """A line for each submission: NAME VERB waiting|running PAGES-DONE PAGES, - for no name."""
    return "".join(
        f"{entry.name or '-'} {entry.verb} {'running' if entry.running else 'waiting'}"
        f" {entry.done} {entry.total}\n"
        for entry in executor.queue
    )


def table(values: Mapping[str, int]) -> str:
    return "".join(f"{key} {value}\n" for key, value in values.items())
