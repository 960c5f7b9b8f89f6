"""Kernels that write to their worker's sockets, or close them: the launch fails with a sentence,
the daemon goes on, and the next launch gets a new worker."""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from conftest import Mount

import hmmfs

HEADER, REQUEST = "<Q", "<QQQq"  # of messages to the daemon's Python, and of native/worker/remote.h


def channel() -> int:
    return int(sys.argv[1])


def mapper() -> int:
    return int(sys.argv[2])


def answers(answer: object) -> None:
    data = pickle.dumps(answer)
    os.write(channel(), struct.pack(HEADER, len(data)) + data)
    time.sleep(60)


def refuses_what_overflows() -> None:
    for offset in (2**64 - 1, 2**64 - 4096, 2**64 - (2 << 20), 2**63, 2**44):
        os.write(mapper(), struct.pack(REQUEST, 1 << 32, offset, 4096, -1))
    time.sleep(60)


def promises_much() -> None:
    os.write(channel(), struct.pack(HEADER, 1 << 62))
    time.sleep(60)


def answers_junk() -> None:
    os.write(channel(), struct.pack(HEADER, 100) + b"\xff" * 100)
    time.sleep(60)


def drops_windows_that_are_none() -> None:
    answers((("done", b""), [1, 2, 1 << 32]))


def sends_descriptors() -> None:
    with socket.socket(fileno=os.dup(channel())) as to:
        for _ in range(50):
            socket.send_fds(to, [struct.pack(HEADER, 1 << 63)], [0, 1, 2])
    time.sleep(60)


def closes_all() -> None:
    os.close(channel())
    os.close(mapper())
    signal.pause()


def scribbles() -> None:
    rng = random.Random(13)
    while True:
        with_length = rng.random() < 0.5
        junk = rng.randbytes(rng.choice([1, 8, 32, 40, 500]))
        os.write(mapper(), junk[:32] if with_length else junk)
        os.write(channel(), (struct.pack(HEADER, len(junk)) if with_length else b"") + junk)


KERNELS: list[Callable[[], None]] = [
    refuses_what_overflows,
    promises_much,
    answers_junk,
    drops_windows_that_are_none,
    sends_descriptors,
    closes_all,
    scribbles,
]


def add(a: np.ndarray) -> int:
    a += 1
    return int(a[-1])


def test_a_kernel_that_spoils_its_worker_ends_alone(mount: Mount) -> None:
    machine = hmmfs.connect(mount.path)
    region = machine.region("a", 4 << 20)
    descriptors = len(os.listdir(f"/proc/{mount.pid}/fd"))
    for n, kernel in enumerate(KERNELS, 1):
        with pytest.raises(OSError, match="worker") as caught:
            machine.dev0.launch(kernel).wait()
        assert caught.value.errno == errno.EREMOTEIO, (kernel, caught.value)
        assert machine.dev0.launch(add, hmmfs.updates(region)).wait() == n, kernel
    assert machine.audit() == "ok"
    assert len(os.listdir(f"/proc/{mount.pid}/fd")) <= descriptors + 20


def answers_twice(a: np.ndarray) -> None:
    """What comes after the answer is not the answer to the next question."""
    data = pickle.dumps((("done", pickle.dumps(None)), False, False))
    os.write(channel(), struct.pack(HEADER, len(data)) + data)


def test_an_answer_too_many_is_not_the_next_ones(mount: Mount) -> None:
    machine = hmmfs.connect(mount.path)
    a, b = machine.region("a", 4096), machine.region("b", 4096)
    machine.dev0.launch(answers_twice, hmmfs.reads(a)).wait()
    for n in range(1, 4):
        assert machine.dev0.launch(add, hmmfs.updates(b)).wait() == n
    assert machine.audit() == "ok"
