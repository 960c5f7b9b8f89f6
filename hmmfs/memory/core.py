"""The native core as Python sees it: one class, one method for each native function.

Nothing here waits for another party. Sizes are in 4 KiB pages unless a name says bytes.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmmfs._native import ffi, lib
from hmmfs.errors import HmmfsError, check

PAGE_SIZE = 4096
BLOCK_PAGES = 512
BLOCK_BYTES = PAGE_SIZE * BLOCK_PAGES
HOST = 0
NAME_MAX = 255
# The gate takes every inode from here on for a region; control files stay below.
FIRST_REGION_INO = 1 << 32
# Why a region could not be made, by errno.
NO_REGION = {
    errno.ENOSPC: "This mount has as many regions as it can have: remove some.",
    errno.EMFILE: "The daemon has no open files left, of which a region takes some: "
    "remove regions, or mount again with a higher limit (ulimit -n).",
    errno.ENOMEM: "The daemon has no address space left, of which a region takes 8 GiB and more: "
    "mount again with a higher limit (ulimit -v).",
}
EVENT_BATCH = 256
# Blocks that hm_region_touched is asked for in one call.
TOUCHED_BATCH = 1024


def _dtype(struct: str) -> np.dtype[np.void]:
    """The numpy layout of a native struct, read from what the compiler laid out."""
    names, formats, offsets = [], [], []
    for name, field in ffi.typeof(f"struct {struct}").fields:
        ctype = field.type
        shape: tuple[int, ...] = ()
        if ctype.kind == "array":
            ctype, shape = ctype.item, (ctype.length,)
        kind = "S" if ctype.cname == "char" else "i" if ctype.cname.startswith("int") else "u"
        scalar = np.dtype(f"{kind}{ffi.sizeof(ctype)}")
        names.append(name)
        formats.append((scalar, shape) if shape else scalar)
        offsets.append(field.offset)
    return np.dtype(
        {
            "names": names,
            "formats": formats,
            "offsets": offsets,
            "itemsize": ffi.sizeof(f"struct {struct}"),
        }
    )


BLOCK_DTYPE = _dtype("hm_block")
CANDIDATE_DTYPE = _dtype("hm_candidate")


class Kind(enum.Enum):
    """What the regions of a mount are; named after the kinds of device memory that Linux has."""

    PRIVATE = "private"  # a page is where its owner is; others take a fault to have it
    COHERENT = "coherent"  # one memory for all; a page's owner is a label that migration changes
    DAX = "dax"  # the same, and a device's for good

    @property
    def native(self) -> int:
        return int(getattr(lib, f"HM_KIND_{self.name}"))


class JobKind(enum.IntEnum):
    MIGRATE = lib.HM_JOB_MIGRATE
    RECALL = lib.HM_JOB_RECALL
    READ = lib.HM_JOB_READ
    WRITE = lib.HM_JOB_WRITE
    FILL = lib.HM_JOB_FILL
    CRC = lib.HM_JOB_CRC
    FAIL = lib.HM_JOB_FAIL
    TOUCH = lib.HM_JOB_TOUCH


class JobFlag(enum.IntFlag):
    NONE = 0
    EVICT = lib.HM_JOB_EVICT
    STAGING = lib.HM_JOB_STAGING
    QUIET = lib.HM_JOB_QUIET
    CHOSEN = lib.HM_JOB_CHOSEN
    FAULT = lib.HM_JOB_FAULT


class EventKind(enum.IntEnum):
    FAULT = lib.HM_EVENT_FAULT
    JOB = lib.HM_EVENT_JOB
    INTERRUPT = lib.HM_EVENT_INTERRUPT
    CLOSED = lib.HM_EVENT_CLOSED
    LOW = lib.HM_EVENT_LOW
    TOUCH = lib.HM_EVENT_TOUCH


class PrefetchKind(enum.IntEnum):
    TABLE = lib.HM_PREFETCH_TABLE
    NEXT = lib.HM_PREFETCH_NEXT
    SEQUENTIAL = lib.HM_PREFETCH_SEQUENTIAL
    DENSITY = lib.HM_PREFETCH_DENSITY
    ASK = lib.HM_PREFETCH_ASK


class FaultReason(enum.IntEnum):
    OWNER = lib.HM_FAULT_OWNER
    NO_ROOM = lib.HM_FAULT_NO_ROOM


class Touch(NamedTuple):
    """The pages of a block that a worker's faults are about: two bitmaps of 64 bytes."""

    pages: bytes
    stores: bytes


class BlockKey(NamedTuple):
    ino: int
    block: int


@dataclass(frozen=True, slots=True)
class Job:
    """struct hm_job. `buffer` must stay as it is until the job has ended."""

    kind: JobKind
    ino: int
    block: int
    node: int = HOST
    flags: JobFlag = JobFlag.NONE
    first: int = 0
    count: int = 0
    limit: int = 0
    reserved: int = 0
    offset: int = 0
    length: int = 0
    byte: int = 0
    error: int = 0
    buffer: bytes | bytearray | memoryview | None = None
    touch: Touch | None = None
    window: NDArray[np.bool_] | None = None  # with CHOSEN: 512 booleans


class JobResult(NamedTuple):
    result: int  # 0 or -errno
    need: int = 0
    moved: int = 0
    saved: int = 0
    crc: int = 0


class Event(NamedTuple):
    kind: int
    cookie: int
    ino: int
    block: int
    reason: int
    first: int
    pages: int  # touched, from first on
    result: JobResult
    node: int = HOST  # TOUCH: whose worker
    touch: Touch | None = None
    window: bytes = b""  # FAULT: a bitmap of what the host's policy brings


class Residency(NamedTuple):
    pages: tuple[int, ...]  # by node
    dirty_host: int
    dirty_device: int
    cpu_cached: int
    kept: int
    reserved: int


def page_set(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """One of a block's bitmaps as 512 booleans."""
    return np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_)


def page_words(pages: NDArray[np.bool_]) -> bytes:
    """And back: the 64 bytes of a bitmap."""
    return np.packbits(pages, bitorder="little").tobytes()


class Region:
    """One region. Its record lives in the core, so every read is of the present moment."""

    __slots__ = ("_blocks", "_core", "_record", "ino", "lookups", "users")

    def __init__(self, core: Core, ino: int, record: Any) -> None:
        self._core = core
        self._record = record
        self._blocks: Any = None
        self.ino = ino
        self.lookups = 0  # of the kernel, given back by FORGET
        self.users = 0  # open files, and device operations under way

    @property
    def name(self) -> bytes:
        return bytes(ffi.string(self._record.name))

    @name.setter
    def name(self, name: bytes) -> None:
        self._record.name = name + b"\0"

    @property
    def size(self) -> int:
        if self._core.kind is not Kind.PRIVATE:
            # The kernel makes such a file longer without a word.
            check(lib.hm_region_sync(self._core.handle, self.ino), "Reading a region's size")
        return int(self._record.size)

    @property
    def mode(self) -> int:
        return int(self._record.mode)

    @mode.setter
    def mode(self, mode: int) -> None:
        self._record.mode = mode

    @property
    def uid(self) -> int:
        return int(self._record.uid)

    @uid.setter
    def uid(self, uid: int) -> None:
        self._record.uid = uid

    @property
    def gid(self) -> int:
        return int(self._record.gid)

    @gid.setter
    def gid(self, gid: int) -> None:
        self._record.gid = gid

    @property
    def nlink(self) -> int:
        return int(self._record.nlink)

    @nlink.setter
    def nlink(self, nlink: int) -> None:
        self._record.nlink = nlink

    @property
    def atime(self) -> int:
        return int(self._record.atime)

    @atime.setter
    def atime(self, ns: int) -> None:
        self._record.atime = ns

    @property
    def mtime(self) -> int:
        return int(self._record.mtime)

    @mtime.setter
    def mtime(self, ns: int) -> None:
        self._record.mtime = ns

    @property
    def ctime(self) -> int:
        return int(self._record.ctime)

    @ctime.setter
    def ctime(self, ns: int) -> None:
        self._record.ctime = ns

    @property
    def present(self) -> int:
        """Pages that have bytes, on any node."""
        return sum(self._record.pages)

    def truncate(self, size: int) -> None:
        ret = lib.hm_region_truncate(self._core.handle, self.ino, size)
        if ret == -errno.ENOSPC:
            raise HmmfsError(
                errno.ENOSPC,
                f"There is no room for {size} bytes: {self._core.kind.value} memory takes all of a "
                "region's when it is made that long; make it smaller, or remove others.",
            )
        check(ret, "Setting a region's size")

    def blocks(self, first: int, count: int) -> NDArray[np.void]:
        """The records of blocks, zero-copy. Valid until the region is destroyed, so a view must
        not be kept across an await. Reading a block that nobody touched allocates its record."""
        if self._blocks is None:
            self._blocks = lib.hm_region_blocks(self._core.handle, self.ino)
        window = ffi.buffer(self._blocks + first, count * BLOCK_DTYPE.itemsize)
        return np.frombuffer(window, dtype=BLOCK_DTYPE)

    def touched(self, first: int, end: int) -> Iterator[int]:
        """The touched blocks in [first, end), ascending."""
        while first < end:
            room = min(end - first, TOUCHED_BATCH)
            out = ffi.new("uint64_t[]", room)
            n = lib.hm_region_touched(self._core.handle, self.ino, first, out, room)
            check(n, "Listing touched blocks")
            found = [block for block in out[0:n] if block < end]
            yield from found
            if len(found) < room:
                return
            first = found[-1] + 1

    def residency(self) -> Residency:
        out = ffi.new("uint64_t[21]")
        check(lib.hm_region_residency(self._core.handle, self.ino, out), "Counting resident pages")
        return Residency(tuple(out[0 : self._core.nodes]), *out[16:21])


class Core:
    """The native core. Close it when every thread that calls it has ended."""

    def __init__(
        self,
        capacity: Sequence[int],
        *,
        threads: int = 2,
        poll_us: int = 0,
        readahead: int = 128 * 1024,
        express: bool = True,
        keep_clean: bool = True,
        realtime: bool = False,
        kind: Kind = Kind.PRIVATE,
    ) -> None:
        config = ffi.new("struct hm_config *")
        config.capacity[0 : len(capacity)] = list(capacity)
        config.nodes = len(capacity)
        config.threads = threads
        config.poll_us = poll_us
        config.readahead = readahead
        config.express = express
        config.keep_clean = keep_clean
        config.realtime = realtime
        config.kind = kind.native
        self.kind = kind
        out = ffi.new("struct hm_core **")
        check(lib.hm_core_create(config, out), "Creating the native core")
        self._handle = out[0]
        self.capacity = tuple(capacity)
        self.nodes = len(capacity)
        self._events = ffi.new("struct hm_event[]", EVENT_BATCH)
        self._job = ffi.new("struct hm_job *")
        self._candidates = np.zeros(1024, dtype=CANDIDATE_DTYPE)

    @property
    def handle(self) -> Any:
        if self._handle is None:
            raise RuntimeError("the native core is closed")
        return self._handle

    def close(self) -> None:
        """Ends the native threads. Every region and view is invalid afterwards."""
        if self._handle is not None:
            lib.hm_core_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> Core:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ---- regions

    def create_region(self, ino: int, mode: int, uid: int, gid: int) -> Region:
        record = ffi.new("struct hm_region_record **")
        ret = lib.hm_region_create(self.handle, ino, mode, uid, gid, record)
        if -ret in NO_REGION:
            raise HmmfsError(-ret, NO_REGION[-ret])
        check(ret, "Creating a region")
        return Region(self, ino, record[0])

    def destroy_region(self, ino: int) -> None:
        """Punches every page: milliseconds for a large region, so call it from a thread."""
        check(lib.hm_region_destroy(self.handle, ino), "Destroying a region")

    def max_region_bytes(self) -> int:
        return int(lib.hm_region_max_bytes())

    # ---- policies

    def set_prefetch(self, node: int, kind: PrefetchKind, arguments: Sequence[int]) -> None:
        """What comes with a fault, on node 0 with the CPU's: from the next one on."""
        policy = ffi.new("struct hm_prefetch *", {"kind": kind, "argument": list(arguments)})
        check(lib.hm_prefetch_set(self.handle, node, policy), "Setting a prefetch policy")

    def set_fault_cost(self, node: int, ns: int) -> None:
        """What a fault costs that brings pages to the node; 0 at first. To be set before anything
        is there to be charged."""
        check(lib.hm_fault_cost_set(self.handle, node, ns), "Setting what a fault costs")

    def set_link(self, one: int, two: int, run_ns: Sequence[int]) -> None:
        """What copying 0, 1, … 512 pages that lie side by side takes between two nodes, either way.
        Devices that have no link copy through the host; to and from a host without one it is free
        of charge. To be set before anything is there to be charged."""
        costs = ffi.new("uint32_t[]", list(run_ns))
        if len(costs) != BLOCK_PAGES + 1:
            raise ValueError(f"a link has {BLOCK_PAGES + 1} costs, not {len(costs)}")
        check(lib.hm_link_set(self.handle, one, two, costs), "Setting a link")

    # ---- devices' workers

    def device_attach(self, node: int, uffd: int) -> None:
        """The core takes the descriptor over if this succeeds, and reads its faults."""
        check(lib.hm_device_attach(self.handle, node, uffd), "Attaching a worker")

    def device_detach(self, node: int) -> None:
        """Waits for a native thread: call it from a thread. No worker: nothing to do."""
        ret = lib.hm_device_detach(self.handle, node)
        if ret != -errno.ENOENT:
            check(ret, "Detaching a worker")

    def device_map(self, node: int, ino: int, address: int, size: int) -> None:
        """The worker maps [0, size) bytes of the region at address, and has not touched it yet."""
        check(lib.hm_device_map(self.handle, node, ino, address, size), "Mapping a region")

    def device_unmap(self, node: int, ino: int) -> None:
        lib.hm_device_unmap(self.handle, node, ino)

    def device_discard(self, node: int, ino: int, size: int) -> None:
        """The worker's next kernel needs nothing of the region's first `size` bytes; 0: it does."""
        check(lib.hm_device_discard(self.handle, node, ino, size), "Discarding")

    def pool_descriptor(self, ino: int, node: int) -> int:
        """A new descriptor of the memory that holds the region's pages on a node."""
        return check(lib.hm_pool_descriptor(self.handle, ino, node), "Opening a pool")

    # ---- room

    def reserve(self, node: int, pages: int, *, staging: bool = False) -> bool:
        """Whether the pages were there to be reserved."""
        return bool(lib.hm_reserve(self.handle, node, pages, staging) == 0)

    def release(self, node: int, pages: int) -> None:
        lib.hm_release(self.handle, node, pages)

    def watermark(self, node: int, pages: int) -> None:
        """Have a LOW event sent, once, when fewer than that are free; 0: never."""
        check(lib.hm_watermark(self.handle, node, pages), "Setting a watermark")

    def free(self, node: int) -> int:
        """Free pages; negative while the staging reserve is in use."""
        return self.capacity[node] - self.used(node)

    def used(self, node: int) -> int:
        return self.node_stats(node)["used"]

    def drop_kept(self, pages: int) -> int:
        return check(lib.hm_drop_kept(self.handle, pages), "Dropping kept copies")

    def candidates(self, node: int) -> NDArray[np.void]:
        """The touched blocks with pages on the node (for the host also: reserved holes, kept
        copies). The array is the caller's, and stale from the moment it is made."""
        while True:
            room = self._candidates
            out = ffi.cast("struct hm_candidate *", ffi.from_buffer(room))
            n = check(
                lib.hm_candidates(self.handle, node, out, len(room)), "Listing blocks to evict"
            )
            if n < len(room):
                return room[:n].copy()
            self._candidates = np.zeros(2 * len(room), dtype=CANDIDATE_DTYPE)

    # ---- jobs and events

    def submit(self, job: Job, cookie: int) -> object:
        """Queue a job. Returns what has to be kept alive until its event comes."""
        native = self._job
        native.cookie = cookie
        native.ino, native.block = job.ino, job.block
        native.kind, native.node, native.flags = job.kind, job.node, job.flags
        native.first, native.count, native.limit = job.first, job.count, job.limit
        native.reserved = job.reserved
        native.offset, native.length = job.offset, job.length
        native.byte, native.error = job.byte, job.error
        keep = None
        if job.buffer is not None:
            keep = ffi.from_buffer(job.buffer)
            if len(keep) < job.length:
                raise ValueError("a job's buffer is shorter than its length")
            native.buffer = keep
        else:
            native.buffer = ffi.NULL
        if job.touch is not None:
            ffi.memmove(native.pages, job.touch.pages, 64)
            ffi.memmove(native.stores, job.touch.stores, 64)
        if job.window is not None:
            ffi.memmove(native.window, page_words(job.window), 64)
        check(lib.hm_submit(self.handle, native), "Submitting a job")
        return keep

    def waits(self, fh: int) -> bool:
        """Whether a READ or WRITE on this open control file is on its way or not answered yet."""
        return bool(lib.hm_waits(self.handle, fh))

    def event_fd(self) -> int:
        return int(lib.hm_event_fd(self.handle))

    def events(self) -> list[Event]:
        """The events that wait, oldest first, at most EVENT_BATCH of them."""
        n = check(lib.hm_events(self.handle, self._events, EVENT_BATCH), "Taking events")
        return [
            Event(
                e.kind,
                e.cookie,
                e.ino,
                e.block,
                e.reason,
                e.first,
                e.count,
                JobResult(e.result, e.need, e.moved, e.saved, e.crc),
                e.node,
                Touch(bytes(ffi.buffer(e.pages)), bytes(ffi.buffer(e.stores)))
                if e.kind == lib.HM_EVENT_TOUCH
                else None,
                bytes(ffi.buffer(e.pages)) if e.kind == lib.HM_EVENT_FAULT else b"",
            )
            for e in self._events[0:n]
        ]

    # ---- counters

    def stats(self) -> dict[str, int]:
        out = ffi.new("struct hm_stats *")
        check(lib.hm_stats_get(self.handle, out), "Reading the counters")
        return {name: getattr(out, name) for name, _ in ffi.typeof(out[0]).fields}

    def node_stats(self, node: int) -> dict[str, int]:
        out = ffi.new("struct hm_node_stats *")
        check(lib.hm_node_stats_get(self.handle, node, out), "Reading the counters of a node")
        return {name: getattr(out, name) for name, _ in ffi.typeof(out[0]).fields}

    def audit(self) -> str | None:
        """One sentence on the first broken invariant, or None. Exact only at rest."""
        text = ffi.new("char[512]")
        if lib.hm_audit(self.handle, text, 512) == 0:
            return None
        return bytes(ffi.string(text)).decode(errors="replace")

    # ---- the gate

    def start_gate(self, fuse_fd: int, relay_fd: int) -> None:
        """Both descriptors belong to the core from now on."""
        check(lib.hm_gate_start(self.handle, fuse_fd, relay_fd), "Starting the gate")

    def passes_through(self) -> bool:
        """Whether the kernel passes region files through to memory, as coherent and DAX ones need;
        to be asked once the mount has answered."""
        return bool(lib.hm_gate_passthrough(self.handle) == 1)

    def join_gate(self) -> None:
        """Waits for the gate's threads: only from a thread, and once the mount is gone."""
        check(lib.hm_gate_join(self.handle), "Joining the gate")
