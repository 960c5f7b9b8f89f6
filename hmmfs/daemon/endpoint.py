"""The HTTP server of a mount's metrics, in threads of the daemon.

Its threads wait for the trio thread, which has the numbers; so the trio thread never waits for one
of them. Whatever a client does, it has LIMIT_S for it, and no more than MOST are served at once.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO, cast
from wsgiref.simple_server import WSGIRequestHandler

import trio
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from hmmfs.daemon.metrics import MountCollector
from hmmfs.errors import HmmfsError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from hmmfs.filesystem.tree import Tree

log = logging.getLogger(__name__)

LIMIT_S = 10.0
MOST = 16
SWITCH_S = 0.0005
POLL_S = 1.0  # how often connections are looked at that are too old
JOIN_S = 5.0  # nothing holds a thread up once its socket is shut down and trio's loop has ended


class Endpoint:
    """A port of this machine, 0 being any that is free. HmmfsError: it can't be had."""

    def __init__(self, host: str, port: int) -> None:
        self._server = _listen(host, port)
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        host, port = self._server.server_name, self._server.server_port
        return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"

    def serve(self, tree: Tree) -> None:
        """From now on; who connected before has waited for it. Call on the trio thread."""
        registry = CollectorRegistry()
        registry.register(MountCollector(tree, trio.lowlevel.current_trio_token()))
        metrics = make_wsgi_app(registry)

        def application(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            try:
                return list(metrics(environ, start))
            except trio.RunFinishedError:
                start("503 Service Unavailable", [("Content-Type", "text/plain")])
                return [b"The mount has ended.\n"]

        _make_way()
        self._server.set_app(application)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="metrics", daemon=True
        )
        self._thread.start()
        log.info("Metrics are on %s.", self.url)

    def close(self) -> None:
        """End the connections, their threads, and the server: never on the trio thread while its
        loop runs. A second time does nothing."""
        if self._thread:
            self._server.wake()
            self._server.shutdown()
            self._thread.join()
            self._thread = None
            if not self._server.hang_up(JOIN_S):
                log.error("A thread that serves metrics does not end.")
        self._server.server_close()


def _make_way() -> None:
    """A page of metrics is a long computation with many objects, and the trio thread has faults to
    serve meanwhile: it takes its turn sooner than Python's 5 ms, and the garbage collector, which
    stops everybody, no longer looks through what is there for good."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()


def _listen(host: str, port: int) -> _Server:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return _Server(family, address)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            sentence = (
                f"The port {port} of {host} is taken: choose another with metrics_port=, or 0 for "
                "any that is free."
            )
        elif number in (errno.EACCES, errno.EPERM):
            sentence = f"The port {port} takes root: choose one from 1024 on with metrics_port=."
        else:
            number = errno.EADDRNOTAVAIL
            sentence = (
                f"{host} is not an address of this machine. Give one with metrics_host=, such as "
                "127.0.0.1 or ::1."
            )
        raise HmmfsError(number, sentence) from None


class _Handler(WSGIRequestHandler):
    # The head goes out in one piece: an answer that is cut, as at the mount's end, has its length
    # with it or no head at all. By lines, half a head would pass for an empty success.
    wbufsize = 1 << 16

    def log_message(self, format: str, *args: object) -> None:
        """Not a line for each scrape."""

    def get_stderr(self) -> TextIO:
        """Where a defect's traceback goes."""
        return cast(TextIO, _Log())


class _Log:
    def write(self, text: str) -> None:
        if text.strip():
            log.error("%s", text.rstrip())

    def flush(self) -> None:
        """Written already."""


class _Server(ThreadingWSGIServer):
    """A thread for each connection. Both are kept account of."""

    def __init__(self, family: int, address: tuple[Any, ...]) -> None:
        self.address_family = family
        self._lock = threading.Lock()
        # Sockets that are not closed yet, with the time of their beginning. They are closed with
        # the lock held, or a number that has been given to another file could be shut down.
        self._open: dict[socket.socket, float] = {}
        self._threads_open: set[threading.Thread] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """As the library's, which also asks a name server what the address is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), daemon=True
        )
        with self._lock:
            self._open[request] = time.monotonic()
            full = len(self._open) > MOST
            if not full:
                self._threads_open.add(thread)
        if full:
            self.shutdown_request(request)
        else:
            thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._threads_open.discard(threading.current_thread())

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
            super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """The client left, or was made to."""
        log.debug("A scrape was broken off: %s.", sys.exc_info()[1])

    def service_actions(self) -> None:
        """Called by serve_forever now and then."""
        self._shut(time.monotonic() - LIMIT_S)

    def wake(self) -> None:
        """Have serve_forever look up, rather than at the end of its interval."""
        self.socket.shutdown(socket.SHUT_RDWR)

    def hang_up(self, patience_s: float) -> bool:
        """End every connection, once no more are accepted. Whether all threads have ended, too."""
        self._shut(float("inf"))
        end = time.monotonic() + patience_s
        with self._lock:
            threads = list(self._threads_open)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _shut(self, latest: float) -> None:
        """Those that began before: a read from them or a write to them is an error."""
        with self._lock:
            for request, began in self._open.items():
                if began < latest:
                    with contextlib.suppress(OSError):  # the client was faster
                        request.shutdown(socket.SHUT_RDWR)
