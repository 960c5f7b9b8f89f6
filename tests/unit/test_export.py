"""hmmfs export: the same events in other programs' formats, read back by programs of others."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from browser import browser, complaints
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import CLOCK, EVICTIONS, Json, end, event, header, sample, save, sweeps
from selenium.webdriver import Chrome
from trace_format import check_format, ns, read_by_viewer

from hmmfs.cli.main import main
from hmmfs.inspect.record import export

KEYS = ("t", "device", "event", "region", "first", "pages", "from", "to", "trigger")
KEYS += ("bytes", "us", "sim_us")
ODD = 'a,"b"\n\udcff;é</script>'
SHOWN = 'a,"b"\\012\\377;é</script>'
SPANS = {"page_fault_end": "page fault", "migrate_end": "migrate", "queue_restore": "wait for VRAM"}
STARTS = {"page_fault_start", "migrate_start", "queue_eviction"}


def events(records: list[Json]) -> list[Json]:
    return [record for record in records if record["type"] == "event"]


def exported(tmp_path: Path, records: list[Json], form: str) -> Path:
    path, out = save(tmp_path / "run.jsonl", records), tmp_path / f"out.{form}"
    assert main(["export", f"--{form}", str(path), "-o", str(out)]) == 0
    return out


@pytest.fixture
def records() -> list[Json]:
    """Among them an event with the largest numbers that there are, and a name of any characters."""
    most = (1 << 63) - 1
    odd = {"region": ODD, "first": most, "bytes": most, "us": 0.001, "sim_us": 123456789.125}
    return [*list(sweeps())[:-1], event(2.000000001, "map_remote", **odd), end(2)]


def test_csv(tmp_path: Path, records: list[Json]) -> None:
    with open(exported(tmp_path, records, "csv"), encoding="utf-8", newline="") as file:
        heading, *rows = csv.reader(file)
    assert tuple(heading) == KEYS
    wanted = []
    for each in events(records):
        times = [str(float(each[key])) for key in ("us", "sim_us")]
        wanted.append([f"{each['t']:.9f}", *(str(each[key]) for key in KEYS[1:-2]), *times])
    wanted[-1][KEYS.index("region")] = SHOWN
    assert rows == wanted
    assert rows[-1][0] == "7002.000000001"


@pytest.mark.parametrize("batch", [7, 1 << 16])
def test_parquet(
    tmp_path: Path, records: list[Json], monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(export, "BATCH", batch)
    path = exported(tmp_path, records, "parquet")
    table = pyarrow.parquet.read_table(path)
    assert tuple(table.column_names) == KEYS
    wanted = [{key: each[key] for key in KEYS} for each in events(records)]
    wanted[-1]["region"] = SHOWN
    assert table.to_pylist() == wanted
    kinds = {str(table.schema.field(key).type) for key in ("first", "pages", "bytes")}
    assert kinds == {"int64"}
    groups = pyarrow.parquet.read_metadata(path).num_row_groups
    assert groups == len(wanted) // batch + 1


@pytest.mark.parametrize("form", ["csv", "parquet", "perfetto"])
def test_nothing_happened(tmp_path: Path, form: str) -> None:
    path = exported(tmp_path, [header(), end(1)], form)
    if form == "csv":
        assert path.read_text() == ",".join(KEYS) + "\n"
    elif form == "parquet":
        assert pyarrow.parquet.read_table(path).num_rows == 0
    else:
        assert {each["ph"] for each in check_format(path.read_text())} == {"M"}


@pytest.mark.parametrize(
    ("form", "made"),
    [("csv", "run.csv"), ("parquet", "run.parquet"), ("perfetto", "run.trace.json")],
)
def test_the_name_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, made: str
) -> None:
    path = save(tmp_path / "run.jsonl", sweeps())
    assert main(["export", str(path), f"--{form}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / made}\n"
    assert (tmp_path / made).stat().st_size > 0


def test_without_pyarrow(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "pyarrow.py").write_text("raise ImportError('not here')\n")
    path = save(tmp_path / "run.jsonl", sweeps())

    def child(form: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hmmfs", "export", form, str(path)]
        environment = {**os.environ, "PYTHONPATH": str(shadow)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = child("--parquet")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "hmmfs: Parquet files need pyarrow: pip install 'hmmfs[parquet]'.\n"
    assert not (tmp_path / "run.parquet").exists()
    assert child("--csv").returncode == 0


# ---- the trace-event format


def of(found: list[Json], phase: str) -> list[Json]:
    return [each for each in found if each["ph"] == phase]


def test_perfetto(tmp_path: Path, records: list[Json]) -> None:
    records[5:5] = [{"type": "lost", "t": CLOCK + 0.2, "events": 17}]
    records[9:9] = [
        event(0.3, "queue_eviction", origin="dev0", target=""),
        event(0.31, "queue_restore", origin="dev0", target="", us=10_000.0),
        event(0.32, "unmap", device="cpu"),
    ]
    found = check_format(exported(tmp_path, records, "perfetto").read_text())

    spans = [each for each in events(records) if each["event"] in SPANS]
    assert Counter(each["name"] for each in of(found, "X")) == Counter(
        "evict" if each["trigger"] == "eviction" else SPANS[each["event"]] for each in spans
    )
    assert Counter(each["name"] for each in of(found, "X"))["evict"] == EVICTIONS
    for span, said in zip(of(found, "X"), spans, strict=True):
        assert ns(span["ts"] + span["dur"]) == round((said["t"] - CLOCK) * 1e9)
        assert ns(span["dur"]) == round(said["us"] * 1000)
        assert span["cat"] == said["event"]
        kept = {key: span["args"].get(key, "") for key in ("from", "to", "trigger", "bytes")}
        assert kept == {key: said[key] for key in kept}
        assert (span["args"]["first"], span["args"]["pages"]) == (said["first"], said["pages"])

    names = {each["pid"]: each["args"]["name"] for each in found if each["name"] == "process_name"}
    moments = [(each["name"], names[each["pid"]], each["s"]) for each in of(found, "i")]
    assert Counter(moments) == Counter(
        [("thrashing", "dev0", "t")] * 8
        + [("17 events lost", "machine", "g"), ("unmap", "CPU", "t"), ("map_remote", "dev0", "t")]
    )
    assert of(found, "i")[-1]["args"]["region"] == SHOWN
    check_counters(found, records)


def check_counters(found: list[Json], records: list[Json]) -> None:
    samples = [record for record in records if record["type"] == "sample"]
    values = defaultdict(list)
    for each in of(found, "C"):
        values[each["name"]].append((ns(each["ts"]), each["args"]))
    times = [round((each["t"] - CLOCK) * 1e9) for each in samples]
    assert values == {
        "VRAM of dev0": list(zip(times, [each["used"] and {"used": each["used"]["dev0"]}
                                         for each in samples], strict=True)),
        "region a": list(zip(times, [
            {node: each["regions"]["a"][node] * 4096 for node in ("host", "dev0")}
            for each in samples], strict=True)),
        "link host-dev0": list(zip(times, [
            {way: each["links"]["host-dev0"][way] for way in ("forward", "back")}
            for each in samples], strict=True)),
    }  # fmt: skip


MOMENTS = st.integers(0, 300)
OVERLAPS = st.lists(
    st.tuples(MOMENTS, MOMENTS, st.sampled_from(["cpu", "dev0", "dev7"])), max_size=60
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(OVERLAPS)
def test_spans_nest_whatever_happens_at_once(
    tmp_path: Path, spans: list[tuple[int, int, str]]
) -> None:
    """Times in ns, so that roundings show."""
    made = [
        event((start + length) / 1e9, "migrate_end", us=length / 1e3, device=device)
        for start, length, device in sorted(spans, key=lambda span: span[0] + span[1])
    ]
    found = check_format(exported(tmp_path, [header(), *made, end(1)], "perfetto").read_text())
    assert len(of(found, "X")) == len(made)


def test_a_span_that_began_before_the_command(tmp_path: Path) -> None:
    made = [header(), event(0.5, "migrate_end", us=1e12 - 1), end(1)]
    span = of(check_format(exported(tmp_path, made, "perfetto").read_text()), "X")[0]
    assert (span["ts"], span["dur"]) == (0, 500_000)


def test_more_at_once_than_there_are_slots(tmp_path: Path) -> None:
    made = [event(1 + n / 1000, "page_fault_end", us=900_000.0 + n) for n in range(600)]
    found = check_format(exported(tmp_path, [header(), *made, end(3)], "perfetto").read_text())
    assert (len(of(found, "X")), len(of(found, "i"))) == (500, 100)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chrome]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with browser(tmp_path / "profile") as found:
        yield found


def test_a_viewer_of_others_opens_it(driver: Chrome, tmp_path: Path, records: list[Json]) -> None:
    """Chrome's own reads as many spans, counters and names as were written, without a warning."""
    records[5:5] = [{"type": "lost", "t": CLOCK + 0.2, "events": 17}]
    overlapping = [event(1.7, "migrate_end", us=300_000.0 + 40_000 * (n % 3)) for n in range(5)]
    records[-1:-1] = [*overlapping, sample(1.8, [0], (1, 2), region=ODD)]
    text = exported(tmp_path, records, "perfetto").read_text()
    found = check_format(text)
    model: dict[str, Any] = read_by_viewer(driver, tmp_path, text)
    assert model["warnings"] == []
    assert model["global"] == 1
    on_threads = [each for each in found if each["ph"] == "X" or each.get("s") == "t"]
    assert Counter((pid, tid, title) for pid, tid, title, *_ in model["slices"]) == Counter(
        (each["pid"], each["tid"], each["name"]) for each in on_threads
    )
    start = min(each["ts"] for each in found if "ts" in each)
    assert sorted(
        (round(begin * 1e6), round(long * 1e6)) for *_, begin, long, _ in model["slices"]
    ) == sorted((ns(each["ts"] - start), ns(each.get("dur", 0))) for each in on_threads)
    assert not any(unfinished for *_, unfinished in model["slices"])
    values: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for each in of(found, "C"):
        for key, value in each["args"].items():
            values[each["name"]][key].append([(each["ts"] - start) / 1000, value])
    assert json.loads(json.dumps(model["counters"])) == values
    assert set(model["processes"].values()) == {"machine", "dev0"}
    assert {"slot 1", "slot 2", "moments"} <= set(model["threads"].values())
    assert complaints(driver) == []
