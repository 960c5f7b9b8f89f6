"""What the daemon takes for the answer of a worker, whose process runs its user's code."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from hmmfs.device.launcher import Worker
from hmmfs.errors import HmmfsError


class Forgetful:
    """A core that writes down which windows it is to forget."""

    def __init__(self, log: list[tuple[str, int]]) -> None:
        self.log = log

    def device_unmap(self, node: int, ino: int) -> None:
        self.log.append(("forget", ino))


def test_all_windows_are_forgotten_before_one_is_unmapped() -> None:
    """Unmapping may wait for a WRITE that waits for a mover. That mover must not wait for the
    worker, in whichever window."""
    log: list[tuple[str, int]] = []
    worker = Worker(Forgetful(log), 1, "/mnt/regions")  # type: ignore[arg-type]

    async def ask(message: tuple[str, int], fd: int | None = None) -> None:
        log.append(message)

    worker._ask = ask  # type: ignore[assignment, method-assign]
    worker._windows = {5: 1, 7: 0, 9: 1}
    trio.run(worker._unmap_all)
    assert log == [(what, ino) for what in ("forget", "unmap") for ino in (5, 7, 9)]
    assert not worker._windows


def test_the_end_of_a_launch() -> None:
    assert Worker._ended([["done", b"7"], True, True]) == (("done", b"7"), True, True)
    assert Worker._ended([["done", b"7"], True, False]) == (("done", b"7"), True, False)
    said = (("raised", "a", "b"), False, False)
    assert Worker._ended(said) == (("raised", "a", "b"), False, False)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        7,
        "done",
        (),
        ("done", b"", False),
        (("done",), False, False),
        (("done", "text"), False, False),
        (("done", b""), 5, False),
        (("done", b""), [3], False),
        (("done", b""), [True], False),
        (("done", b""), [[1]], False),
        (("done", b""), False),
        (("done", b""), False, 1),
        (("done", b""), [], False),
        (("done", b""), 1, False),
        (("done", b"", b""), False, False),
        (("raised", 1, None), False, False),
        (("raised", "a"), False, False),
        (("other", b""), False, False),
        {"done": b""},
    ],
)
def test_what_is_no_answer(answer: Any) -> None:
    with pytest.raises(HmmfsError, match="new worker"):
        Worker._ended(answer)
