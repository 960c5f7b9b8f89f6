"""A program's pages that can't be taken from it stay, and those around them lose nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import Mount, moves_programs

pytestmark = moves_programs

# 16 pages, each filled with its number, that begin a block. Prints which of them a device has after
# it was asked for all, and which hold what they should then.
PROGRAM = r"""
import ctypes, fcntl, os, struct, sys

PAGE, BLOCK, READ = 4096, 2 << 20, 1
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

def area(length):
    start = libc.mmap(None, length + BLOCK, 3, 0x22, -1, 0)
    return -(-start // BLOCK) * BLOCK

def ioctl(number, address, pages):
    command = bytearray(struct.pack("<5Q", address, answers, pages, 0, 0))
    try:
        fcntl.ioctl(device, 0xC0284800 + number, command, True)
    except OSError:
        pass

def pin(address):
    ring = libc.syscall(425, 4, ctypes.create_string_buffer(120))
    if libc.syscall(427, ring, 0, struct.pack("QQ", address, PAGE), 1):
        print("no io_uring", end="")
        sys.exit()

def lock(address):
    libc.mprotect(start, 16 * PAGE, READ)
    libc.mprotect(start, 4 * PAGE, 3)
    if libc.mlock(address, PAGE):
        sys.exit("mlock")

device = os.open("/dev/hmm_dmirror0", os.O_RDWR)
answers, start = area(PAGE), area(BLOCK)
for page in range(16):
    ctypes.memset(start + page * PAGE, page + 1, PAGE)
{"pinned": pin, "locked": lock}[sys.argv[1]](start + 5 * PAGE)
ioctl(2, start, 16)
ioctl(4, start, 16)
print("".join("d" if state & 0x20 else "h" for state in ctypes.string_at(answers, 16)), end=" ")
right = (ctypes.string_at(start + n * PAGE, PAGE) == bytes([n + 1]) * PAGE for n in range(16))
print("".join("y" if is_right else "n" for is_right in right), end="")
"""


@pytest.mark.parametrize("why", ["pinned", "locked"])
def test_pages_that_stay(mount: Mount, why: str) -> None:
    """A buffer of io_uring, which can't be moved; locked read-only memory, which can't be dropped,
    behind some that can."""
    command = ["run", str(mount.path), "--", sys.executable, "-c", PROGRAM, why]
    done = subprocess.run(
        [sys.executable, "-m", "hmmfs", *command], capture_output=True, text=True, timeout=20
    )
    assert done.stderr == ""
    if done.stdout == "no io_uring":
        pytest.skip(done.stdout)
    assert done.stdout == "dddddhdddddddddd yyyyyyyyyyyyyyyy"
