"""System calls that Python has no call for (native/linux/system_calls.c). Each raises OSError with
the kernel's errno."""

import os
from collections.abc import Mapping
from types import MappingProxyType

from hmmfs._linux import ffi, lib

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_NOATIME = 1024
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


def _checked(result: int, what: str | None = None) -> int:
    if result < 0:
        text = os.strerror(-result)
        raise OSError(-result, f"{what}: {text}" if what else text)
    return result


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2)."""
    strings = [os.fsencode(text) for text in (source, target, kind)]
    _checked(lib.hm_mount(*strings, flags, os.fsencode(data)))


def umount(target: str, flags: int = 0) -> None:
    """umount2(2), never following a symlink."""
    _checked(lib.hm_umount(os.fsencode(target), flags))


def signal_on_parent_death(number: int) -> None:
    """Have ``number`` sent to this process when the thread that forked it ends."""
    _checked(lib.hm_signal_on_parent_death(number))


def name_process(name: str) -> None:
    """What ps shows for this thread, cut at 15 bytes."""
    _checked(lib.hm_name_process(name.encode()))


def detached_mount(kind: str, options: Mapping[str, str] = MappingProxyType({})) -> int:
    """A descriptor of a file system's top directory that is mounted nowhere (root)."""
    names = [ffi.new("char[]", name.encode()) for name in options]
    values = [ffi.new("char[]", value.encode()) for value in options.values()]
    return _checked(lib.hm_detached_mount(kind.encode(), names, values, len(options)))


def open_userfaultfd() -> int:
    """With faults of the kernel's own accesses where that is allowed, else of user code only."""
    return _checked(lib.hm_userfaultfd(), "userfaultfd")


def map_window(pool: int, size: int, uffd: int) -> int:
    """The address of a shared mapping of a pool, whose faults go to uffd unless it is negative."""
    address = ffi.new("uint64_t *")
    _checked(lib.hm_window_map(pool, size, uffd, address), "Mapping a window")
    return int(address[0])


def unmap_window(address: int, size: int) -> None:
    _checked(lib.hm_window_unmap(address, size))


def memory_at(address: int, size: int) -> memoryview:
    """The bytes there, for as long as they are mapped."""
    return memoryview(ffi.buffer(ffi.cast("char *", address), size))


def copy_memory(pid: int, address: int, here: memoryview, *, store: bool) -> int:
    """Copy between `here` and the memory of a process. The bytes done: at least one."""
    buffer = ffi.from_buffer(here)
    return _checked(lib.hm_copy_memory(pid, address, buffer, len(buffer), store))
