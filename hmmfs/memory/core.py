"""The native core as Python sees it: one class, one method for each native function.

Nothing here waits for another party. Sizes are in 4 KiB pages unless a name says bytes.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmmfs._native import ffi, lib
from hmmfs.errors import HmmfsError, check
from hmmfs.memory.region import CANDIDATE_DTYPE, Region
from hmmfs.memory.types import (
    BLOCK_PAGES,
    BlockKey,
    DeviceFault,
    Event,
    EvictionKind,
    Ioctl,
    Job,
    JobResult,
    Kind,
    PlacementKind,
    PrefetchKind,
    Victim,
    page_set,
    page_words,
)

NAME_MAX = 255
NONBLOCK_BIT = int(lib.HM_READ_NONBLOCK)
# The gate takes every inode from here on for a region; control files stay below.
FIRST_REGION_INO = 1 << 32
# Why a region could not be made, by errno.
NO_REGION = {
    errno.ENOSPC: "This mount has as many regions as it can have. Remove some.",
    errno.EMFILE: "The daemon has no open files left, and a region takes some. "
    "Remove regions, or mount again with a higher limit (ulimit -n).",
    errno.ENOMEM: "The daemon has no address space left, and a region takes 8 GiB and more. "
    "Mount again with a higher limit (ulimit -v).",
}
EVENT_BATCH = 256


def _ioctl(event: Any) -> Ioctl:
    data = bytes(ffi.buffer(event.pages))[: event.count]
    return Ioctl(event.cookie, event.block, event.first, data, event.write, event.reason)


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
        device_kinds: Sequence[Kind] = (),
        visible: Sequence[int] = (),
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
        self.device_kinds = tuple(device_kinds) or (kind,) * (len(capacity) - 1)
        config.device_kind[1 : len(capacity)] = [one.native for one in self.device_kinds]
        self._visible = tuple(visible) or tuple(capacity[1:])
        config.visible[1 : len(capacity)] = list(self._visible)
        out = ffi.new("struct hm_core **")
        check(lib.hm_core_create(config, out), "Creating the native core")
        self._handle = out[0]
        self.capacity = tuple(capacity)
        self.nodes = len(capacity)
        self.excluded: frozenset[int] = frozenset()
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

    def set_eviction(
        self,
        node: int,
        kind: EvictionKind,
        *,
        seed: int = 0,
        trace: NDArray[np.uint64] | None = None,
    ) -> None:
        """What leaves a device first, from the next victim on. trace: BLOCK * 512 + PAGE of each
        access to come, for OPTIMAL."""
        accesses = np.ascontiguousarray(() if trace is None else trace, dtype=np.uint64)
        policy = ffi.new("struct hm_eviction *", {"kind": kind, "seed": seed})
        policy.trace = ffi.cast("uint64_t *", ffi.from_buffer(accesses))
        policy.length = len(accesses)
        check(lib.hm_eviction_set(self.handle, node, policy), "Setting an eviction policy")

    def victim(self, node: int, need: int, spared: Collection[BlockKey]) -> Victim | None:
        """What leaves a device next by its built-in policy, to free `need` pages. None: nothing can
        leave."""
        keys = [number for key in spared for number in key]
        out = ffi.new("struct hm_victim *")
        found = lib.hm_victim_next(
            self.handle, node, need, ffi.new("uint64_t[]", keys), len(spared), out
        )
        if not check(found, "Choosing what leaves a device"):
            return None
        return Victim(
            BlockKey(out.ino, out.block),
            page_set(np.frombuffer(ffi.buffer(out.window), dtype=np.uint64)),
        )

    def set_placement(self, node: int, kind: PlacementKind, threshold: int = 0) -> None:
        """Where pages come to be that the device touches: from the next fault on."""
        check(lib.hm_placement_set(self.handle, node, kind, threshold), "Setting a placement")

    def set_thrashing(
        self,
        threshold: int,
        pin_threshold: int,
        max_resets: int,
        lapse_ns: int,
        nap_ns: int,
        epoch_ns: int,
        pin_ns: int,
    ) -> None:
        """struct hm_thrashing; threshold 0: nothing is done about it."""
        values = (threshold, pin_threshold, max_resets, lapse_ns, nap_ns, epoch_ns, pin_ns)
        policy = ffi.new("struct hm_thrashing *", values)
        check(lib.hm_thrashing_set(self.handle, policy), "Setting a thrashing policy")

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

    def device_attach(self, node: int, uffd: int, remote: int = -1) -> None:
        """The core takes the descriptors over if this succeeds: it reads faults from the one, and
        asks the worker through the other to map pages remotely."""
        check(lib.hm_device_attach(self.handle, node, uffd, remote), "Attaching a worker")

    def device_worker(self, node: int) -> int:
        """The number of the worker attached last, from 1, which its faults carry; 0: none was."""
        return int(lib.hm_device_worker(self.handle, node))

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

    # ---- capacity

    def exclude(self, node: int, on: bool) -> None:
        """Let nothing come to a node by default, until that is taken back."""
        check(lib.hm_node_exclude(self.handle, node, on), "Excluding a node")
        self.excluded = self.excluded - {node} | ({node} if on else set())

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

    def visible(self, node: int) -> int:
        """Pages of a device that programs can reach where they are."""
        private = self.device_kinds[node - 1] is Kind.PRIVATE
        return 0 if private else self._visible[node - 1]

    def used(self, node: int) -> int:
        return self.node_stats(node)["used"]

    def drop_kept(self, pages: int) -> int:
        return check(lib.hm_drop_kept(self.handle, pages), "Dropping kept copies")

    def candidates(self, node: int) -> NDArray[np.void]:
        """The touched blocks with pages on the node (for the host also: reserved holes, kept
        copies). The array is the caller's, and stale from the moment it is made."""
        while True:
            found = self._candidates
            out = ffi.cast("struct hm_candidate *", ffi.from_buffer(found))
            n = check(
                lib.hm_candidates(self.handle, node, out, len(found)), "Listing blocks to evict"
            )
            if n < len(found):
                return found[:n].copy()
            self._candidates = np.zeros(2 * len(found), dtype=CANDIDATE_DTYPE)

    # ---- jobs and events

    def submit(self, job: Job, cookie: int) -> object:
        """Queue a job. Returns what has to be kept alive until its event comes."""
        native = self._job
        native.cookie = cookie
        native.ino, native.block = job.ino, job.block
        native.kind, native.node, native.flags = job.kind, job.node, job.flags
        native.first, native.count, native.limit = job.first, job.count, job.limit
        native.source, native.reserved = job.source, job.reserved
        native.offset, native.length = job.offset, job.length
        native.byte, native.error, native.worker = job.byte, job.error, job.worker
        keep = None
        if job.buffer is not None:
            keep = ffi.from_buffer(job.buffer)
            if len(keep) < job.length:
                raise ValueError("a job's buffer is shorter than its length")
            native.buffer = keep
        else:
            native.buffer = ffi.NULL
        if job.device_fault is not None:
            ffi.memmove(native.pages, job.device_fault.pages, 64)
            ffi.memmove(native.stores, job.device_fault.stores, 64)
            native.faulted_at = job.device_fault.since
        if job.window is not None:
            ffi.memmove(native.window, page_words(job.window), 64)
        ffi.memmove(native.remote, bytes(64) if job.left is None else page_words(job.left), 64)
        check(lib.hm_submit(self.handle, native), "Submitting a job")
        return keep

    def reply_ioctl(self, unique: int, error: int, answer: bytes = b"") -> None:
        """Answer an ioctl: with an errno, or with 0 and what the program gets back."""
        check(
            lib.hm_reply_ioctl(self.handle, unique, error, answer, len(answer)),
            "Answering an ioctl",
        )

    def retry(self, unique: int, *, last: bool) -> bool:
        """Try a request again that found no capacity, by an event's cookie. Whether it waits for
        the next try; after the last it is answered all the same."""
        what = "Trying a request again that found no capacity"
        return bool(check(lib.hm_gate_retry(self.handle, unique, last), what))

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
                DeviceFault(bytes(ffi.buffer(e.pages)), bytes(ffi.buffer(e.stores)), e.faulted_at)
                if e.kind == lib.HM_EVENT_DEVICE_FAULT
                else None,
                bytes(ffi.buffer(e.pages)) if e.kind == lib.HM_EVENT_FAULT else b"",
                _ioctl(e) if e.kind == lib.HM_EVENT_IOCTL else None,
                e.worker,
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

    def leave_gate(self) -> None:
        """Ends the connection by closing /dev/fuse, for who may not abort it. Only from a thread:
        it waits up to 10 s for what is being recalled."""
        check(lib.hm_gate_leave(self.handle), "Closing /dev/fuse")

    def join_gate(self) -> None:
        """Waits for the gate's threads: only from a thread, and once the mount is gone."""
        check(lib.hm_gate_join(self.handle), "Joining the gate")
