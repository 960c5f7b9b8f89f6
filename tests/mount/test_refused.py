"""System calls of the daemon that the kernel refuses: who asked hears it, and so does the audit."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from conftest import MountFactory, fails, wait_until

PAGE = 4096
NO_PUNCH = """
#define _GNU_SOURCE
#include <errno.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

int fallocate64(int fd, int mode, off_t offset, off_t length)
{
    if (mode & FALLOC_FL_PUNCH_HOLE && !access(getenv("NO_PUNCH"), F_OK)) {
        errno = EIO;
        return -1;
    }
    return syscall(SYS_fallocate, fd, mode, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return fallocate64(fd, mode, offset, length);
}
"""


def test_a_refused_punch(
    mount_factory: MountFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, refuse = tmp_path / "no-punch.so", tmp_path / "refuse"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=NO_PUNCH, text=True, check=True)
    monkeypatch.setenv("NO_PUNCH", str(refuse))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    mount = mount_factory(vram="8M", host="64M")
    monkeypatch.delenv("LD_PRELOAD")
    path, data = mount.regions / "a", os.urandom(512 * PAGE)
    for what in ("truncate", "migrate"):
        path.write_bytes(data)
        mount.submit(0, "migrate a to dev0")
        mount.submit(0, "fill a:0+4K 7")
        assert mount.audit() == "ok"
        refuse.touch()
        if what == "truncate":
            fails(errno.EIO, lambda: os.truncate(path, PAGE))
        else:
            mount.submit(0, "migrate a to host")
        assert "the kernel refused" in mount.audit()
        assert path.read_bytes() == (b"\7" * PAGE + data[PAGE:])[: path.stat().st_size]
        refuse.unlink()
        path.unlink()
        assert wait_until(lambda: mount.values("stats")["regions"] == 0)
        assert mount.audit() == "ok"
