"""The metrics' server by itself, with a dictionary for a tree."""

from __future__ import annotations

import gc
import gzip
import socket
import struct
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import trio

from hmmfs.daemon import endpoint as module
from hmmfs.daemon.endpoint import Endpoint
from hmmfs.filesystem.tree import Tree


class Files:
    """As much of a tree as is asked for."""

    def __init__(self) -> None:
        self.files: dict[tuple[bytes, ...], str] = {(b"stats",): "cpu_faults 7\n"}
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.readers: set[threading.Thread] = set()

    def read(self, *path: bytes) -> str | None:
        self.reached.set()
        self.readers.add(threading.current_thread())
        assert self.go_on.wait(60)
        return self.files.get(path)

    def names(self, *path: bytes) -> list[bytes]:
        n = len(path)
        return list({p[n]: None for p in self.files if p[:n] == path and len(p) > n})

    def programs(self) -> list[bytes]:
        return [name for name in self.names(b"state") if name.startswith(b"@")]


class Served:
    """An endpoint on a loop of its own, in a thread."""

    def __init__(self) -> None:
        self.tree = Files()
        self.endpoint = Endpoint("127.0.0.1", 0)
        self._ready, self._over = threading.Event(), trio.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        assert self._ready.wait(60)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.endpoint.serve, cast(Tree, self.tree))
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await self._over.wait()
            nursery.cancel_scope.cancel()

    def end_loop(self) -> None:
        self.begin_end()
        self._thread.join()

    def begin_end(self) -> None:
        self._token.run_sync_soon(self._over.set)

    def get(self, timeout: float = 60) -> str:
        with urllib.request.urlopen(self.endpoint.url, timeout=timeout) as answer:
            return str(answer.read().decode())

    def client(self) -> socket.socket:
        parts = urlsplit(self.endpoint.url)
        return socket.create_connection((parts.hostname, parts.port), timeout=60)


@pytest.fixture
def served() -> Iterator[Served]:
    interval = sys.getswitchinterval()
    made = Served()
    yield made
    sys.setswitchinterval(interval)
    gc.unfreeze()
    made.tree.go_on.set()
    if made._thread.is_alive():
        made.end_loop()
    made.endpoint.close()


def in_thread(call: Any) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, results


def test_keys_that_nobody_foresaw(served: Served) -> None:
    served.tree.files |= {
        (b"stats",): "new_thing 3\nnew_wait_ns 1500000000\nhost_odd 5\nname x\n\nlonely\n",
        (
            b"devices",
            b"dev0",
            b"stats",
        ): "odd 6\nin_cpu_fault 4\nshared_pages 2\nthrashed_pages 1\n",
        (b"devices", b"dev0", b"type"): "coherent recall\n",
        (b"devices", b"dev0", b"faults"): "total 9\nread 4\nwrite 5\nmigrated 8\npending 1\n",
        (b"devices", b"dev0", b"links", b"host"): "type pcie3\nlatency_ns 800\nbytes_in 4096\n",
        (b"regions", b"a"): "",
        (b"state", b"a", b"residency"): "pages_dev0 2\nother 1\n",
        (b"state", b"a", b"faults"): "cpu 3\ncpu_read 3\ndev0 2\ndev0_migrated 2\ndev0_shared 1\n",
        (b"thrashing",): "a\\040b\\134 dev0 sharing pages=12 seconds_ago=0.5\n# a comment\n",
    }
    lines = served.get().splitlines()
    for line in (
        "hmmfs_new_thing_total 3.0",
        "hmmfs_new_wait_seconds_total 1.5",
        'hmmfs_node_odd_total{node="host"} 5.0',
        'hmmfs_node_odd_total{node="dev0"} 6.0',
        'hmmfs_node_pages_by_trigger_total{direction="in",node="dev0",trigger="cpu_fault"} 4.0',
        'hmmfs_node_thrashed_pages_total{cause="sharing",node="dev0"} 2.0',
        'hmmfs_node_thrashed_pages_total{cause="capacity",node="dev0"} 1.0',
        'hmmfs_device_faults_total{device="dev0"} 9.0',
        'hmmfs_device_faults_by_access_total{access="write",device="dev0"} 5.0',
        'hmmfs_device_faults_by_outcome_total{device="dev0",outcome="migrated"} 8.0',
        'hmmfs_device_faults_pending{device="dev0"} 1.0',
        'hmmfs_link_info{device="dev0",peer="host",type="pcie3"} 1.0',
        'hmmfs_device_info{device="dev0",type="coherent recall"} 1.0',
        'hmmfs_link_latency_seconds{device="dev0",peer="host"} 8e-07',
        'hmmfs_link_bytes_total{device="dev0",direction="in",peer="host"} 4096.0',
        'hmmfs_region_resident_bytes{node="dev0",region="a"} 8192.0',
        'hmmfs_region_other_total{region="a"} 1.0',
        'hmmfs_region_faults_total{processor="cpu",region="a"} 3.0',
        'hmmfs_region_faults_by_outcome_total{outcome="migrated",processor="dev0",region="a"} 2.0',
        'hmmfs_region_thrashed_pages_total{cause="sharing",processor="dev0",region="a"} 1.0',
        'hmmfs_thrashing_pages{cause="sharing",device="dev0",region="a b\\\\134"} 12.0',
    ):
        assert line in lines, line


def test_numbers_are_taken_on_the_trio_thread(served: Served) -> None:
    served.get()
    assert served.tree.readers == {served._thread}


def test_the_end_closes_connections_of_silent_clients(served: Served) -> None:
    with served.client() as silent, served.client() as half:
        half.sendall(b"GET /")
        assert "cpu_faults" in served.get()  # those before are being served by now
        served.end_loop()
        assert silent.recv(1) == half.recv(1) == b""


def test_after_the_loop_has_ended(served: Served) -> None:
    served.end_loop()
    with pytest.raises(urllib.error.URLError, match="refused"):
        served.get()


def test_the_loop_ends_meanwhile(served: Served) -> None:
    """Of two scrapes, one holds the loop while it ends; the other waits for its turn. Neither
    hangs."""
    served.tree.go_on.clear()
    scrapes = [in_thread(served.get) for _ in range(2)]
    assert served.tree.reached.wait(60)
    served.begin_end()
    served.tree.go_on.set()
    for thread, _ in scrapes:
        thread.join(60)
    served._thread.join(60)
    assert not served._thread.is_alive()
    for _, results in scrapes:
        (result,) = results
        if isinstance(result, str):
            assert "cpu_faults" in result
        else:
            assert isinstance(result, ConnectionError | urllib.error.URLError), result


def test_slow_clients_are_hung_up_on(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not prolong it."""
    monkeypatch.setattr(module, "LIMIT_S", 0.3)
    with served.client() as client:
        client.sendall(b"GET /metrics")
        client.settimeout(0.05)

        def dawdle() -> None:
            while True:
                try:
                    if not client.recv(1):
                        raise ConnectionResetError
                except TimeoutError:
                    client.sendall(b"x")

        with pytest.raises(ConnectionError):
            dawdle()
    assert "cpu_faults" in served.get()


def test_no_more_than_some_at_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_S", 1000)
    clients = [served.client() for _ in range(module.MOST)]
    try:
        with served.client() as one_more:
            assert one_more.recv(1) == b""
    finally:
        for client in clients:
            client.shutdown(socket.SHUT_WR)
    for client in clients:  # the server has noticed: the places are free again
        assert client.recv(1) == b""
        client.close()
    assert "cpu_faults" in served.get()


def converse(served: Served, request: bytes) -> tuple[bytes, bytes]:
    """The head and the body of the answer."""
    with served.client() as client:
        client.sendall(request)
        said = b""
        while piece := client.recv(1 << 16):
            said += piece
    head, _, body = said.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize(
    ("request_", "status", "says"),
    [
        (b"HELO mail\r\n\r\n", 400, b"This is not a request of HTTP: "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, b"This is not"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, b"This is not a request of HTTP: Missing mandatory Host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, b"This is not"),
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n", 431, b"This is not"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, b"This is not"),
        (b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 405, b"# HTTP 405"),
        (b"DELETE /metrics HTTP/1.0\r\n\r\n", 405, b"# HTTP 405"),
        (
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n" + b"a" * 66000,
            413,
            b"This is not",
        ),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200, b"# HELP hmmfs_build_info"),
        (b"GET /%ff?name[]=%ff HTTP/1.0\r\nAccept: \xff\r\n\r\n", 200, b""),
    ],
)
def test_requests_right_and_wrong(
    served: Served, request_: bytes, status: int, says: bytes
) -> None:
    """Each gets its status, and a body of the length that the head promises."""
    head, body = converse(served, request_)
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert body.startswith(says)
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert head.lower().count(b"content-length:") == 1
    assert b"\r\nConnection: close" in head


def test_head_has_no_body(served: Served) -> None:
    head, body = converse(served, b"HEAD /metrics HTTP/1.0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405 ")
    assert body == b""


def test_compressed(served: Served) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n"
    head, body = converse(served, request)
    assert b"\r\nContent-Encoding: gzip\r\n" in head
    assert b"cpu_faults" in gzip.decompress(body)


def test_a_client_that_leaves_does_not_end_others(served: Served) -> None:
    """A connection that is reset while its page is made, and one that sends nothing."""
    served.client().close()
    served.tree.go_on.clear()
    with served.client() as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert served.tree.reached.wait(60)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    served.tree.go_on.set()
    assert "cpu_faults" in served.get()


def test_a_defect_is_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.tree.files = None  # type: ignore[assignment]
    with pytest.raises(urllib.error.HTTPError, match="500") as caught:
        served.get()
    caught.value.close()
    assert "Traceback" in caplog.text


def test_close_twice_and_before_serving() -> None:
    for _ in range(2):
        endpoint = Endpoint("127.0.0.1", 0)
        endpoint.close()
        endpoint.close()
