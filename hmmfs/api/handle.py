"""A launch or another operation under way, waited for by threads, trio or asyncio."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import os
import pickle
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import sniffio

from hmmfs.common import plain
from hmmfs.errors import HmmfsError
from hmmfs.wire.calls import transact


class Handle:
    """A launch or another operation under way. Awaitable in trio and in asyncio. It is of the
    process that made it: in another it is refused, by TypeError."""

    # device: its directory; line: the operation, empty: there is nothing to do
    def __init__(self, device: Path, line: str, name: str, *, kernel: bool = False) -> None:
        self._device, self._name, self._kernel = device, name, kernel
        self._answer = ""
        self._trusted = False
        self._error: BaseException | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()  # of the two below
        self._ended = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._thread = threading.Thread(target=self._run, args=(line,), daemon=True)
        self._thread.start()

    def _run(self, line: str) -> None:
        try:
            if line:
                answer, self._trusted = transact(self._device, line, self._name)
                self._answer = answer.rstrip("\n")
        except BaseException as error:
            self._error = error
        with self._lock:
            self._ended = True
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_finish, future)

    @property
    def done(self) -> bool:
        self._check()
        return self._ended

    def exception(self) -> BaseException | None:
        """Waits; what `wait` would raise, or None."""
        self._check()
        self._thread.join()
        return self._error

    def wait(self, timeout: float | None = None) -> Any:
        """What the kernel returned. KernelError: it raised. TimeoutError: it still runs, after
        `timeout` seconds. HmmfsError with ECANCELED: it was cancelled; ETIME: over its limit;
        EPERM: the mount is another user's, and what the kernel returned is not plain."""
        self._check()
        self._thread.join(timeout)
        if not self._ended:
            raise TimeoutError(f"Not done after {timeout:g} s. Wait longer, or cancel it.")
        if self._error is not None:
            raise self._error
        return self._opened() if self._kernel else self._answer

    def _opened(self) -> Any:
        """What a kernel returned. A pickle is code of the user whose mount it is."""
        data = base64.b64decode(self._answer)
        if self._trusted:
            return pickle.loads(data)
        try:
            return plain.loads(data)
        except plain.NotPlain as what:
            raise HmmfsError(
                errno.EPERM,
                f"The kernel returned {what}, and {self._device.parent.parent} is a mount of "
                "another user, whose code that could run: return plain numbers, text, lists or "
                "dicts.",
            ) from None

    def progress(self) -> float:
        """The share of its pages that have moved. A kernel can't tell: 0 until it is done."""
        if self.done:
            return 0.0 if self._error is not None else 1.0
        for line in (self._device / "queue").read_text().splitlines():
            name, _, _, done, total = line.split()
            if name == self._name and int(total):
                return int(done) / int(total)
        return 0.0

    def cancel(self) -> None:
        """End it, running or not; `wait` then raises. Done already: nothing happens."""
        while not self.done:
            try:
                transact(self._device, f"cancel {self._name}", None)
            except HmmfsError as error:
                if error.errno != errno.ENOENT:
                    raise
                self._thread.join(0.001)  # on its way there, or from there
            else:
                return

    # ---- event loops

    def __await__(self) -> Generator[Any, Any, Any]:
        try:
            library = sniffio.current_async_library()
        except sniffio.AsyncLibraryNotFoundError:
            library = ""
        if library == "asyncio":
            return self._in_asyncio()
        if library == "trio":
            import trio

            return trio.to_thread.run_sync(self.wait, abandon_on_cancel=True).__await__()
        raise TypeError("A handle is awaited in trio or in asyncio: elsewhere call its wait().")

    def _in_asyncio(self) -> Generator[Any, Any, Any]:
        """Without a thread of the loop's pool, whose end would wait for a kernel that nobody
        awaits any more."""
        self._check()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._ended:
                future.set_result(None)
            else:
                self._waiting.append((loop, future))
        yield from future
        return self.wait()

    # ---- other processes

    def _check(self) -> None:
        if os.getpid() != self._pid:  # a fork, in which the thread that would hear of it is not
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError(
            "A handle is of the process that made it. Wait there, and send on what wait() returns."
        )

    def __reduce__(self) -> NoReturn:
        self._refuse()

    def __copy__(self) -> Handle:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Handle:
        return self


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():  # or cancelled
        future.set_result(None)
