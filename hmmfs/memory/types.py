"""What goes to the native core and comes from it: the enumerations and structs of
native/include/hmmfs.h as Python sees them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmmfs._native import lib

PAGE_SIZE = 4096
BLOCK_PAGES = 512
BLOCK_BYTES = PAGE_SIZE * BLOCK_PAGES
HOST = 0
MAX_BLOCKS = int(lib.hm_region_max_bytes()) // BLOCK_BYTES  # of a region


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
    DEVICE_FAULT = lib.HM_JOB_DEVICE_FAULT


class JobFlag(enum.IntFlag):
    NONE = 0
    EVICT = lib.HM_JOB_EVICT
    STAGING = lib.HM_JOB_STAGING
    QUIET = lib.HM_JOB_QUIET
    CHOSEN = lib.HM_JOB_CHOSEN
    FAULT = lib.HM_JOB_FAULT
    HERE = lib.HM_JOB_HERE
    ASKED = lib.HM_JOB_ASKED
    PLACED = lib.HM_JOB_PLACED
    REMOTE = lib.HM_JOB_REMOTE
    AGAIN = lib.HM_JOB_AGAIN


class EventKind(enum.IntEnum):
    FAULT = lib.HM_EVENT_FAULT
    JOB = lib.HM_EVENT_JOB
    INTERRUPT = lib.HM_EVENT_INTERRUPT
    CLOSED = lib.HM_EVENT_CLOSED
    LOW = lib.HM_EVENT_LOW
    DEVICE_FAULT = lib.HM_EVENT_DEVICE_FAULT
    TRACE = lib.HM_EVENT_TRACE
    GONE = lib.HM_EVENT_GONE
    IOCTL = lib.HM_EVENT_IOCTL
    NO_CAPACITY = lib.HM_EVENT_NO_CAPACITY


class PrefetchKind(enum.IntEnum):
    TABLE = lib.HM_PREFETCH_TABLE
    NEXT = lib.HM_PREFETCH_NEXT
    SEQUENTIAL = lib.HM_PREFETCH_SEQUENTIAL
    DENSITY = lib.HM_PREFETCH_DENSITY
    ASK = lib.HM_PREFETCH_ASK


class PlacementKind(enum.IntEnum):
    FIRST_TOUCH = lib.HM_PLACE_FIRST_TOUCH
    PREFERRED = lib.HM_PLACE_PREFERRED
    NEVER = lib.HM_PLACE_NEVER
    COUNTER = lib.HM_PLACE_COUNTER


class EvictionKind(enum.IntEnum):
    LRU = lib.HM_EVICT_LRU
    LRM = lib.HM_EVICT_LRM
    FIFO = lib.HM_EVICT_FIFO
    MRU = lib.HM_EVICT_MRU
    LFU = lib.HM_EVICT_LFU
    CLOCK = lib.HM_EVICT_CLOCK
    RANDOM = lib.HM_EVICT_RANDOM
    TREE = lib.HM_EVICT_TREE
    LRU_PAGE = lib.HM_EVICT_LRU_PAGE
    OPTIMAL = lib.HM_EVICT_OPTIMAL
    ASK = lib.HM_EVICT_ASK


class Trigger(enum.IntEnum):
    """What pages move for."""

    CPU_FAULT = lib.HM_BY_CPU_FAULT
    DEVICE_FAULT = lib.HM_BY_DEVICE_FAULT
    PREFETCH = lib.HM_BY_PREFETCH
    EVICTION = lib.HM_BY_EVICTION
    OPERATION = lib.HM_BY_OPERATION


class FaultCount(enum.IntEnum):
    """A device's faults by access, and by what became of them."""

    READ = lib.HM_FAULTS_READ
    WRITE = lib.HM_FAULTS_WRITE
    MIGRATED = lib.HM_FAULTS_MIGRATED
    POPULATED = lib.HM_FAULTS_POPULATED
    MAPPED = lib.HM_FAULTS_MAPPED
    COPIED = lib.HM_FAULTS_COPIED
    UPGRADED = lib.HM_FAULTS_UPGRADED
    DUPLICATE = lib.HM_FAULTS_DUPLICATE
    STALE = lib.HM_FAULTS_STALE
    FAILED = lib.HM_FAULTS_FAILED


class NumaMode(enum.Enum):
    """Where a region's new pages go; the terms are those of mbind(2) and numactl."""

    DEFAULT = "default"
    BIND = "bind"
    PREFERRED = "preferred"
    INTERLEAVE = "interleave"

    @property
    def native(self) -> int:
        return int(getattr(lib, f"HM_NUMA_{self.name}"))


class AdviceField(enum.IntEnum):
    READ_MOSTLY = lib.HM_ADVICE_READ_MOSTLY
    PREFERRED = lib.HM_ADVICE_PREFERRED
    GRANULARITY = lib.HM_ADVICE_GRANULARITY
    PINNED = lib.HM_ADVICE_PINNED
    NO_MIGRATE = lib.HM_ADVICE_NO_MIGRATE
    PREFETCHED = lib.HM_ADVICE_PREFETCHED
    ACCESSED_BY = lib.HM_ADVICE_ACCESSED_BY
    UNACCESSED_BY = lib.HM_ADVICE_UNACCESSED_BY


@dataclass(frozen=True, slots=True)
class Advice:
    """struct hm_advice: what was said of `count` pages from `first` on."""

    first: int
    count: int
    read_mostly: bool
    preferred: int | None  # a node
    granularity: int | None  # pages
    pinned: bool
    no_migrate: bool
    prefetched: int | None  # a node
    accessed_by: tuple[int, ...]  # nodes


class FaultReason(enum.IntEnum):
    OWNER = lib.HM_FAULT_OWNER
    HOST_FULL = lib.HM_FAULT_HOST_FULL


class DeviceFault(NamedTuple):
    """The pages of a block that a worker's faults are about: two bitmaps of 64 bytes."""

    pages: bytes
    stores: bytes
    since: int = 0  # when they were taken, CLOCK_MONOTONIC in ns


class Ioctl(NamedTuple):
    """A program's ioctl on an open control file."""

    unique: int  # of the request, which answers it
    fh: int
    command: int
    data: bytes  # what came with it
    capacity: int  # the most bytes that may be answered
    thread: int  # the caller's


class BlockKey(NamedTuple):
    ino: int
    block: int


class Victim(NamedTuple):
    key: BlockKey
    pages: NDArray[np.bool_]


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
    source: int = HOST  # with EVICT: the device that pages leave
    offset: int = 0
    length: int = 0
    byte: int = 0
    error: int = 0
    buffer: bytes | bytearray | memoryview | None = None
    device_fault: DeviceFault | None = None
    worker: int = 0  # DEVICE_FAULT: the number of the worker whose faults they are
    window: NDArray[np.bool_] | None = None  # with CHOSEN: 512 booleans
    left: NDArray[np.bool_] | None = None  # with CHOSEN: what a placement policy leaves


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
    pages: int  # accessed, from first on
    result: JobResult
    node: int = HOST  # DEVICE_FAULT: whose worker
    device_fault: DeviceFault | None = None
    window: bytes = b""  # FAULT: a bitmap of what the host's policy brings
    ioctl: Ioctl | None = None
    worker: int = 0  # DEVICE_FAULT: its number


class Residency(NamedTuple):
    pages: tuple[int, ...]  # by node
    dirty_host: int
    dirty_device: int
    cpu_cached: int
    kept: int
    reserved: int
    copies: int


def page_set(words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """One of a block's bitmaps as 512 booleans."""
    return np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_)


def page_words(pages: NDArray[np.bool_]) -> bytes:
    """And back: the 64 bytes of a bitmap."""
    return np.packbits(pages, bitorder="little").tobytes()
