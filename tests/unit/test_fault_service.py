"""The fault service without a core: tasks that go wrong, and faults that come too late."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from hmmfs.device.launcher import Worker
from hmmfs.errors import HmmfsError
from hmmfs.memory import Core, Event, EventKind, Ioctl, JobResult
from hmmfs.memory.types import DeviceFault
from hmmfs.service import Events, FaultService, Reservations
from hmmfs.service import fault_service as module

PAGES = DeviceFault(b"\1" + bytes(63), bytes(64))


class Told:
    """Of the native core: what a test pushes, by an eventfd as there. `worker` runs on dev0."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._waiting: list[Event] = []
        self.worker = 1
        self.replies: list[tuple[int, int]] = []
        self.capacity = [1, 1]

    def push(self, kind: EventKind, **said: Any) -> None:
        event = {"cookie": 0, "ino": 5, "block": 0, "reason": 0, "first": 0, "pages": 0}
        self._waiting.append(Event(kind, **({**event, "result": JobResult(0)} | said)))
        os.eventfd_write(self._fd, 1)

    def event_fd(self) -> int:
        return self._fd

    def events(self) -> list[Event]:
        os.eventfd_read(self._fd)
        events, self._waiting = self._waiting, []
        return events

    def device_worker(self, node: int) -> int:
        return self.worker

    def refuse(self, event: Event) -> None:
        assert event.ioctl is not None
        self.replies.append((event.ioctl.unique, errno.EIO))

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def core() -> Iterator[Told]:
    events = Told()
    yield events
    events.close()


def broken(*_: Any) -> Any:
    raise ZeroDivisionError("of a test")


async def broken_later(*_: Any) -> None:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError("of a test")


class Idle:
    """Jobs, and none can be run."""

    idle = True

    async def run(self, job: Any) -> JobResult:
        broken()
        raise AssertionError


def run(events: Events, body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(events.run)
            with trio.fail_after(5):
                await body()
            nursery.cancel_scope.cancel()

    trio.run(main)


def serve(
    core: Told,
    body: Callable[[], Awaitable[None]],
    on_trace: Callable[[Event], Awaitable[None]] = broken_later,
) -> list[Any]:
    """Run a service whose every part is broken, but for those given; what was lost."""
    lost: list[Any] = []
    events = Events(core)  # type: ignore[arg-type]
    for kind in (EventKind.JOB, EventKind.INTERRUPT, EventKind.CLOSED):
        events.subscribe(kind, broken)
    for kind in (EventKind.LOW, EventKind.GONE):
        events.subscribe_task(kind, "A test", broken_later)
    events.subscribe_task(EventKind.TRACE, "A test", on_trace)
    events.subscribe_task(EventKind.IOCTL, "A test", broken_later, lambda event: core.refuse(event))
    FaultService(core, events, Idle(), None, None, None, on_lost=lambda *what: lost.append(what))  # type: ignore[arg-type]
    run(events, body)
    return lost


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (EventKind.JOB, {"cookie": 7}),
        (EventKind.LOW, {"node": 1}),
        (EventKind.TRACE, {}),
        (EventKind.GONE, {}),
        (EventKind.INTERRUPT, {}),
        (EventKind.CLOSED, {}),
        (EventKind.IOCTL, {"ioctl": Ioctl(3, 1, 2, b"", 0, 4)}),
        (
            EventKind.DEVICE_FAULT,
            {"device_fault": PAGES, "node": 1, "worker": 1, "result": JobResult(-11)},
        ),
        (99, {}),
    ],
)
def test_one_failure_is_one_failure(
    core: Told, kind: EventKind, said: dict[str, Any], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The next event is served; who waited for the one that failed is told."""
    monkeypatch.setattr(module.accounts, "faults_failed", broken)
    told = trio.Event()

    async def next_one(_: Event) -> None:
        told.set()

    async def body() -> None:
        core.push(kind, **said)
        await trio.testing.wait_all_tasks_blocked(0.01)
        service["on_trace"] = next_one
        core.push(EventKind.TRACE)
        await told.wait()

    service: dict[str, Any] = {"on_trace": broken_later}

    async def on_trace(event: Event) -> None:
        await service["on_trace"](event)

    with caplog.at_level(logging.ERROR):
        lost = serve(core, body, on_trace=on_trace)
    assert "Traceback" in caplog.text
    assert core.replies == ([(3, errno.EIO)] if kind == EventKind.IOCTL else [])
    found = [(node, worker, error.errno) for node, worker, error in lost]
    assert found == ([(1, 1, errno.EIO)] if kind == EventKind.DEVICE_FAULT else [])


def test_what_waits_is_answered_however_often_that_fails(
    core: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault whose service fails, at a time when no job can be submitted."""
    monkeypatch.setattr(module, "FAIL_PAUSE_S", 0.001)
    answered = trio.Event()
    tries = []

    class Short(Idle):
        async def run(self, job: Any) -> JobResult:
            tries.append(job.kind)
            if len(tries) < 5:
                raise HmmfsError(errno.ENOMEM, "There is no memory.")
            answered.set()
            return JobResult(0)

    class Regions:
        by_ino = staticmethod(broken)

    async def body() -> None:
        core.push(EventKind.FAULT, reason=1, pages=1)
        await answered.wait()

    events = Events(core)  # type: ignore[arg-type]
    FaultService(core, events, Short(), None, Regions(), None, on_lost=broken)  # type: ignore[arg-type]
    run(events, body)
    assert len(tries) == 5


def test_a_watermark_is_armed_again_whatever_happens() -> None:
    armed: list[int] = []
    policies = SimpleNamespace(lacking=broken, rearm=armed.append)
    core = SimpleNamespace(nodes=2, capacity=[1, 1])
    reservations = Reservations(core, None, None, policies, None, None)  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        trio.run(reservations.ahead, 1)
    assert armed == [1]


# ---- faults of a worker that has ended


def test_a_stale_fault_runs_no_job(core: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker has ended; the next one is not to be asked for anything, nor to be ended."""
    entered: list[Any] = []
    monkeypatch.setattr(module.accounts, "faults_failed", lambda *what: entered.append(what))
    core.worker = 2

    async def body() -> None:
        core.push(
            EventKind.DEVICE_FAULT,
            device_fault=PAGES,
            node=1,
            worker=1,
            result=JobResult(-errno.EBUSY),
        )
        while not entered:
            await trio.sleep(0.001)

    ((node, worker, error),) = serve(core, body)
    assert (node, worker, error.errno) == (1, 1, errno.ESRCH)


def test_a_stale_fault_ends_nobody() -> None:
    core = Core([16, 16])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        worker = Worker(core, 1, "/nowhere")
        worker._process, worker._number = process, 2
        worker.fail(HmmfsError(errno.EBUSY, "of the first"), 1)
        assert worker._failure is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        worker.fail(HmmfsError(errno.EBUSY, "of the second"), 2)
        assert process.wait(10) < 0
    core.close()
