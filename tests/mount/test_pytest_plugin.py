"""The fixtures that come with the package, in a pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hmmfs import pytest_plugin
from hmmfs.common import linux
from hmmfs.mounting import mounts as mounting

TESTS = """
import numpy as np
import hmmfs
from hmmfs import kernels, pytest_plugin

def test_mount(hmmfs_mount):
    a = hmmfs_mount.region("a", 1000, "float64")
    hmmfs_mount.dev0.launch(kernels.fill, hmmfs.writes(a), 2.5).wait()
    assert a.cpu.sum() == 2500

def test_factory(hmmfs_factory):
    one, two = hmmfs_factory(vram="4M"), hmmfs_factory(devices=3)
    assert (len(one.devices), len(two.devices)) == (1, 3)
    assert one.path != two.path

def test_skips(monkeypatch, request):
    monkeypatch.setattr(pytest_plugin, "unavailable", lambda: "there is no moon")
    request.getfixturevalue("hmmfs_mount")
"""


def test_fixtures(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 1 skipped" in done.stdout
    assert "there is no moon" in done.stdout


def test_why_there_is_no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /dev/fuse, or where it may be read and not written, and so on."""
    assert pytest_plugin.unavailable() == ""
    for refused in (os.R_OK, os.W_OK):
        monkeypatch.setattr(os, "access", lambda _, mode, no=refused: not mode & no)
        assert "/dev/fuse can't be opened" in pytest_plugin.unavailable()
    monkeypatch.setattr(os, "access", lambda _, mode: mode == os.R_OK | os.W_OK)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(mounting, "find_helper", lambda: None)
    assert "fusermount3 is not installed" in pytest_plugin.unavailable()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert pytest_plugin.unavailable() == ""

    def refuse() -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(linux, "open_userfaultfd", refuse)
    assert "no userfaultfd: Operation not permitted" in pytest_plugin.unavailable()
