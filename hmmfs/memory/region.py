"""A region as the native core has it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hmmfs._native import ffi, lib
from hmmfs.errors import HmmfsError, check
from hmmfs.memory.types import Advice, AdviceField, Kind, NumaMode, Residency

if TYPE_CHECKING:
    from hmmfs.memory.core import Core

# What a region's times can be, in ns since the epoch: whole seconds from 1677 on, to 2262.
TIME_OMIT, TIME_LEAST, TIME_MOST = -(2**63), -9_223_372_036 * 10**9, 2**63 - 1
# Blocks that hm_region_touched is asked for in one call.
TOUCHED_BATCH = 1024
ADVICE_BATCH = 256


def dtype_of(struct: str) -> np.dtype[np.void]:
    """The numpy layout of a native struct, read from what the compiler laid out."""
    names, formats, offsets = [], [], []
    for name, field in ffi.typeof(f"struct {struct}").fields:
        ctype = field.type
        shape: tuple[int, ...] = ()
        while ctype.kind == "array":
            ctype, shape = ctype.item, (*shape, ctype.length)
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


BLOCK_DTYPE = dtype_of("hm_block")
CANDIDATE_DTYPE = dtype_of("hm_candidate")


class Region:
    """One region. Its record lives in the core, so every read is of the present moment."""

    __slots__ = (
        "_blocks", "_core", "_record", "ino", "links", "lookups", "mostly", "numa", "pid", "users"
    )  # fmt: skip

    def __init__(self, core: Core, ino: int, record: Any) -> None:
        self._core = core
        self._record = record
        self._blocks: Any = None
        self.ino = ino
        # Its names, oldest first, each with a number that grows and stays.
        self.links: dict[bytes, int] = {}
        self.lookups = 0  # of the kernel, given back by FORGET
        self.numa: tuple[NumaMode, tuple[int, ...]] = (NumaMode.DEFAULT, ())
        self.mostly = False  # whether some of it was ever read-mostly
        self.users = 0  # open files, and device operations under way
        self.pid = 0  # the program whose own memory this is; 0: it is a file

    @property
    def name(self) -> bytes:
        return bytes(ffi.string(self._record.name))

    @name.setter
    def name(self, name: bytes) -> None:
        self._record.name = name + b"\0"

    @property
    def size(self) -> int:
        if self._core.kind is not Kind.PRIVATE:
            # Stores through mappings change its times without a word.
            check(lib.hm_region_sync(self._core.handle, self.ino), "Reading a region's times")
        return int(self._record.size)

    @property
    def mode(self) -> int:
        return int(self._record.mode)

    @mode.setter
    def mode(self, mode: int) -> None:
        self._record.mode = mode

    @property
    def attributes(self) -> int:
        """How many extended attributes programs gave it; the gate asks nobody if there are none."""
        return int(self._record.attributes)

    @attributes.setter
    def attributes(self, attributes: int) -> None:
        self._record.attributes = attributes

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
    def times(self) -> tuple[int, int, int]:
        """atime, mtime and ctime in ns, as of when `size` was last read."""
        return int(self._record.atime), int(self._record.mtime), int(self._record.ctime)

    def set_times(self, atime: int | None, mtime: int | None, *, settle: bool) -> None:
        """In ns; what lies beyond `TIME_LEAST` and `TIME_MOST` becomes the nearest of these. With
        `settle` no store from before moves mtime any more, which may wait for the kernel."""
        ns = [
            TIME_OMIT if time is None else min(max(time, TIME_LEAST), TIME_MOST)
            for time in (atime, mtime)
        ]
        ret = lib.hm_region_set_times(self._core.handle, self.ino, *ns, settle)
        check(ret, "Setting a region's times")

    def modified(self, *, stored: bool = False) -> None:
        """It changed now: its bytes, if they were `stored` to, or what is known of it."""
        check(
            lib.hm_region_modified(self._core.handle, self.ino, stored), "Moving a region's times"
        )

    @property
    def present(self) -> int:
        """Pages that have bytes, on any node."""
        return sum(self._record.pages)

    def truncate(self, size: int) -> None:
        ret = lib.hm_region_truncate(self._core.handle, self.ino, size)
        if ret == -errno.ENOSPC:
            raise HmmfsError(
                errno.ENOSPC,
                f"{size} bytes are more than the free capacity: {self._core.kind.value} memory "
                "reserves all of a region's size at once. Make the region smaller, or remove "
                "others.",
            )
        check(ret, "Setting a region's size")

    def allocate(self, offset: int, length: int) -> None:
        """Give the holes of a range of bytes pages of zeros, on the host."""
        ret = lib.hm_region_allocate(self._core.handle, self.ino, offset, length)
        check(ret, "Filling holes with zeros")

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
            length = min(end - first, TOUCHED_BATCH)
            out = ffi.new("uint64_t[]", length)
            n = lib.hm_region_touched(self._core.handle, self.ino, first, out, length)
            check(n, "Listing touched blocks")
            found = [block for block in out[0:n] if block < end]
            yield from found
            if len(found) < length:
                return
            first = found[-1] + 1

    def set_numa(self, mode: NumaMode, nodes: Sequence[int]) -> None:
        """Where pages go that it gets from now on."""
        mask = sum(1 << node for node in nodes)
        ret = lib.hm_region_numa(self._core.handle, self.ino, mode.native, mask)
        if ret == -errno.EOPNOTSUPP:
            raise HmmfsError(
                errno.EOPNOTSUPP,
                "Only coherent memory that is passed through has a NUMA policy: "
                "of other memory say preferred_location= in advice.",
            )
        check(ret, "Setting a NUMA policy")
        self.numa = (mode, tuple(nodes))

    def advise(self, first: int, count: int, field: AdviceField, value: int) -> None:
        """Say one thing of `count` pages from `first` on; see enum hm_advice_field."""
        self.mostly |= field == AdviceField.READ_MOSTLY and value == 1
        ret = lib.hm_advise(self._core.handle, self.ino, first, count, field, value)
        if ret == -errno.ENOSPC:
            raise HmmfsError(
                errno.ENOSPC, "There is advice on more ranges than are kept: unset some."
            )
        check(ret, "Giving advice")

    def opened_for_writing(self) -> None:
        """Ends all copies of read-mostly pages if it is the first, which punches each of them."""
        check(lib.hm_region_writers(self._core.handle, self.ino, 1), "Opening a region")

    def closed_for_writing(self) -> None:
        check(lib.hm_region_writers(self._core.handle, self.ino, -1), "Closing a region")

    def labelled_or_duplicate(self, block: int, node: int) -> NDArray[np.uint64]:
        """The bitmap of a block's host pages that count on a device: they have its label, or it
        has duplicates of them. With HOST those that do not count on the host: they have a label of
        any device."""
        out = np.zeros(8, dtype=np.uint64)
        words = ffi.cast("uint64_t *", ffi.from_buffer(out))
        check(
            lib.hm_labelled_or_duplicate(self._core.handle, self.ino, block, node, words),
            "Listing a device's pages",
        )
        return out

    def advice(self) -> list[Advice]:
        """What was said, in order, by ranges that differ."""
        found: list[Advice] = []
        out = ffi.new("struct hm_advice[]", ADVICE_BATCH)
        while True:
            start = found[-1].first + found[-1].count if found else 0
            n = lib.hm_advice_get(self._core.handle, self.ino, start, out, ADVICE_BATCH)
            check(n, "Reading advice")
            found += [self._advice(out[i]) for i in range(n)]
            if n < ADVICE_BATCH:
                return found

    def _advice(self, one: Any) -> Advice:
        return Advice(
            first=one.first,
            count=one.count,
            read_mostly=bool(one.read_mostly),
            preferred=one.preferred - 1 if one.preferred else None,
            granularity=1 << (one.granularity - 1) if one.granularity else None,
            pinned=bool(one.pinned),
            no_migrate=bool(one.no_migrate),
            prefetched=one.prefetched - 1 if one.prefetched else None,
            accessed_by=tuple(n for n in range(self._core.nodes) if one.accessed_by >> n & 1),
        )

    def residency(self) -> Residency:
        out = ffi.new("uint64_t[22]")
        check(lib.hm_region_residency(self._core.handle, self.ino, out), "Counting resident pages")
        return Residency(tuple(out[0 : self._core.nodes]), *out[16:22])
