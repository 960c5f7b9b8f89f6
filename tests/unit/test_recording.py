"""Whatever the file holds: a page or one sentence, never a traceback; and always the same page."""

from __future__ import annotations

import gzip
import html.parser
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recordings import EVICTIONS, Json, end, event, header, sample, save, sweeps

from hmmfs.cli.main import main
from hmmfs.errors import HmmfsError
from hmmfs.inspect.mount.trace import Event
from hmmfs.inspect.record.recording import End, Gap, Recording, Sample, encode, encode_event

HUGE = 10**400
SCRIPT = "</script><script>alert(1)</script>"
COMMANDS = (["report"], ["export", "--csv"], ["export", "--perfetto"], ["export", "--parquet"])
Captured = pytest.CaptureFixture[str]


def lines(*records: Json) -> bytes:
    return b"".join(encode(record) for record in records)


def page(tmp_path: Path, recording: Path) -> str:
    path = tmp_path / "page.html"
    assert main(["report", str(recording), "-o", str(path)]) == 0
    return path.read_text()


class Embedded(html.parser.HTMLParser):
    """The text of every script of a page, as a browser divides it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data


def data(text: str) -> dict[str, Any]:
    """What the page's script is given."""
    scripts = Embedded(text).scripts
    assert len(scripts) == 2
    found = json.loads(scripts[0])
    assert isinstance(found, dict)
    return found


REFUSED = {
    "empty": b"",
    "blank": b"\n",
    "zeros": bytes(4096),
    "text": b"a file of another kind\n",
    "not an object": b"[1, 2]\n",
    "deep": b"[" * 100_000 + b"\n",
    "not UTF-8": b'{"type": "\xff\xfe"}\n',
    "no type": b"{}\n",
    "begins with an event": lines(event(1, "unmap")),
    "no newline behind the header": lines(header())[:-1],
    "half a header": lines(header())[:100],
    "schema of the future": lines(header(schema=2)),
    "no schema": lines({"type": "header"}),
    "schema is a word": lines(header(schema="<b>")),
    "schema is huge": lines(header(schema=10**4000)),
    "schema is longer than numbers may be": b'{"type":"header","schema":' + b"9" * 5000 + b"}\n",
    "only a schema": lines({"type": "header", "schema": 1}),
    "clock is a word": lines(header(clock="now")),
    "clock is not finite": lines(header(clock=float("nan"))),
    "clock is huge": lines(header(clock=HUGE)),
    "started is huge": lines(header(started=HUGE)),
    "started is negative": lines(header(started=-1)),
    "started is true": lines(header(started=True)),
    "no nodes": lines(header(nodes=[])),
    "nodes are a word": lines(header(nodes="host")),
    "nodes without the host": lines(header(nodes=["dev0"])),
    "nodes with lists": lines(header(nodes=["host", []])),
    "odd nodes": lines(header(nodes=["host", "<b>"])),
    "capacity is a list": lines(header(capacity=[1])),
    "capacity is negative": lines(header(capacity={"host": -1})),
    "command is a number": lines(header(command=1)),
    "command with half a character": lines(header(command=["\ud800"])),
    "devices are a list": lines(header(devices=[])),
    "stats are null": lines(header(stats=None)),
    "gz of nothing": gzip.compress(b""),
    "gz cut off in its header": gzip.compress(lines(header()))[:7],
    "gz cut off": gzip.compress(lines(header()))[:40],
    "gz broken": b"\x1f\x8b" + bytes(200),
}


@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[-1])
def test_what_is_no_recording(
    tmp_path: Path, capsys: Captured, command: list[str], content: bytes
) -> None:
    path, out = tmp_path / "run.jsonl", tmp_path / "out"
    path.write_bytes(content)
    assert main([*command, str(path), "-o", str(out)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"hmmfs: {path} ")
    assert said.err.endswith(".\n")
    assert said.err.count("\n") == 1
    assert len(said.err) < len(str(path)) + 120
    assert not out.exists()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[-1])
def test_what_cannot_be_opened(tmp_path: Path, capsys: Captured, command: list[str]) -> None:
    good = save(tmp_path / "run.jsonl", sweeps())
    before = good.read_bytes()
    read, write = os.pipe()
    os.write(write, before[:1000])
    for path, out, said in (
        (tmp_path, tmp_path / "out", "Is a directory."),
        (tmp_path / "none", tmp_path / "out", "No such file or directory."),
        (good, tmp_path / "none/out", "No such file or directory."),
        (good, tmp_path, "Is a directory."),
        (Path(f"/dev/fd/{read}"), tmp_path / "out", "is a pipe. Give a file"),
    ):
        assert main([*command, str(path), "-o", str(out)]) == 1
        found = capsys.readouterr().err
        assert said in found
        assert (found.startswith("hmmfs: /"), found.count("\n")) == (True, 1)
    os.close(read)
    os.close(write)
    assert main([*command, str(good), "-o", str(good)]) == 2
    assert "is the recording itself" in capsys.readouterr().err
    assert good.read_bytes() == before


def test_a_form_must_be_given(tmp_path: Path, capsys: Captured) -> None:
    assert main(["export", str(save(tmp_path / "run.jsonl", sweeps()))]) == 2
    assert capsys.readouterr().err == "hmmfs: Give one of --perfetto, --csv and --parquet.\n"


BROKEN = {
    "not JSON": b"{\n",
    "deep": b"[" * 100_000 + b"\n",
    "unknown type": lines({"type": "weather"}),
    "type is a list": lines({"type": []}),
    "no time": lines({**event(1, "unmap"), "t": None}),
    "negative": lines(event(1, "unmap", bytes=-1)),
    "true": lines(event(1, "unmap", pages=True)),
    "fraction": lines(event(1, "unmap", pages=1.5)),
    "64 bits": lines(event(1, "unmap", first=1 << 63)),
    "huge": lines(event(1, "unmap", bytes=HUGE)),
    "huge time": lines({**event(1, "unmap"), "t": HUGE}),
    "time beyond nanoseconds": lines({**event(1, "migrate_end"), "t": 1e10}),
    "not finite": lines(event(1, "unmap", us=float("inf"))),
    "half a character": lines(event(1, "unmap", region="\ud800")),
    "region is null": lines(event(1, "unmap", region=None)),
    "device is missing": lines({k: v for k, v in event(1, "unmap").items() if k != "device"}),
    "sample of lists": lines({**sample(1, [0]), "regions": []}),
    "sample of words": lines({**sample(1, [0]), "regions": {"a": "b"}}),
    "sample with half a character": lines(sample(1, [0], region="\udfff")),
    "end without a number": lines({**end(1), "status": "0"}),
    "lost without a number": lines({"type": "lost", "t": 7001, "events": "many"}),
    "too long": b'{"type":"' + b"x" * (1 << 24) + b'"}\n',
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN.keys())
def test_a_line_that_is_not_whole_is_left_out(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "run.jsonl"
    good = [encode(record) for record in sweeps()]
    path.write_bytes(b"".join([*good[:5], line, *good[5:]]))
    with Recording(str(path)) as recording:
        assert len(list(recording.records())) == len(good) - 1
        assert recording.broken == 1
    found = data(page(tmp_path, path))
    assert found["evictions"] == EVICTIONS
    assert any("1 lines of the recording could not be" in note for note in found["notes"])
    for command in COMMANDS[1:]:
        assert main([*command, str(path), "-o", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_cut_off_anywhere(tmp_path: Path, capsys: Captured, packed: bool) -> None:
    """By a disk that is full, or a recorder that was killed."""
    path = tmp_path / "run.jsonl"
    whole = b"".join(encode(record) for record in sweeps())
    content = gzip.compress(whole, mtime=0) if packed else whole
    # What is behind a compressed stream is not missed, so far from there.
    most = len(content) - (20 if packed else 1)
    first = len(encode(header()))
    chance = random.Random(5)
    for at in [0, first, most, *(chance.randrange(most) for _ in range(20))]:
        path.write_bytes(content[:at])
        status = main(["report", str(path)])
        if status:
            assert "is not a recording" in capsys.readouterr().err
            assert packed or at < first
            continue
        found = data((tmp_path / "run.html").read_text())
        assert not found["complete"]
        assert "The recording has no end" in found["notes"][0]
        lines_left = content[: content.rfind(b"\n", 0, at)]
        assert packed or found["events_recorded"] == lines_left.count(b'"sim_us"')


def test_any_byte_may_be_wrong(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    whole = b"".join(encode(record) for record in sweeps(1))
    chance = random.Random(7)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(3):
            content[chance.randrange(len(content))] = chance.choice(b'\x00\xff"{}[],:09-e\\u\nd')
        path.write_bytes(content)
        for command in COMMANDS[:3]:
            assert main([*command, str(path), "-o", str(tmp_path / "out")]) in (0, 1)


NAMES = (
    SCRIPT,
    "<!--<script>",
    "]]>",
    "\"'&amp;",
    "{{data}}",
    "\udcff\udc00"[:1],
    "\x1b[31m\r\n\t\x00",
    "\u202egnp\u2028",
    "",
    "__proto__",
    "size",
    "é\U0001f600",
    "x" * 10_000,
)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_mean_mischief(tmp_path: Path, name: str) -> None:
    records = [
        header(command=[name], hmmfs=name, mount=name, topology=name),
        {**sample(0, [0], region=name), "faults": {name: 3}},
        *(event(1, kind, region=name, device=name, trigger=name, origin=name, target=name)
          for kind in ("migrate_end", "page_fault_end", "thrashing", name)),
        end(2),
    ]  # fmt: skip
    path = tmp_path / "run.jsonl"
    path.write_bytes(lines(*records))
    text = page(tmp_path, path)
    embedded = Embedded(text).scripts
    assert len(embedded) == 2
    assert "<" not in embedded[0]
    found = data(text)
    assert text.count("<script>") == 1
    assert [row["name"] for row in found["samples"]["regions"]] == [found["blocks"][0]["region"]]
    assert not [c for word in found["words"] for c in word if not c.isprintable()]
    for command in COMMANDS[1:]:
        assert main([*command, str(path), "-o", str(tmp_path / "out")]) == 0


def test_a_page_is_told_by_its_recording_alone(tmp_path: Path) -> None:
    records = list(sweeps())
    records[-1:-1] = [event(1.5, "map_remote", region=f"r{n}", device=f"dev{n}") for n in range(40)]
    regions = {f"r{n}": {"size": 1, "host": 1} for n in range(40)}
    records[-1:-1] = [{**sample(1.6, []), "regions": regions}]
    path = save(tmp_path / "run.jsonl", records)
    pages = set()
    for seed in ("1", "2", "3"):
        out = tmp_path / f"{seed}.html"
        command = [sys.executable, "-m", "hmmfs", "report", str(path), "-o", str(out)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed, "TZ": seed})
        pages.add(out.read_bytes())
    assert len(pages) == 1


def test_a_name_of_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = save(tmp_path / os.fsdecode(b"run \xff<b>.jsonl"), sweeps())
    for strict in ("utf-8:strict", "ascii:strict"):
        done = subprocess.run(
            [sys.executable, "-m", "hmmfs", "report", str(path)],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": strict},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == os.fsencode(path.with_suffix(".html")) + b"\n"


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("run.jsonl", "run.html"),
        ("run.jsonl.gz", "run.html"),
        ("run.json", "run.html"),
        ("run", "run.html"),
        ("run.2", "run.2.html"),
        ("run.html", "run.html.html"),
    ],
)
def test_the_name_of_the_page(tmp_path: Path, capsys: Captured, name: str, made: str) -> None:
    path = save(tmp_path / name, sweeps())
    assert main(["report", str(path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / made}\n"
    assert {each.name for each in tmp_path.iterdir()} == {name, made}


def test_what_a_page_says(tmp_path: Path) -> None:
    records = list(sweeps())
    records.insert(9, {"type": "lost", "t": 7000.5, "events": 17})
    found = data(page(tmp_path, save(tmp_path / "run.jsonl", records)))
    whole = 2 << 20
    assert (found["status"], found["complete"], found["lost"]) == (0, True, 17)
    assert found["started"] == "2026-05-28 20:26:40 UTC"
    assert found["evicted_pages"] == found["evicted_spans"] == EVICTIONS * 512
    assert {row["name"][0]: (row["moves"], row["bytes"]) for row in found["triggers"]} == {
        "device_fault": (12, 12 * whole),
        "eviction": (EVICTIONS, EVICTIONS * whole),
    }
    assert {"-".join(row["name"]): row["bytes"] for row in found["ways"]} == {
        "host-dev0": 12 * whole,
        "dev0-host": EVICTIONS * whole,
    }
    assert [(row["accessor"], row["write"], row["total"]) for row in found["faults"]] == [
        ("dev0", 12, 12)
    ]
    assert found["peak"] == [0, 2 * whole]
    verdict = found["thrashing"][0]
    assert (verdict["region"], verdict["device"], verdict["cause"]) == ("a", "dev0", "capacity")
    assert (verdict["events"], verdict["first"]) == (8, 0.565)
    assert any("17 events were lost" in note for note in found["notes"])
    assert not any("no end" in note for note in found["notes"])


# ---- what goes into a file comes out of it


def test_there_and_back(tmp_path: Path) -> None:
    moved = Event(7000.123456789, "dev0", "migrate_end", 'ä\udcff"\\\n', 1, 2, "host", "dev0",
                  "eviction", (1 << 63) - 1, 0.001, 161.25)  # fmt: skip
    assert encode_event(moved) == encode(
        {"type": "event"}
        | {
            {"origin": "from", "target": "to"}.get(key, key): value
            for key, value in moved._asdict().items()
        }
    )
    path = tmp_path / "run.jsonl"
    path.write_bytes(
        lines(header())
        + encode_event(moved)
        + lines(sample(0.5, [1]), {"type": "lost", "t": 7001.0, "events": 3}, end(2, 137))
    )
    with Recording(str(path)) as recording:
        assert recording.header.command == ["python", "sweep.py", "/mnt/hm"]
        first, second, third, fourth = recording.records()
    assert first == moved
    assert isinstance(second, Sample)
    assert second.regions == {"a": {"size": 8 << 20, "host": 1536, "dev0": 512}}
    assert third == Gap(7001.0, 3)
    assert isinstance(fourth, End)
    assert fourth.status == 137


def test_a_refusal_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"x\n")
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(HmmfsError):
        Recording(str(path))
    assert set(os.listdir("/proc/self/fd")) == before
