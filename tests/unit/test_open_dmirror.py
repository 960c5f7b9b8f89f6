"""Which waits of a dmirror's ioctls are cut short."""

from __future__ import annotations

import errno
import io
import os
import signal
import threading

import pytest

from hmmfs.errors import HmmfsError
from hmmfs.filesystem import open_dmirror


@pytest.mark.parametrize("line", ["SigPnd", "ShdPnd"])
@pytest.mark.parametrize("number", [signal.SIGFPE, signal.SIGKILL, signal.SIGUSR1])
def test_only_a_signal_that_kills(monkeypatch: pytest.MonkeyPatch, line: str, number: int) -> None:
    pending = {"SigPnd": 0, "ShdPnd": 0, line: 1 << (number - 1)}
    status = "Name:\tcat\n" + "".join(f"{key}:\t{word:016x}\n" for key, word in pending.items())
    status += f"SigBlk:\t{1 << (signal.SIGKILL - 1):016x}\n"
    opened: list[str] = []

    def fake(path: str, mode: str) -> io.BytesIO:
        opened.append(path)
        return io.BytesIO(status.encode())

    monkeypatch.setattr(open_dmirror, "open", fake, raising=False)
    assert open_dmirror.is_killed(123) == (number == signal.SIGKILL)
    assert opened == ["/proc/123/status"]


def test_a_thread_that_is_there_and_one_that_is_gone() -> None:
    assert not open_dmirror.is_killed(os.getpid())
    assert open_dmirror.is_killed(2**22 + 1)  # past the largest number of a process


def test_the_program_of_a_thread() -> None:
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.extend(
            (threading.get_native_id(), open_dmirror.program_of(threading.get_native_id()))
        )
    )
    thread.start()
    thread.join()
    assert found[0] != os.getpid() == found[1]


def test_no_thread() -> None:
    with pytest.raises(HmmfsError, match="There is no thread 4194305 here") as caught:
        open_dmirror.program_of(4194305)  # one more than Linux has
    assert caught.value.errno == errno.ESRCH
