"""The Prometheus endpoint of real mounts, read by Prometheus's own parsers."""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

import hmmfs
from tests.mount.conftest import (
    HMMFS,
    Mount,
    MountFactory,
    connection,
    ended,
    run,
    takes_root,
    wait_until,
)

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Sample = tuple[str, frozenset[tuple[str, str]]]
PAGE = 4096


def url(mount: Mount) -> str:
    return re.findall(r"Metrics are on (\S+)\.$", mount.log.read_text(), re.M)[0]


def address(mount: Mount) -> tuple[str, int]:
    parts = urlsplit(url(mount))
    return str(parts.hostname), int(parts.port or 0)


def families(mount: Mount) -> list[Metric]:
    with urllib.request.urlopen(url(mount), timeout=60) as answer:
        return list(parse_text(answer.read().decode()))


def scrape(mount: Mount) -> dict[Sample, float]:
    """Each sample by its name and labels. There is one for each."""
    samples = [sample for family in families(mount) for sample in family.samples]
    found = {(one.name, frozenset(one.labels.items())): one.value for one in samples}
    assert len(found) == len(samples)
    return found


def key(name: str, **labels: str) -> Sample:
    return (f"hmmfs_{name}", frozenset(labels.items()))


@pytest.fixture
def measured(mount_factory: MountFactory) -> Mount:
    return mount_factory(vram="8M", devices=2, host="64M", metrics_port=0)


def work(mount: Mount) -> None:
    """Moves in all directions, evictions, faults of programs."""
    data = mount.region("a", 16 << 20)
    data.write_bytes(os.urandom(16 << 20))
    mount.region("b", 1 << 20)
    mount.submit(0, "checksum a")
    mount.submit(1, "fill b 7")
    mount.submit(0, "migrate a:0+2M to dev1")
    data.read_bytes()
    mount.region("c", 1 << 20).write_bytes(os.urandom(1 << 20))
    mount.submit(1, "checksum c")


def test_values_are_those_of_the_files(measured: Mount) -> None:
    work(measured)
    found = scrape(measured)
    stats = measured.values("stats")
    assert found[key("cpu_faults_total")] == stats["cpu_faults"] > 0
    assert found[key("requested_bytes_total", access="write")] == stats["written_bytes"] > 0
    assert found[key("recalled_pages_total")] == stats["recalled_pages"] > 0
    assert found[key("node_capacity_bytes", node="host")] == 64 << 20
    assert found[key("cached_bytes")] == stats["cached_pages"] * PAGE
    assert found[key("regions")] == 3
    for number in range(2):
        name = f"dev{number}"
        node = measured.values(f"devices/{name}/stats")
        used = measured.path / f"devices/{name}/vram/used"
        assert found[key("node_used_bytes", node=name)] == int(used.read_text())
        for direction in ("in", "out"):
            assert (
                found[key("node_pages_total", node=name, direction=direction)]
                == node[f"pages_{direction}"]
                > 0
            )
            assert found[
                key("node_copy_seconds_total", node=name, direction=direction)
            ] == pytest.approx(node[f"copy_{direction}_ns"] / 1e9)
        assert found[key("node_evicted_pages_total", node=name)] == node["evicted_pages"]
        for why in ("cpu_fault", "device_fault", "prefetch", "eviction", "operation"):
            labels = {"node": name, "direction": "out", "trigger": why}
            assert found[key("node_pages_by_trigger_total", **labels)] == node[f"out_{why}"]
        faults = measured.values(f"devices/{name}/faults")
        assert found[key("device_faults_total", device=name)] == faults["total"]
        link = (measured.path / f"devices/{name}/links/host").read_text()
        copied = found[key("link_bytes_total", device=name, peer="host", direction="in")]
        assert f"\nbytes_in {copied:.0f}\n" in link
        moved = {"from": "host", "to": name}
        assert found[key("moved_pages_total", **moved)] == stats[f"pages_host_{name}"]
        assert found[key("copied_bytes_total", **moved)] == stats[f"bytes_host_{name}"] == copied
        assert found[key("link_info", device=name, peer="host", type="pcie3")] == 1
        assert found[key("device_info", device=name, type="private")] == 1
    assert found[key("node_evicted_pages_total", node="dev0")] > 0
    for region in "abc":
        there = measured.residency(region)
        for name in ("host", "dev0", "dev1"):
            resident = found[key("region_resident_bytes", region=region, node=name)]
            assert resident == there[f"pages_{name}"] * PAGE
        assert found[key("region_size_bytes", region=region)] == there["size"]
        assert found[key("region_kept_bytes", region=region)] == there["kept"] * PAGE
        dirty = found[key("region_dirty_bytes", region=region, owner="device")]
        assert dirty == there["dirty_device"] * PAGE
        evicted = found[key("region_evicted_pages_total", region=region, processor="dev0")]
        assert evicted == measured.values(f"state/{region}/faults")["dev0_evicted"]
    assert measured.residency("b")["dirty_device"] > 0
    assert measured.residency("c")["kept"] > 0


def touch(a: np.ndarray[Any, Any]) -> None:
    for block in range(0, len(a), 2 << 20):
        a[block] += 1


def test_thrashing(mount_factory: MountFactory) -> None:
    """What cat says: which region, on which device, and why."""
    measured = mount_factory(vram="4M", prefetch="block", metrics_port=0)
    name = "two words"
    with hmmfs.connect(measured.path) as machine:
        region = machine.region(name, 6 << 20)
        for _ in range(2):
            machine.dev0.launch(touch, hmmfs.updates(region)).wait()
    thrashing = (measured.path / "thrashing").read_text()
    found = scrape(measured)
    lines = re.findall(r"^two\\040words (dev0) (\w+) pages=(\d+) ", thrashing, re.M)
    assert lines
    for device, cause, pages in lines:
        sample = key("thrashing_pages", region=name, device=device, cause=cause)
        assert found[sample] == int(pages)


def test_nothing_is_missing(measured: Mount) -> None:
    """As many samples as the files have values; and the version."""
    work(measured)
    found = scrape(measured)
    patterns = ("stats", "devices/*/stats", "devices/*/faults", "devices/*/links/*")
    patterns += ("devices/*/vram/visible", "devices/*/type", "state/*/residency", "state/*/faults")
    lines = [
        line
        for pattern in patterns
        for path in measured.path.glob(pattern)
        for line in path.read_text().splitlines()
    ]
    thrashing = [name for name, _ in found if name == "hmmfs_thrashing_pages"]
    assert len(found) - len(thrashing) == len(lines) + 1


def test_families_are_sound(measured: Mount) -> None:
    """Names, units and words as Prometheus wants them."""
    work(measured)
    for family in families(measured):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge")
        assert re.fullmatch("hmmfs_[a-z][a-z0-9_]*", family.name)
        assert not re.search("_(ns|us|ms|pages_bytes)(_|$)", family.name)
        for sample in family.samples:
            assert sample.name == family.name + ("_total" if family.type == "counter" else "")


def test_openmetrics(measured: Mount) -> None:
    work(measured)
    request = urllib.request.Request(url(measured), headers={"Accept": OPENMETRICS})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        found = {family.name: family for family in parse_openmetrics(answer.read().decode())}
    assert found["hmmfs_build"].type == "info"
    assert found["hmmfs_cpu_faults"].samples[0].value == measured.values("stats")["cpu_faults"]


def test_a_part(measured: Mount) -> None:
    with urllib.request.urlopen(url(measured) + "?name[]=hmmfs_regions", timeout=60) as answer:
        assert [family.name for family in parse_text(answer.read().decode())] == ["hmmfs_regions"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain", "plain"),
        (b'"quo"ted\'', '"quo"ted\''),
        (b"two\nlines", "two\nlines"),
        (b"back\\slash\\n", r"back\134slash\134n"),
        (b"\\377", r"\134377"),
        (b"\xff\xfe", r"\377\376"),
        (b"\xed\xa0\x80", r"\355\240\200"),
        (b'{a="b"} 1 # \r\t', '{a="b"} 1 # \r\t'),
        ("größe-面".encode(), "größe-面"),
    ],
)
def test_any_name(measured: Mount, name: bytes, shown: str) -> None:
    with open(os.fsencode(measured.regions) + b"/" + name, "wb") as file:
        file.truncate(12345)
    assert scrape(measured)[key("region_size_bytes", region=shown)] == 12345


def test_many_regions(measured: Mount) -> None:
    """More than are read in one go; those removed are gone."""
    for number in range(150):
        measured.region(f"r{number}", PAGE * (number + 1))
    os.unlink(measured.regions / "r70")
    found = scrape(measured)
    sizes = {
        dict(labels)["region"]: value
        for (name, labels), value in found.items()
        if name == "hmmfs_region_size_bytes"
    }
    assert sizes == {f"r{n}": PAGE * (n + 1) for n in range(150) if n != 70}


def counters(mount: Mount) -> dict[Sample, float]:
    return {name: value for name, value in scrape(mount).items() if name[0].endswith("_total")}


def test_counters_only_grow(measured: Mount) -> None:
    """In scrapes by several at once, while devices and a program take pages from each other and
    other regions come and go."""
    data = measured.region("a", 16 << 20)
    over = threading.Event()
    wrong: list[str] = []

    def watch() -> None:
        before: dict[Sample, float] = {}
        while not over.is_set():
            now = counters(measured)
            for name in before.keys() & now.keys():
                if now[name] < before[name]:
                    wrong.append(f"{name} fell from {before[name]} to {now[name]}")
            if before.keys() - now.keys():
                wrong.append(f"{before.keys() - now.keys()} are gone")
            before = {name: at for name, at in now.items() if ("region", "b") not in name[1]}

    def churn() -> None:
        while not over.is_set():
            measured.region("b", 1 << 20)
            os.unlink(measured.regions / "b")

    threads = [threading.Thread(target=watch) for _ in range(3)]
    threads.append(threading.Thread(target=churn))
    for thread in threads:
        thread.start()
    first = counters(measured)
    try:
        for step in range(6):
            measured.submit(step % 2, f"fill a {step}")
            with open(data, "rb") as file:
                assert set(file.read(4 << 20)) == {step}
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong
    moved = key("node_pages_total", node="dev0", direction="in")
    assert counters(measured)[moved] > first[moved]


def test_the_end_waits_for_no_client(measured: Mount) -> None:
    """Of clients, one says nothing, one half of a request, and one never reads its answer."""
    for number in range(300):
        measured.region(f"{number:0200}", 4096)
    pid = measured.pid
    with ExitStack() as stack:
        silent, half, deaf = (
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(3)
        )
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for client in (silent, half, deaf):
            client.settimeout(60)
            client.connect(address(measured))
        half.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        deaf.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert deaf.recv(1)
        assert scrape(measured)  # others are served meanwhile
        run("umount", str(measured.path))
        assert wait_until(lambda: ended(pid))
        assert silent.recv(1) == half.recv(1) == b""
    assert "does not end" not in measured.log.read_text()


def test_scrapes_while_it_ends(mount_factory: MountFactory) -> None:
    """Each has all of the numbers, or an error, at once."""
    for _ in range(3):
        measured = mount_factory(vram="8M", metrics_port=0)
        where, pid = url(measured), measured.pid
        answers: list[str] = []

        def ask(where: str = where, answers: list[str] = answers) -> None:
            while True:
                try:
                    with urllib.request.urlopen(where, timeout=60) as answer:
                        text = answer.read().decode()
                except (OSError, http.client.HTTPException):
                    return  # refused, reset, 503, or cut where its length tells
                answers.append(text)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert wait_until(lambda answers=answers: len(answers) > 10)
        run("umount", str(measured.path))
        assert wait_until(lambda pid=pid: ended(pid))
        for thread in threads:
            thread.join()
        assert all("hmmfs_region" in text for text in answers)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "never"
    path.mkdir()
    yield path
    assert connection(path) is None


def refused(*words: str) -> str:
    done = run("mount", *words, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_a_port_in_use(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert refused(str(directory), "--metrics-port", str(port)) == (
            f"hmmfs: The port {port} of 127.0.0.1 is taken: choose another with metrics_port=, or "
            "0 for any that is free.\n"
        )


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "2001:db8::1", "a..b"])
def test_a_strange_address(directory: Path, host: str) -> None:
    said = refused(str(directory), "-o", f"metrics_host={host},metrics_port=0")
    assert said == (
        f"hmmfs: {host} is not an address of this machine. Give one with metrics_host=, such as "
        "127.0.0.1 or ::1.\n"
    )


@takes_root("in a network of its own")
@pytest.mark.usefixtures("for_others")
def test_a_privileged_port(directory: Path) -> None:
    os.chown(directory, 65534, 65534)
    # In a network of its own, where root may say from which port on others may have them.
    code = (
        "echo 1024 >/proc/sys/net/ipv4/ip_unprivileged_port_start; "
        'exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"'
    )
    command = ["unshare", "-n", "sh", "-c", code, "sh", *HMMFS, "mount", str(directory)]
    done = subprocess.run(
        [*command, "-o", "metrics_host=0.0.0.0,metrics_port=80"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == (
        "hmmfs: The port 80 takes root: choose one from 1024 on with metrics_port=.\n"
    )
    assert done.returncode == 1


def test_other_addresses(mount_factory: MountFactory) -> None:
    measured = mount_factory(metrics_port=0, metrics_host="::1")
    assert url(measured).startswith("http://[::1]:")
    assert scrape(measured)[key("regions")] == 0


def listens(mount: Mount) -> list[tuple[str, int]]:
    return [tuple(one.laddr) for one in psutil.Process(mount.pid).net_connections("inet")]


def test_who_is_listened_to(mount: Mount, measured: Mount) -> None:
    """This machine, unless told otherwise; nobody, unless asked for."""
    assert listens(measured) == [("127.0.0.1", address(measured)[1])]
    assert listens(mount) == []
    assert "Metrics" not in mount.log.read_text()
