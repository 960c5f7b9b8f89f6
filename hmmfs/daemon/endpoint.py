"""The HTTP server of a mount's metrics: tasks of the daemon's trio loop.

h11 reads requests and writes answers. prometheus-client makes the page, in a thread: it is a long
computation, and the trio thread has faults to serve. Whatever a client does, it has LIMIT_S for it,
and no more than MOST are served at once.
"""

from __future__ import annotations

import errno
import gc
import logging
import socket
import sys
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import h11
import trio
from prometheus_client import CollectorRegistry, make_wsgi_app

from hmmfs.daemon.metrics import MountCollector
from hmmfs.errors import HmmfsError

if TYPE_CHECKING:
    from hmmfs.filesystem.tree import Tree

log = logging.getLogger(__name__)

LIMIT_S = 10.0
MOST = 16
SWITCH_S = 0.0005
BODY = 1 << 16  # bytes; none of the requests that are answered has any
CHUNK = 1 << 14  # bytes that are received at once; h11 refuses a longer head

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Answer(NamedTuple):
    """What a client gets."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Endpoint:
    """A port of this machine; 0 is any that is free. HmmfsError: it can't be had."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = _listen(host, port)
        name, number = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{name}]' if ':' in name else name}:{number}/metrics"

    async def serve(self, tree: Tree) -> None:
        """Answer until cancelled. A client that connected before has waited for it."""
        registry = CollectorRegistry()
        registry.register(MountCollector(tree))
        application = make_wsgi_app(registry)
        places, threads = trio.Semaphore(MOST), trio.CapacityLimiter(MOST)

        async def handle(stream: trio.SocketStream) -> None:
            try:
                places.acquire_nowait()
            except trio.WouldBlock:
                log.debug("A scrape is refused: %d are served.", MOST)
                return
            try:
                with trio.move_on_after(LIMIT_S):
                    await _converse(stream, application, threads)
            except (OSError, trio.BrokenResourceError) as error:
                log.debug("A scrape was broken off: %s.", error)
            finally:
                places.release()

        _make_way()
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self._socket))
        await trio.serve_listeners(handle, [listener])

    def close(self) -> None:
        """Give the port back, for an endpoint that does not serve. A second time does nothing."""
        self._socket.close()


def _make_way() -> None:
    """A page of metrics is a long computation with many objects, and the trio thread has faults to
    serve meanwhile: it takes its turn sooner than Python's 5 ms, and the garbage collector, which
    stops everybody, no longer looks through what is there for good."""
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, dualstack_ipv6=both)
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


async def _converse(
    stream: trio.SocketStream, application: Application, threads: trio.CapacityLimiter
) -> None:
    """One request and its answer. OSError, trio.BrokenResourceError: the client left."""
    connection = h11.Connection(h11.SERVER)
    request = None
    try:
        request = await _request(stream, connection)
    except h11.RemoteProtocolError as error:
        answer = _text(error.error_status_hint, f"This is not a request of HTTP: {error}.")
    else:
        if request is None:
            return
        answer = await trio.to_thread.run_sync(_made, application, request, limiter=threads)
    head = _head(connection, answer)
    # Head and body in one piece. An answer that is cut, as at the mount's end, says its length or
    # has no head; half a head would pass for an empty success.
    await stream.send_all(head if request and request.method == b"HEAD" else head + answer.body)


async def _request(stream: trio.SocketStream, connection: h11.Connection) -> h11.Request | None:
    """What the client asks for; None: nothing. Its body is read, for a socket that is closed with
    unread bytes resets the connection, and the answer may be lost by it.
    h11.RemoteProtocolError: this is not a request, or a long one."""
    request, length = None, 0
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            length += len(event.data)
            if length > BODY:
                raise h11.RemoteProtocolError("its body is too long", error_status_hint=413)
        elif event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(CHUNK))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return request


def _made(application: Application, request: h11.Request) -> Answer:
    """The application's answer. In a thread that trio waits for: what it takes from the trio thread
    is refused once its task is cancelled."""
    path, _, query = request.target.decode("latin-1").partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": request.method.decode(),
        "PATH_INFO": unquote(path),
        "QUERY_STRING": query,
    }
    for name, value in request.headers:
        environ["HTTP_" + name.decode().upper().replace("-", "_")] = value.decode("latin-1")
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]]) -> None:
        started.append((status, headers))

    try:
        body = b"".join(application(environ, start))
    except Exception:
        log.exception("A page of metrics can't be made.")
        return _text(500, "The page can't be made. The log of the mount says why.")
    status, headers = started[-1]
    return Answer(int(status.split()[0]), headers, body)


def _text(status: int, sentence: str) -> Answer:
    return Answer(status, [("Content-Type", "text/plain")], f"{sentence}\n".encode())


def _head(connection: h11.Connection, answer: Answer) -> bytes:
    headers = [
        *answer.headers,
        ("Content-Length", str(len(answer.body))),
        ("Date", formatdate(usegmt=True)),
        ("Connection", "close"),
    ]
    reason = HTTPStatus(answer.status).phrase.encode()
    response = h11.Response(status_code=answer.status, headers=headers, reason=reason)
    return connection.send(response) or b""
