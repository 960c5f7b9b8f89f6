"""Attributes that programs set: their limits."""

from __future__ import annotations

import errno

import pytest

from hmmfs.errors import HmmfsError
from hmmfs.filesystem.xattrs import MAX_FILE, MAX_MOUNT, Kept


def test_the_limit_of_a_mount_is_of_what_is_there() -> None:
    kept, value, ino = Kept(), b"x" * 65530, 0
    for ino in range(MAX_MOUNT // 65536):
        kept.set(ino, b"user.a", value)
    with pytest.raises(HmmfsError, match="of a mount") as caught:
        kept.set(ino + 1, b"user.a", b"1")
    assert caught.value.errno == errno.ENOSPC
    assert kept.names(ino + 1) == []
    kept.set(ino, b"user.a", b"shorter")  # what is there may be replaced
    kept.set(ino + 1, b"user.a", b"1")
    kept.remove(0, b"user.a")
    kept.drop(1)
    kept.drop(1)
    for _ in range(3):
        kept.set(2, b"user.b", value)
    kept.set(0, b"user.b", value)
    with pytest.raises(HmmfsError, match="of a mount"):
        kept.set(1, b"user.b", value)


def test_the_limit_of_a_file() -> None:
    kept = Kept()
    kept.set(1, b"user.a", b"x" * 65536)
    kept.set(1, b"user.b", b"x" * (MAX_FILE - 65536 - 12))
    with pytest.raises(HmmfsError, match="of a file") as caught:
        kept.set(1, b"user.b", b"x" * (MAX_FILE - 65536 - 11))
    assert caught.value.errno == errno.ENOSPC
    assert len(kept.get(1, b"user.b")) == MAX_FILE - 65536 - 12
