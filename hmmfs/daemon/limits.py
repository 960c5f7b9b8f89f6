"""The limits that a daemon is started with: raised, or refused in one sentence before it mounts."""

from __future__ import annotations

import contextlib
import errno
import resource
import threading

from hmmfs.common.units import LARGEST, G, format_size
from hmmfs.errors import HmmfsError

# Raised as far as they may be: files and memory are what regions are made of.
_RAISED = (
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_AS,
    resource.RLIMIT_DATA,
    resource.RLIMIT_CPU,
)
# What a mount of one region and a device's worker takes. A region has a directory of 8 GiB, most of
# it untouched, and descriptors for that and for each node with pages of it.
FILES = 64
ADDRESS_SPACE = 12 * G
DATA = 1 * G  # with the stacks of threads
CPU_S = 1 << 28  # eight years
THREADS = 16  # of the daemon; a device's worker has some more
THREADS_OF_A_DEVICE = 4


def settle(devices: int) -> int:
    """Raises the soft limits of this process, and that of file sizes altogether if it may.

    Returns the soft limit of file sizes that there was, which is for programs that it starts.
    Call it while there are no threads. HmmfsError: a limit is too low for any region.
    """
    inherited = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    for limit in _RAISED:
        _raise(limit)
    with contextlib.suppress(ValueError):  # takes CAP_SYS_RESOURCE
        infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_FSIZE, infinite)
    _check(
        resource.RLIMIT_NOFILE,
        FILES,
        errno.EMFILE,
        "A mount takes {need} open files and more, and the limit is {most}. "
        "Mount with a higher one (ulimit -n).",
    )
    _check(
        resource.RLIMIT_FSIZE,
        LARGEST,
        errno.EFBIG,
        "A region takes files of {size}, and the limit is {most} bytes. "
        "Mount with `ulimit -f unlimited`.",
    )
    _check(
        resource.RLIMIT_AS,
        ADDRESS_SPACE,
        errno.ENOMEM,
        "A mount takes {size} of address space and more, and the limit is {most} bytes. "
        "Mount with `ulimit -v unlimited`.",
    )
    _check(
        resource.RLIMIT_DATA,
        DATA,
        errno.ENOMEM,
        "A mount takes {size} of data and more, and the limit is {most} bytes. "
        "Mount with `ulimit -d unlimited`.",
    )
    _check(
        resource.RLIMIT_CPU,
        CPU_S,
        errno.EPERM,
        "A limit would end the mount after {most} s of CPU time. Mount with `ulimit -t unlimited`.",
    )
    _check_threads(THREADS + THREADS_OF_A_DEVICE * devices)
    return inherited


def _raise(limit: int) -> None:
    most = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (most, most))


def _check(limit: int, need: int, number: int, sentence: str) -> None:
    most = resource.getrlimit(limit)[0]
    if most != resource.RLIM_INFINITY and most < need:
        raise HmmfsError(number, sentence.format(need=need, size=format_size(need), most=most))


def _check_threads(count: int) -> None:
    """Starts as many as will be needed: users, cgroups and the kernel have a limit each."""
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(count)]
    started = 0
    try:
        for thread in threads:
            thread.start()
            started += 1
    except RuntimeError:
        raise HmmfsError(
            errno.EAGAIN,
            f"A mount takes {count} threads and more, and there may be {started} more here. "
            "Mount with a higher limit (ulimit -u, or pids.max of the cgroup).",
        ) from None
    finally:
        done.set()
        for thread in threads[:started]:
            thread.join()
