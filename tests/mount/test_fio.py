"""fio verifies what it wrote through mmap while a device keeps taking the pages."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from conftest import Mount


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is not installed: apt-get install fio")
def test_fio_verifies(mount: Mount) -> None:
    path = mount.region("a", 16 << 20)
    command = [
        "fio", "--name=v", f"--filename={path}", "--ioengine=mmap", "--rw=randwrite", "--bs=4k",
        "--size=16M", "--verify=crc32c", "--verify_fatal=1", "--loops=4", "--output-format=json",
        "--allow_file_create=0", "--randseed=7", "--verify_state_save=0",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        turns = 0
        while child.poll() is None:
            mount.submit(turns % 2, "migrate a to dev0" if turns % 2 else "checksum a")
            turns += 1
        assert child.stdout is not None
        said = child.stdout.read()
    assert child.returncode == 0, said
    assert json.loads(said[said.index("{") :])["jobs"][0]["error"] == 0
    assert turns > 2
    assert mount.values("devices/dev0/stats")["pages_in"] > 0
