"""The mount of an ordinary user: through fusermount3, and with no privilege of the kernel's."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import connection, let_others_reach, takes_root

NOBODY = 65534
SOURCE = Path(__file__).parents[2]

pytestmark = takes_root("only root can become an ordinary user")


def as_nobody(tmp_path: Path, script: str) -> str:
    """What a shell script prints that an ordinary user runs in tmp_path, where `mnt` is a directory
    and `hmmfs` a command: in a mount namespace where anybody may open /dev/fuse and fusectl is not
    mounted, as in many a container."""
    fusermount = shutil.which("fusermount3")
    assert fusermount
    assert os.stat(fusermount).st_mode & stat.S_ISUID
    let_others_reach(tmp_path)
    (tmp_path / "mnt").mkdir()
    for path in (tmp_path, tmp_path / "mnt"):
        os.chown(path, NOBODY, NOBODY)
    places = {
        "python": sys.base_prefix,
        "site": sysconfig.get_path("purelib"),
        "source": str(SOURCE),
    }
    # Bound into a place of the user's, since root's python and checkout may be closed to others.
    binds = "\n".join(
        f"mkdir {tmp_path}/{name}; mount --bind {path} {tmp_path}/{name}"
        for name, path in places.items()
    )
    python = f"{tmp_path}/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
    (tmp_path / "script").write_text(f'hmmfs() {{ {python} -m hmmfs "$@"; }}\n{script}')
    root_does = f"""
        set -e
        {binds}
        mknod -m 666 {tmp_path}/fuse c 10 229
        mount --bind {tmp_path}/fuse /dev/fuse
        if mountpoint -q /sys/fs/fuse/connections; then umount -l /sys/fs/fuse/connections; fi
        export PYTHONHOME={tmp_path}/python PYTHONPATH={tmp_path}/source:{tmp_path}/site
        export LD_LIBRARY_PATH={tmp_path}/python/lib HOME={tmp_path} TMPDIR=/tmp
        export PYTHON={python}
        cd {tmp_path}
        exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups sh -e script
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", root_does], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert connection(tmp_path / "mnt") is None
    return done.stdout


def test_it_works(tmp_path: Path) -> None:
    said = as_nobody(
        tmp_path,
        """
        hmmfs mount mnt -o vram=4M
        echo hello > mnt/regions/a
        hmmfs submit mnt dev0 "fill a:0+1 74"
        cat mnt/regions/a
        stat -c %u mnt/regions/a
        # A kernel, with userfaultfd for user code alone: nobody has more without privilege.
        hmmfs launch mnt dev0 hmmfs.kernels:fill writes:a:uint8 33
        cat mnt/regions/a; echo
        echo density > mnt/devices/dev0/policy/prefetch
        grep ^faults mnt/devices/dev0/stats
        hmmfs umount mnt
        # Coherent memory, by recall: nobody may have the kernel pass files through.
        hmmfs mount mnt -o vram=4M,type=coherent
        cat mnt/devices/dev0/type
        echo hello > mnt/regions/a
        hmmfs launch mnt dev0 hmmfs.kernels:fill writes:a:uint8 34
        cat mnt/regions/a; echo
        hmmfs umount mnt
        if mountpoint -q mnt; then echo still there; fi
        """,
    )
    assert said == f"Jello\n{NOBODY}\n!!!!!!\nfaults 1\ncoherent recall\n" + 6 * '"' + "\n"


# Loads and stores for ever on a page that a device takes for ever.
USES = """
import mmap, os, sys, time
name, how = sys.argv[1:]
fd = os.open("mnt/regions/a", os.O_RDWR)
submit = os.open("mnt/devices/dev0/submit", os.O_RDWR)
if how == "maps":
    memory = mmap.mmap(fd, 1 << 20)
open(name, "w").close()
while how == "waits":
    time.sleep(0.01)
while True:
    if how == "maps":
        memory[0] = (memory[0] + 1) & 255
    else:
        os.pwrite(fd, b"x", 5)
    if name == "one":
        os.write(submit, b"fill a 7")
"""


@pytest.mark.parametrize("how", ["maps", "writes", "waits"])
@pytest.mark.parametrize("poll", [0, 50])
def test_it_ends_while_programs_use_it(tmp_path: Path, how: str, poll: int) -> None:
    """Nobody may abort the connection there."""
    (tmp_path / "uses.py").write_text(USES)
    said = as_nobody(
        tmp_path,
        f"""
        hmmfs mount mnt -o vram=4M,poll_us={poll},log=log
        truncate -s 1M mnt/regions/a
        daemon=$(sed -n 's/^pid //p' mnt/stats)
        $PYTHON uses.py one {how} 2> /dev/null & one=$!
        $PYTHON uses.py two {how} 2> /dev/null & two=$!
        until [ -e one ] && [ -e two ]; do sleep 0.01; done
        kill $daemon
        for n in $(seq 1000); do kill -0 $daemon 2> /dev/null || break; sleep 0.01; done
        if kill -0 $daemon 2> /dev/null; then echo the daemon goes on; kill $one $two; fi
        {"kill $one" if how == "waits" else ""}
        wait $one && echo the first goes on
        # It may have what it needs already: pages that it mapped stay its own.
        kill $two || true
        wait $two || true
        grep -v INFO log | sed 's/.*: Programs/Programs/'
        """,
    )
    assert "goes on" not in said, said
    assert said.startswith("Programs still use "), said
    assert len(said.splitlines()) == 1, said


OWN = """
import ctypes, mmap, os, time
memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:3] = b"abc"
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print(f"{os.getpid()}@{address:#x}", flush=True)
while memory[-1] != 98:
    time.sleep(0.01)
"""


def test_memory_of_programs(tmp_path: Path) -> None:
    """It does not move: operations reach it where it is, kernels can't use it and say so."""
    (tmp_path / "own.py").write_text(OWN)
    said = as_nobody(
        tmp_path,
        """
        hmmfs mount mnt -o vram=4M,log=log
        hmmfs run mnt -- $PYTHON own.py > place 2> warning & program=$!
        until [ -s place ]; do sleep 0.01; done
        place=$(cat place)
        hmmfs submit mnt dev0 "read $place+3"
        hmmfs launch mnt dev0 hmmfs.kernels:fill writes:$place+1048576:uint8 33 2>&1 || true
        hmmfs submit mnt dev0 "fill $place+1048576 98"
        wait $program
        sed 's/ (.*//' warning
        hmmfs umount mnt
        """,
    )
    lines = said.splitlines()
    assert lines[0] == "616263"
    assert lines[1].startswith("hmmfs: launch: The memory of process ")
    assert "with CAP_SYS_PTRACE, or use operations such as read and fill." in lines[1]
    assert lines[2:] == ["hmmfs run: Devices can read and write its memory but not migrate it"]
