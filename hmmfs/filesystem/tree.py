"""The tree of control files: what there is, who may read and write it, what it says.

regions/NAME                      the data; served by the gate
state/NAME/{residency,faults,map,blocks,numa_maps}  where a region's pages are, and who faults on it
state/NAME/{advice,numa,prefetched}                 what was said of them
devices/devN/{type,stats,faults,excluded,queue,last_error,submit,calls,reset,dmirror}
devices/devN/{vram/{total,used,visible},links/{host,devM}}
devices/devN/policy/{prefetch,eviction,placement,watermark}  policy/{prefetch,thrashing}
stats thrashing usage trace trace_pipe trace_size trace_filter
audit topology distances socket version last_error

README.md beside this file says what is in each of them.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import hmmfs
from hmmfs.common.names import one_line
from hmmfs.device.executor import Executor
from hmmfs.device.links import Topology
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.filesystem import advice, views
from hmmfs.filesystem.advice import node_name
from hmmfs.filesystem.submit import Submission
from hmmfs.filesystem.tracing import Tracing
from hmmfs.memory import HOST, PAGE_SIZE, Core, Kind, Region, RegionTable, Trace
from hmmfs.policy import Policies
from hmmfs.program import dmirror
from hmmfs.program.processes import Processes

ROOT_INO = 1

CALL_NAME = re.compile(rb"[0-9a-f]{32}")
# Files in calls/ that were looked up and not opened: the oldest makes way. The kernel does not say
# that it has forgotten a name before it is short of memory.
MAX_UNOPENED = 256
N = TypeVar("N", bound="Node")


@dataclass(eq=False)
class Node:
    """A control file or a directory. The inode numbers stay below those of regions."""

    ino: int
    mode: int
    # Seconds for which the kernel may believe a name: those in state/ go with their region, which
    # no request of theirs tells the kernel.
    entry_timeout: float = 3600.0
    uid: int | None = None  # whose it is; None: of the user who mounted
    gid: int | None = None

    @property
    def nlink(self) -> int:
        return 1


@dataclass(eq=False)
class Text(Node):
    """A file that is read-only; each open takes one snapshot."""

    produce: Callable[[], str | bytes] = field(default=str)
    slow: bool = False  # takes milliseconds, and may be called in a thread


@dataclass(eq=False)
class Setting(Text):
    """A file that says a value and takes another. `device`: whose last_error hears of a bad one."""

    store: Callable[[str], Awaitable[None] | None] = field(kw_only=True)
    device: int | None = None


@dataclass(eq=False)
class Events(Setting):
    """trace. What it says may be too long to have all of it at once."""

    tracing: Tracing = field(kw_only=True)


@dataclass(eq=False)
class Submit(Node):
    """A device's transaction file."""

    executor: Executor = field(kw_only=True)
    device: int = 0
    name: str = ""  # in calls/

    def open(self) -> Submission:
        return Submission(self.executor, self.name)


@dataclass(eq=False)
class Stream(Node):
    """trace_pipe."""

    tracing: Tracing = field(kw_only=True)


@dataclass(eq=False)
class Action(Node):
    """A file to which anything is written to have something done."""

    act: Callable[[], Awaitable[None]] = field(kw_only=True)


@dataclass(eq=False)
class Dmirror(Node):
    """A file whose ioctls are those of Linux's test_hmm."""

    interface: dmirror.Device = field(kw_only=True)
    device: int = 0


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
    """regions/: the offset of an entry is one that no removal or rename of others changes."""

    table: RegionTable = field(kw_only=True)
    # Nanoseconds; like owner and mode they may be set, as tools do that copy a directory into it.
    atime: int = field(default_factory=time.time_ns)
    mtime: int = field(default_factory=time.time_ns)
    ctime: int = field(default_factory=time.time_ns)

    def entries(self, after: int) -> Iterator[tuple[int, bytes, Node | Region]]:
        yield from self.table.links(after)


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
        return None if region is None else self.of(region)

    def entries(self, after: int) -> Iterator[tuple[int, bytes, Node | Region]]:
        for name, region in self.table.listed(after):
            yield region.ino, name, self.of(region)

    def of(self, region: Region) -> Node:
        if region.ino not in self.made:
            self.made[region.ino] = self.make(region)
        return self.made[region.ino]


@dataclass(eq=False)
class Calls(Directory):
    """calls/: a submit file for each name that somebody opens, gone when it is closed. The kernel
    lets one write at a time into a file, and the next can't even be killed while it waits."""

    make: Callable[[str], Submit] = field(kw_only=True)
    gone: Callable[[Submit], None] = field(kw_only=True)
    unopened: dict[bytes, Submit] = field(default_factory=dict)  # the latest looked up last
    opened: dict[bytes, Submit] = field(default_factory=dict)

    def get(self, name: bytes) -> Node | None:
        if not CALL_NAME.fullmatch(name):
            return None
        if name in self.opened:
            return self.opened[name]
        found = self.unopened.pop(name) if name in self.unopened else self.make(name.decode())
        self.unopened[name] = found
        if len(self.unopened) > MAX_UNOPENED:
            self.gone(self.unopened.pop(next(iter(self.unopened))))
        return found

    def open(self, node: Submit) -> None:
        name = node.name.encode()
        if self.unopened.get(name) is node:
            self.opened[name] = self.unopened.pop(name)

    def close(self, node: Submit) -> None:
        name = node.name.encode()
        if self.opened.get(name) is node:
            self.gone(self.opened.pop(name))


class Errors:
    """The last sentence said about a bad request: of each device, and of the whole mount."""

    def __init__(self, devices: int) -> None:
        self.last = ""
        self.by_device = [""] * devices

    def say(self, sentence: str, device: int | None = None) -> None:
        sentence = one_line(sentence)
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
        interfaces: list[dmirror.Device],
        policies: Policies,
        pid: int,
        *,
        topology: Topology,
        trace: Trace,
        shared: bool,
        processes: Processes,
    ) -> None:
        self._core = core
        self._table = table
        self._policies = policies
        self._interfaces = interfaces
        self._process_of = processes.of
        self._pid = pid
        self._born_ns = time.monotonic_ns()
        self._topology = topology
        self.tracing = Tracing(trace, table)
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
            b"stats": self._text(lambda: views.table(views.stats(core, pid, self._born_ns))),
            b"thrashing": self._text(lambda: views.thrashing(core, table)),
            b"usage": self._slow(lambda: views.usage(core, table)),
            **self._trace_files(),
            b"audit": self._text(lambda: line(core.audit() or "ok")),
            b"topology": self._text(topology.matrix),
            b"distances": self._text(topology.distances),
            b"socket": self._text(lambda: line(processes.socket_name)),
            b"version": self._text(lambda: line(hmmfs.__version__)),
            b"last_error": self._text(lambda: line(self.errors.last)),
        }

    def get(self, ino: int) -> Node | None:
        return self._by_ino.get(ino)

    def state_of(self, region: Region) -> Directory:
        """The directory of state/ that tells of a region, which need not have a name any more."""
        found = self._state.of(region)
        assert isinstance(found, Directory)
        return found

    def names(self, *path: bytes) -> list[bytes]:
        """What is in a directory; nothing, if there is none of that path."""
        node = self._find(path)
        return [name for _, name, _ in node.entries(0)] if isinstance(node, Directory) else []

    def programs(self) -> list[bytes]:
        """What the memories of programs are called in state/."""
        return [name for name, region in self._table.listed() if region.pid]

    def read(self, *path: bytes) -> str | None:
        """What a file says at this moment; None, if there is no file of that path that could."""
        node = self._find(path)
        said = node.produce() if isinstance(node, Text) else None
        return os.fsdecode(said) if isinstance(said, bytes) else said

    def _find(self, path: Iterable[bytes]) -> Node | None:
        node: Node | None = self.root
        for name in path:
            node = node.get(name) if isinstance(node, Directory) else None
        return node

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

    def _slow(self, produce: Callable[[], str]) -> Text:
        text = self._text(produce)
        text.slow = True
        return text

    def _trace_files(self) -> dict[bytes, Node]:
        tracing, mode = self.tracing, stat.S_IFREG
        trace = Events(next(self._inos), mode | 0o644, tracing=tracing, store=tracing.clear)
        pipe = Stream(next(self._inos), mode | 0o444, tracing=tracing)
        return {
            b"trace": self._add(trace),
            b"trace_pipe": self._add(pipe),
            b"trace_size": self._setting(lambda: line(tracing.size), tracing.resize, None),
            b"trace_filter": self._setting(lambda: line(tracing.filter), tracing.set_filter, None),
        }

    def open_submit(self, node: Submit) -> Submission:
        self._calls[node.device].open(node)
        return node.open()

    def close_submit(self, node: Submit) -> None:
        """One in calls/ goes with the first of its open files."""
        self._calls[node.device].close(node)

    def _device(self, number: int, executor: Executor) -> Directory:
        core, node = self._core, number + 1

        def submit() -> Submit:
            mode = stat.S_IFREG | 0o600
            return self._add(Submit(next(self._inos), mode, executor=executor, device=number))

        def call(name: str) -> Submit:
            made = submit()
            made.name, made.entry_timeout = name, 0.0
            return made

        def gone(node: Submit) -> None:
            del self._by_ino[node.ino]

        calls = self._add(Calls(next(self._inos), stat.S_IFDIR | 0o500, make=call, gone=gone))
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
                b"stats": self._text(lambda: views.table(views.node_stats(core, node))),
                b"faults": self._text(lambda: views.table(views.node_faults(core, node))),
                b"links": self._directory(
                    {
                        node_name(other).encode(): self._link(node, other)
                        for other in range(core.nodes)
                        if other != node
                    }
                ),
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
                b"dmirror": self._dmirror(number),
                b"last_error": self._text(lambda: line(self.errors.by_device[number])),
            }
        )

    def _dmirror(self, number: int) -> Dmirror:
        mode, interface = stat.S_IFREG | 0o666, self._interfaces[number]  # as a device's node
        return self._add(Dmirror(next(self._inos), mode, interface=interface, device=number))

    def _link(self, node: int, other: int) -> Text:
        return self._text(lambda: views.table(views.link(self._core, self._topology, node, other)))

    def _type(self, node: int) -> str:
        """Of a device: coherent memory says how it is that."""
        kind = self._core.device_kinds[node - 1]
        if kind is Kind.COHERENT and self._core.kind is Kind.PRIVATE:
            return f"{kind.value} recall"
        return kind.value

    def _setting(
        self,
        produce: Callable[[], str],
        store: Callable[[str], Awaitable[None] | None],
        device: int | None,
    ) -> Setting:
        mode = stat.S_IFREG | 0o644
        return self._add(
            Setting(next(self._inos), mode, produce=produce, store=store, device=device)
        )

    def _policy(self, node: int) -> Directory:
        """policy/: of a device, or of the host, which evicts nothing."""
        policies, device = self._policies, node - 1 if node else None

        def file(name: str, store: Callable[[int, str], Awaitable[None]]) -> Setting:
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

        def file(view: Callable[[Core, Region], str], *, slow: bool = False) -> Text:
            text = self._text(lambda: "" if self._is_gone(region) else view(self._core, region))
            text.slow = slow  # some 20 us a block
            return text

        directory = self._directory(
            {
                b"residency": file(lambda *of: views.table(views.residency(*of))),
                b"faults": file(lambda *of: views.table(views.region_faults(*of))),
                b"map": file(views.map_text, slow=True),
                b"blocks": file(views.blocks, slow=True),
                b"numa_maps": file(views.numa_maps, slow=True),
                b"advice": self._setting(lambda: self._said(region), store, None),
                b"numa": self._setting(
                    lambda: line(advice.numa_shown(region)),
                    lambda text: advice.numa_apply(region, text, self._core.nodes),
                    None,
                ),
                b"prefetched": self._text(lambda: self._prefetched(region)),
            }
        )
        if region.pid:
            process = self._process_of(region)
            # Its addresses are nobody else's business, as in /proc.
            directory.mode, directory.uid = stat.S_IFDIR | 0o500, region.uid
            directory.children[b"devices"] = self._setting(process.attached, process.command, None)
        for node in (directory, *directory.children.values()):
            node.entry_timeout = 0.0
        return directory

    # ---- what the files say

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
