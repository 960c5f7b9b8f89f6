"""fsx with devices: one list of steps done to a region file and to a shadow, compared throughout.

A step is a tuple (what, who, offset, length, value). `who` chooses between this process and a peer
that has its own mapping, and between the devices. Offsets and lengths are fractions of what there
is, so that every list of steps is valid and hypothesis can shrink it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from conftest import Mount

import hmmfs

LIMIT = 12 << 20
PAGE = 4096
PUNCH, ZERO, KEEP = 2, 16, 1
TOLD = (
    *(
        "read_mostly",
        "unset_read_mostly",
        "granularity=4K",
        "granularity=256K",
        "unset_granularity",
    ),
    *("preferred_location=host", "preferred_location=dev0", "unset_preferred_location"),
    *("accessed_by=dev0", "accessed_by=dev0,dev1", "unset_accessed_by"),
    *("no_migrate", "pinned no_migrate", "unset_pinned unset_no_migrate", "unset_all"),
)
ADVICE = (mmap.MADV_RANDOM, mmap.MADV_SEQUENTIAL, mmap.MADV_DONTNEED, mmap.MADV_NORMAL)
_libc = ctypes.CDLL(None, use_errno=True)

Step = tuple[str, int, float, float, int]


class Program:
    """What an unmodified program can do to the file; runs in this process or in a peer."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.buffer = mmap.mmap(-1, LIMIT)
        size = os.fstat(self.fd).st_size
        os.ftruncate(self.fd, LIMIT)
        self.map = mmap.mmap(self.fd, LIMIT)
        os.ftruncate(self.fd, size)

    def load(self, offset: int, length: int) -> bytes:
        return self.map[offset : offset + length]

    def store(self, offset: int, data: bytes) -> None:
        self.map[offset : offset + len(data)] = data

    def pread(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def pwrite(self, offset: int, data: bytes) -> int:
        return os.pwrite(self.fd, data, offset)

    def pread_direct(self, offset: int, length: int) -> bytes:
        return self.buffer[: os.preadv(self.direct, [memoryview(self.buffer)[:length]], offset)]

    def pwrite_direct(self, offset: int, data: bytes) -> int:
        self.buffer[: len(data)] = data
        return os.pwritev(self.direct, [memoryview(self.buffer)[: len(data)]], offset)

    def msync(self) -> None:
        self.map.flush()

    def advise(self, which: int) -> None:
        self.map.madvise(ADVICE[which])

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(self.fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
            raise OSError(ctypes.get_errno(), "fallocate")

    def seek(self, offset: int, whence: int) -> int:
        try:
            return os.lseek(self.fd, offset, whence)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return -1

    def close(self) -> None:
        self.map.close()
        self.buffer.close()
        os.close(self.fd)
        os.close(self.direct)


class Peer:
    """A Program in another process, driven over pipes; one after the other."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __getattr__(self, name: str) -> Any:
        def call(*args: object) -> Any:
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            data = pickle.dumps((name, args))
            self._child.stdin.write(struct.pack("<I", len(data)) + data)
            self._child.stdin.flush()
            size = struct.unpack("<I", self._child.stdout.read(4))[0]
            return pickle.loads(self._child.stdout.read(size))

        return call

    def end(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()


def _serve() -> None:
    program: Program
    while head := sys.stdin.buffer.read(4):
        name, args = pickle.loads(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
        if name == "begin":
            program, answer = Program(*args), None
        else:
            answer = getattr(program, name)(*args)
        data = pickle.dumps(answer)
        sys.stdout.buffer.write(struct.pack("<I", len(data)) + data)
        sys.stdout.buffer.flush()


def work(a: np.ndarray[Any, Any], offset: int, length: int, value: int) -> int:
    """A kernel: look at some bytes, then add to them, unless it only reads."""
    part = a[offset : offset + length]
    seen = zlib.crc32(part.tobytes())
    if value % 4:
        part += np.uint8(value)
    return seen


class Fsx:
    """A region, its shadow, and the steps."""

    def __init__(self, mount: Mount, name: str, peer: Peer) -> None:
        self.mount, self.name = mount, name
        self.machine = hmmfs.connect(mount.path)
        kinds = [device.kind for device in self.machine.devices]
        self.fixed, self.coherent = "dax" in kinds, "coherent" in kinds
        path = str(mount.region(name, 0))
        self.path = Path(path)
        peer.begin(path)
        self.programs: list[Any] = [Program(path), peer]
        self.shadow = np.zeros(LIMIT, dtype=np.uint8)
        self.size = 0
        self.programs[0].truncate(LIMIT // 2)
        self.size = LIMIT // 2

    def close(self) -> None:
        for program in self.programs:
            program.close()
        self.path.unlink()

    def do(self, step: Step) -> None:
        what, who, at, span, value = step
        program = self.programs[who % 2]
        offset = min(int(at * self.size), max(self.size - 1, 0))
        length = max(1, min(int(span * span * (3 << 20)), self.size - offset))
        if self.size or what in ("truncate", "pwrite"):
            getattr(self, "_" + what)(program, who // 2 % 2, offset, length, value)

    def check(self) -> None:
        assert self.path.stat().st_size == self.size
        seen = np.frombuffer(self.programs[1].pread(0, LIMIT), dtype=np.uint8)
        assert np.array_equal(seen, self.shadow[: self.size]), self._difference(seen)
        assert self.mount.audit() == "ok"

    def _difference(self, seen: np.ndarray[Any, Any]) -> str:
        if seen.size != self.size:
            return f"{seen.size} bytes, not {self.size}"
        at = int(np.flatnonzero(seen != self.shadow[: self.size])[0])
        return f"first at {at} (page {at // PAGE}): {seen[at]}, not {self.shadow[at]}"

    def _bytes(self, length: int, value: int) -> bytes:
        return bytes((value + i) & 255 for i in range(251)) * (length // 251 + 1)

    def _same(self, seen: bytes, offset: int) -> None:
        wanted = self.shadow[offset : offset + len(seen)].tobytes()
        assert seen == wanted, f"bytes differ in {offset}+{len(seen)}"

    def _put(self, offset: int, data: bytes) -> None:
        self.shadow[offset : offset + len(data)] = np.frombuffer(data, dtype=np.uint8)

    # ---- what programs do

    def _load(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        self._same(program.load(offset, length), offset)

    def _store(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        data = self._bytes(length, value)[:length]
        program.store(offset, data)
        self._put(offset, data)

    def _pread(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        seen = (program.pread_direct if value % 4 == 0 else program.pread)(offset, length)
        assert len(seen) == length
        self._same(seen, offset)

    def _pwrite(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        data = self._bytes(length, value)[: min(length + value * 64, LIMIT - offset)]
        write = program.pwrite_direct if value % 4 == 0 else program.pwrite
        assert write(offset, data) == len(data)
        self._put(offset, data)
        self.size = max(self.size, offset + len(data))

    def _msync(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        program.msync()

    def _advise(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        program.advise(value % len(ADVICE))

    def _truncate(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        size = min(offset + value * (LIMIT // 512), LIMIT) if value % 2 else offset
        program.truncate(size)
        self.shadow[size:] = 0
        self.size = size

    def _punch(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        program.fallocate((PUNCH if value % 2 else ZERO) | KEEP, offset, length)
        self.shadow[offset : offset + length] = 0

    def _allocate(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        program.fallocate(KEEP, offset, length)

    def _seek(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        data = program.seek(offset, os.SEEK_DATA)
        end = self.size if data < 0 else data
        assert not self.shadow[offset:end].any(), f"data in {offset}..{end} passed for a hole"
        hole = program.seek(offset, os.SEEK_HOLE)
        assert offset <= hole <= self.size

    # ---- what devices do

    def _at(self, offset: int, length: int) -> str:
        return f"{self.name}:{offset}+{length}"

    def _checksum(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        wanted = zlib.crc32(self.shadow[offset : offset + length].tobytes())
        assert self.mount.submit(dev, f"checksum {self._at(offset, length)}") == f"{wanted:08x}"

    def _fill(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        self.mount.submit(dev, f"fill {self._at(offset, length)} {value}")
        self.shadow[offset : offset + length] = value

    def _write(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        data = self._bytes(length, value)[: min(length, 9000)]
        self.mount.submit(dev, f"write {self.name}:{offset} {data.hex()}")
        self._put(offset, data)

    def _read(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        said = self.mount.submit(dev, f"read {self._at(offset, min(length, 9000))}")
        self._same(bytes.fromhex(said), offset)

    def _copy(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        length = min(length, self.size // 3)
        to = (offset + length) if offset + 2 * length <= self.size else max(offset - length, 0)
        if not length or abs(to - offset) < length:
            return
        self.mount.submit(dev, f"copy {self._at(offset, length)} to {self.name}:{to}")
        self.shadow[to : to + length] = self.shadow[offset : offset + length]

    def _compare(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        both = self._at(offset, length)
        assert self.mount.submit(dev, f"compare {both} with {both}") == "equal"

    def _migrate(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        where = f"dev{dev}" if value % 3 else "host"
        try:
            self.mount.submit(dev, f"migrate {self._at(offset, length)} to {where}")
        except OSError as error:
            # DAX memory stays where it is, and what it was said of, too.
            if not (error.errno == errno.EOPNOTSUPP and self.fixed) and error.errno != errno.EBUSY:
                raise

    def _tell(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        """Advice. What is pinned is at home before, or a program could not have it."""
        if self.coherent or self.fixed:
            return  # nothing is private there
        words = TOLD[value % len(TOLD)].split()
        part = slice(offset, offset + length)
        region = self.machine.region(self.name)
        if "pinned" in words:
            region.advise("unset_pinned", "no_migrate", part=part)
            region.migrate("host", part)
        region.advise(*words, part=part)

    def _launch(self, program: Any, dev: int, offset: int, length: int, value: int) -> None:
        region = self.machine.region(self.name)
        uses = hmmfs.updates(region) if value % 4 else hmmfs.reads(region)
        seen = self.machine.devices[dev].launch(work, uses, offset, length, value).wait(60)
        assert seen == zlib.crc32(self.shadow[offset : offset + length].tobytes())
        if value % 4:
            self.shadow[offset : offset + length] += np.uint8(value)


STEPS = sorted(
    name[1:]
    for name in vars(Fsx)
    if name.startswith("_") and name not in ("_bytes", "_same", "_put", "_at", "_difference")
    and not name.startswith("__")
)  # fmt: skip

if __name__ == "__main__":
    _serve()
