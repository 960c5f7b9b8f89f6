"""System calls that Python has no call for. Each raises OSError with the kernel's errno."""

import ctypes
import os
from collections.abc import Mapping
from types import MappingProxyType

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_NOATIME = 1024
MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
# The same numbers on every architecture: they came after the tables were merged.
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_CLOEXEC = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.syscall.argtypes = [ctypes.c_long] + [ctypes.c_void_p] * 5
_libc.syscall.restype = ctypes.c_long


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2)."""
    strings = [os.fsencode(text) for text in (source, target, kind)]
    _checked(_libc.mount(*strings, flags, os.fsencode(data)))


def umount(target: str, flags: int = 0) -> None:
    """umount2(2), never following a symlink."""
    _checked(_libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW))


def signal_on_parent_death(number: int) -> None:
    """Have ``number`` sent to this process when the thread that forked it ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0))


def name_process(name: str) -> None:
    """What ps shows for this thread, cut at 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _checked(_libc.prctl(_PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0))


def detached_mount(kind: str, options: Mapping[str, str] = MappingProxyType({})) -> int:
    """A descriptor of a file system's top directory that is mounted nowhere (root)."""
    context = _checked(_libc.syscall(_SYS_FSOPEN, kind.encode(), _CLOEXEC, None, None, None))
    try:
        for name, value in options.items():
            words = name.encode(), value.encode(), None
            _checked(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, *words))
        _checked(_libc.syscall(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, None))
        return _checked(_libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, None, None, None))
    finally:
        os.close(context)
