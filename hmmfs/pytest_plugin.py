"""Fixtures for tests that want a machine: `hmmfs_mount`, and `hmmfs_factory` for other options.

Where there can be none the test is skipped, with the reason. pytest imports this whether a test
uses it or not: what takes time to import waits for a fixture.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hmmfs.api.machine import Machine


def unavailable() -> str:
    """Why a machine can't be mounted here, or its devices take no faults; empty: it can be."""
    from hmmfs.common.linux import open_userfaultfd
    from hmmfs.mounting.mounts import find_helper

    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse can't be opened: load the module, or give the container the device"
    if os.geteuid() and not find_helper():
        return "fusermount3 is not installed, without which only root can mount"
    try:
        os.close(open_userfaultfd())
    except OSError as error:
        return f"the kernel allows no userfaultfd: {error.strerror}"
    return ""


@pytest.fixture
def hmmfs_factory() -> Iterator[Callable[..., Machine]]:
    """hmmfs_factory(vram="64M", …) mounts a machine; all end with the test."""
    if reason := unavailable():
        pytest.skip(reason)
    from hmmfs.api.machine import mount

    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(mount(**options))


@pytest.fixture
def hmmfs_mount(hmmfs_factory: Callable[..., Machine]) -> Machine:
    """A machine with the options as they are: one device of 64 MiB, 1 GiB on the host."""
    return hmmfs_factory()
