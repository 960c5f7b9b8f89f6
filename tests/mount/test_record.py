"""hmmfs record: a command's run, written down whole; whatever ends it, what was read stays."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import HMMFS, Mount, MountFactory, connection, run, wait_until

M = 1 << 20
FILL = "dev0 hmmfs.kernels:fill writes:a:float32 1"
LAUNCH = f'"{sys.executable}" -m hmmfs launch "$HMMFS_MOUNT" {FILL}'
WAITING = ("sh", "-c", "echo up; read word; exit 3")

Json = dict[str, Any]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes that lost their parent are found by a variable that all of them inherit."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv("HMMFS_TEST_MARK", mark)
    yield

    def left() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HMMFS_TEST_MARK") == mark:
                    found.append(process)
        return found

    assert wait_until(lambda: not left(), 10), left()


@pytest.fixture
def small(alone: None, mount_factory: MountFactory) -> Mount:
    """A region of 8 MiB before a device of 4: a fill from there evicts."""
    mount = mount_factory(vram="4M", host="64M", devices=2)
    mount.region("a", 8 * M)
    return mount


def record(mount: Mount, path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return run("record", str(mount.path), "-o", str(path), "--", *command, check=False)


def load(path: Path) -> list[Json]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return [json.loads(line) for line in data.splitlines()]


def of_type(records: list[Json], kind: str) -> list[Json]:
    return [record for record in records if record["type"] == kind]


def events(records: list[Json]) -> list[list[object]]:
    """As ``traced`` has them."""
    return [list(each.values())[1:] for each in of_type(records, "event")]


def traced(mount: Mount) -> list[list[object]]:
    """The lines of the trace, read by nothing of hmmfs; simple names only."""
    found = []
    for line in (mount.path / "trace").read_text().splitlines():
        if line.startswith("#"):
            continue
        words = ["" if word == "-" else word for word in line.split(" ")]
        first, count = words[4].split("+")
        found.append(
            [
                float(words[0]),
                *words[1:4],
                int(first),
                int(count),
                *words[5:8],
                int(words[8]),
                float(words[9]),
                float(words[10]),
            ]
        )
    return found


def one_sentence(text: str) -> str:
    assert text.startswith("hmmfs: "), text
    assert text.endswith(".\n"), text
    assert text.count("\n") == 1, text
    return text


@pytest.mark.parametrize("name", ["run.jsonl", "run.jsonl.gz"])
def test_a_run_is_written_down_whole(small: Mount, tmp_path: Path, name: str) -> None:
    run("launch", str(small.path), *FILL.split())
    before, began = small.values("stats"), time.monotonic()
    done = record(small, tmp_path / name, "sh", "-c", f"{LAUNCH}; echo $HMMFS_MOUNT; exit 7")
    ended, after = time.monotonic(), small.values("stats")
    run("launch", str(small.path), *FILL.split())

    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.splitlines()[-1] == str(small.path)
    records = load(tmp_path / name)
    assert [each["type"] for each in records[:2]] == ["header", "sample"]
    assert [each["type"] for each in records[-2:]] == ["sample", "end"]
    assert not of_type(records, "lost")
    found = events(records)
    assert found == [event for event in traced(small) if began <= event[0] <= ended]
    assert any(event[2] == "migrate_end" and event[8] == "eviction" for event in found)

    moved: Counter[str] = Counter()
    for event in found:
        if event[2] == "migrate_end":
            moved[f"bytes_{event[6]}_{event[7]}"] += event[9]
    keys = {key for key in after if key.startswith("bytes_")}
    difference = {key: after[key] - before[key] for key in keys}
    assert {key: moved[key] for key in keys} == difference
    assert set(moved) <= keys
    header, end = records[0], records[-1]
    assert {key: end["stats"][key] - header["stats"][key] for key in keys} == difference
    assert end["status"] == 7
    evicted = [each["devices"]["dev0"]["evicted_pages"] for each in (header, end)]
    assert evicted[1] - evicted[0] >= 1024


def test_what_the_header_says(small: Mount, tmp_path: Path) -> None:
    started = time.time()
    assert record(small, tmp_path / "run.jsonl", "true", "--", "-o", "x").returncode == 0
    header = load(tmp_path / "run.jsonl")[0]
    assert header["command"] == ["true", "--", "-o", "x"]
    assert header["mount"] == str(small.path)
    assert header["nodes"] == ["host", "dev0", "dev1"]
    assert header["capacity"] == {"host": 64 * M, "dev0": 4 * M, "dev1": 4 * M}
    assert started <= header["started"] <= time.time()
    assert header["topology"] == (small.path / "topology").read_text()


def test_samples_follow_what_is_where(small: Mount, tmp_path: Path) -> None:
    """The last one is of the end, so it says what the files say now."""
    assert record(small, tmp_path / "run.jsonl", "sh", "-c", LAUNCH).returncode == 0
    samples = of_type(load(tmp_path / "run.jsonl"), "sample")
    now = small.residency("a")
    pages = {node: now[f"pages_{node}"] for node in ("host", "dev0", "dev1")}
    assert samples[0]["regions"]["a"] == {"size": 8 * M, "host": 0, "dev0": 0, "dev1": 0}
    assert samples[-1]["regions"]["a"] == {"size": 8 * M, **pages}
    used = int((small.path / "devices/dev0/vram/used").read_text())
    assert samples[-1]["used"] == {"dev0": used, "dev1": 0}
    link = small.values("stats")["bytes_dev0_host"]
    assert samples[-1]["links"]["host-dev0"]["back"] == link > 0
    assert samples[-1]["faults"]["dev0"] == small.values("devices/dev0/faults")["total"] > 0


def test_what_cannot_be_recorded(small: Mount, tmp_path: Path) -> None:
    path, command = f"{tmp_path}/run.jsonl", ["--", "touch", f"{tmp_path}/ran"]
    for words, status, sentence in (
        (["-o", f"{tmp_path}/none/run.jsonl", *command], 1, "No such file"),
        (["-o", f"{tmp_path}", *command], 1, "Is a directory"),
        (["-o", path, "--"], 2, "hmmfs record"),
        (["-o", path], 2, "hmmfs record"),
        (command, 2, "-o"),
        (["-o", path, "--interval", "0", *command], 2, "interval"),
        (["-o", path, "--nonsense", *command], 2, "nonsense"),
    ):
        done = run("record", str(small.path), *words, check=False)
        assert done.returncode == status
        assert sentence in one_sentence(done.stderr)
        assert not (tmp_path / "ran").exists()
        assert not (tmp_path / "run.jsonl").exists()


def test_no_mount(alone: None, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "run.jsonl"
    words = ["record", str(tmp_path), "-o", str(path), "--", "touch", str(ran)]
    done = run(*words, check=False)
    assert done.returncode == 1
    one_sentence(done.stderr)
    assert not ran.exists()
    assert not path.exists()


def test_commands_that_do_not_start(small: Mount, tmp_path: Path) -> None:
    path, text = tmp_path / "run.jsonl", tmp_path / "text"
    text.write_text("no program")
    missing = record(small, path, "no-such-program")
    assert missing.returncode == 127
    assert one_sentence(missing.stderr) == "hmmfs: There is no program no-such-program.\n"
    denied = record(small, path, str(text))
    assert denied.returncode == 126
    assert "Permission denied" in one_sentence(denied.stderr)
    assert load(path)[-1]["status"] == 126


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("trace_size", "0", "nothing"),
        ("trace_filter", "events=unmap", "events=unmap"),
        ("trace_filter", "regions=other", "regions=other"),
    ],
)
def test_a_trace_that_leaves_events_out(
    small: Mount, tmp_path: Path, name: str, value: str, kept: str
) -> None:
    """The recorder says so, and the page does, also if that came in the middle."""
    path, setting = tmp_path / "run.jsonl", small.path / name
    before = setting.read_text()
    setting.write_text(value)
    done = record(small, path, "true")
    assert f"keeps {kept}, so the recording has no other events" in one_sentence(done.stderr)
    assert f"trace kept {kept}:" in report(path)
    setting.write_text(before)
    done = record(small, path, "sh", "-c", f"echo {value} > {setting}")
    assert f"keeps {kept}, so" in one_sentence(done.stderr)
    assert f"trace kept {kept}:" in report(path)


def test_a_wrong_command_costs_no_recording(small: Mount, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    record(small, path, "true")
    before = path.read_bytes()
    assert record(small, path, "no-such-program").returncode == 127
    assert path.read_bytes() == before


def test_a_command_killed_by_a_signal(small: Mount, tmp_path: Path) -> None:
    assert record(small, tmp_path / "run.jsonl", "sh", "-c", "kill -9 $$").returncode == 137
    assert load(tmp_path / "run.jsonl")[-1]["status"] == 137


# ---- while it runs


@contextlib.contextmanager
def recording(
    mount: Mount, path: Path, *command: str, interval: float = 0.05
) -> Iterator[subprocess.Popen[str]]:
    """A recorder in a process group of its own, whose command has said "up"."""
    with subprocess.Popen(
        [
            *HMMFS,
            "record",
            str(mount.path),
            "-o",
            str(path),
            f"--interval={interval}",
            "--",
            *command,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "up\n":
                    break
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def reader_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The recorder's child that is a copy of itself."""
    recorder = psutil.Process(process.pid)
    found = [each for each in recorder.children() if each.cmdline() == recorder.cmdline()]
    assert len(found) == 1
    return found[0]


def told(process: subprocess.Popen[str], word: str | None = "\n") -> tuple[int, str]:
    """Its status and what it said on stderr, once it has ended."""
    said = process.communicate(word, timeout=30)[1]
    return process.returncode, said


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("trap 'exit 5' INT; echo up; while :; do sleep 0.05; done", 5),
        ("echo up; exec sleep 60", 130),
    ],
)
def test_control_c_ends_the_command_alone(
    small: Mount, tmp_path: Path, script: str, status: int
) -> None:
    path = tmp_path / "run.jsonl"
    with recording(small, path, "sh", "-c", script) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert told(process) == (status, "")
    assert load(path)[-1]["status"] == status


def test_a_signal_to_the_recorder_is_the_command_s(small: Mount, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with recording(small, path, "sh", "-c", "echo up; exec sleep 60") as process:
        os.kill(process.pid, signal.SIGTERM)
        assert told(process) == (143, "")
    assert load(path)[-1]["status"] == 143


# The last moment at which there is no command yet to pass a signal on to.
EARLY = """
import os, signal, subprocess, sys
from hmmfs.cli.main import main
class Late(subprocess.Popen):
    def __init__(self, *args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        super().__init__(*args, **options)
subprocess.Popen = Late
sys.exit(main(sys.argv[1:]))
"""


def test_a_signal_comes_before_the_command(small: Mount, tmp_path: Path) -> None:
    words = ["record", str(small.path), "-o", str(tmp_path / "run.jsonl"), "--", "sleep", "60"]
    done = subprocess.run([sys.executable, "-c", EARLY, *words], timeout=30, check=False)
    assert done.returncode == 143


def report(path: Path) -> str:
    page = path.parent / "page.html"
    done = run("report", str(path), "-o", str(page))
    assert (done.stdout, done.stderr) == (f"{page}\n", "")
    return page.read_text()


def test_the_mount_goes_away(small: Mount, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with recording(small, path, "sh", "-c", f"{LAUNCH}; echo up; read word; exit 3") as process:
        os.kill(small.pid, signal.SIGKILL)
        assert wait_until(lambda: connection(small.path) is None)
        status, said = told(process)
    assert status == 3
    one_sentence(said)
    found = load(path)
    assert any(event[8] == "eviction" for event in events(found))
    assert not of_type(found, "end")
    assert "The recording has no end" in report(path)


def test_a_mount_gone_is_a_failure_of_its_own(small: Mount, tmp_path: Path) -> None:
    with recording(small, tmp_path / "run.jsonl", "sh", "-c", "echo up; read word") as process:
        os.kill(small.pid, signal.SIGKILL)
        assert wait_until(lambda: connection(small.path) is None)
        status, said = told(process)
    assert status == 1
    one_sentence(said)


def test_a_daemon_that_is_stuck_holds_up_for_a_while(small: Mount, tmp_path: Path) -> None:
    pid = small.pid
    with recording(small, tmp_path / "run.jsonl", *WAITING) as process:
        os.kill(pid, signal.SIGSTOP)
        try:
            status, said = told(process)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert status == 3
    assert "has not answered for 5 s" in one_sentence(said)


@pytest.mark.parametrize(
    ("name", "both"), [("run.jsonl", False), ("run.jsonl.gz", False), ("run.jsonl.gz", True)]
)
def test_a_recorder_killed_leaves_what_it_read(
    small: Mount, tmp_path: Path, name: str, both: bool
) -> None:
    path = tmp_path / name
    with recording(small, path, "sh", "-c", f"{LAUNCH}; echo up; read word") as process:
        reader = reader_of(process)
        if both:
            # Nobody writes what it still has, so wait for what is written every second anyway.
            assert wait_until(lambda: '"eviction"' in text_so_far(path))
            reader.kill()
        process.kill()
        process.wait()
        assert wait_until(lambda: not reader.is_running())
        process.communicate("\n")
    page = report(path)
    assert "The recording has no end" in page
    assert '"eviction"' in page
    if not both:
        whole = load(path)
        assert not of_type(whole, "end")
        assert events(whole) == traced(small)


def text_so_far(path: Path) -> str:
    data = path.read_bytes()
    unpacked = zlib.decompressobj(31).decompress(data) if path.suffix == ".gz" else data
    return unpacked.decode()


def test_a_reader_killed_is_told(small: Mount, tmp_path: Path) -> None:
    with recording(small, tmp_path / "run.jsonl", *WAITING) as process:
        reader_of(process).kill()
        status, said = told(process)
    assert status == 3
    assert "killed" in one_sentence(said)


def paused(process: psutil.Process) -> Callable[[], bool]:
    return lambda: process.status() == psutil.STATUS_STOPPED


def test_what_is_of_the_command_to_its_end(small: Mount, tmp_path: Path) -> None:
    """The reader comes late to events from before the command's end, and to others after it.

    No sample is due, so it is the events that wake it.
    """
    path, launch = tmp_path / "run.jsonl", ["launch", str(small.path), *FILL.split()]
    with recording(small, path, *WAITING, interval=60) as process:
        recorder, reader = psutil.Process(process.pid), reader_of(process)
        reader.suspend()
        assert wait_until(paused(reader))
        run(*launch)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert wait_until(lambda: recorder.children() == [reader])
        run(*launch)
        reader.resume()
        assert told(process, None) == (3, "")
    records, all_there_are = load(path), traced(small)
    end = records[-1]["t"]
    until = [each for each in all_there_are if float(str(each[0])) <= end]
    assert events(records) == until
    assert 0 < len(until) < len(all_there_are)


def test_events_that_are_lost_are_counted(small: Mount, tmp_path: Path) -> None:
    """A ring of 16 events, and nobody who reads it meanwhile."""
    (small.path / "trace_size").write_text("16")
    path = tmp_path / "run.jsonl"
    before = small.values("stats")["trace_recorded"]
    with recording(small, path, *WAITING) as process:
        reader = reader_of(process)
        reader.suspend()
        assert wait_until(paused(reader))
        run("launch", str(small.path), *FILL.split())
        reader.resume()
        status, said = told(process)
    assert status == 3
    found = load(path)
    lost = sum(each["events"] for each in of_type(found, "lost"))
    recorded = small.values("stats")["trace_recorded"] - before
    assert lost > 0
    assert lost + len(events(found)) == recorded
    assert events(found) == traced(small)
    assert f"{lost} events were lost, {recorded - lost} were recorded" in one_sentence(said)
    assert f"{lost} events were lost" in report(path)
