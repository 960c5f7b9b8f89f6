"""The page that hmmfs report makes, in a browser: it draws, can be scrubbed, and shows what was."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, complaints, find, requested, wait
from conftest import Mount, MountFactory, run
from selenium.webdriver import ActionChains, Chrome, Keys
from trace_format import check_format, read_by_viewer

M = 1 << 20
FILL = "dev0 hmmfs.kernels:fill writes:a:float32 1"
LAUNCH = f'"{sys.executable}" -m hmmfs launch "$HMMFS_MOUNT" {FILL}'
SCRIPT = "</script><script>document.title = 'hacked'</script>"
IMAGE = "<img src=x onerror=\"document.title='hacked'\">"

Json = dict[str, Any]


@pytest.fixture
def small(mount_factory: MountFactory) -> Mount:
    return mount_factory(vram="4M", host="64M", devices=2)


@pytest.fixture
def recorded(small: Mount, tmp_path: Path) -> list[Json]:
    """The lines of ``run.jsonl``: two devices; dev0 has too little memory for region a."""
    small.region("a", 8 * M)
    small.region(IMAGE, 1 * M).write_bytes(bytes(M))
    path = tmp_path / "run.jsonl"
    script = f"{LAUNCH}; {LAUNCH}; exit 4"
    words = ["--interval", "0.01", "--", "sh", "-c", script]
    done = run("record", str(small.path), "-o", str(path), *words, check=False)
    assert (done.returncode, done.stderr) == (4, "")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chrome]:
    # What a browser writes besides its profile goes with the test as well.
    monkeypatch.setenv("HOME", str(tmp_path))
    with browser(tmp_path / "profile") as found:
        yield found


def show(driver: Chrome, recording: Path) -> None:
    page = recording.with_suffix(".html")
    run("report", str(recording))
    driver.get(page.as_uri())
    wait(driver, lambda driver: find(driver, "body[data-ready=true]"))


def evictions(records: list[Json]) -> list[Json]:
    return [
        record
        for record in records
        if record.get("event") == "migrate_end" and record["trigger"] == "eviction"
    ]


def moment(driver: Chrome) -> float:
    return float(find(driver, "#cursor-time")[0].get_attribute("data-t"))


def panel(driver: Chrome, kind: str = "") -> list[dict[str, str]]:
    """Events that are listed around the cursor."""
    return [
        {
            key: each.get_attribute(f"data-{key}") for key in ("t", "event", "trigger", "region")
        } | {"text": each.text}
        for each in find(driver, f"#panel-events li{kind}")
    ]  # fmt: skip


def pages_of(driver: Chrome, region: str) -> dict[str, int]:
    cells = find(driver, f'#panel-regions tr[data-region="{region}"] td[data-node]')
    return {
        cell.get_attribute("data-node"): int(cell.get_attribute("data-pages")) for cell in cells
    }


def test_the_page_of_a_run(driver: Chrome, recorded: list[Json], tmp_path: Path) -> None:
    clock = recorded[0]["clock"]
    gone = evictions(recorded)
    samples = [record for record in recorded if record["type"] == "sample"]
    assert gone
    show(driver, tmp_path / "run.jsonl")

    head = find(driver, "#facts")[0].text
    assert "exit status 4" in head
    assert "dev0 4 MiB" in head
    evicted = sum(each["pages"] for each in gone)
    before, after = (recorded[at]["devices"]["dev0"]["evicted_pages"] for at in (0, -1))
    figure = find(driver, "[data-figure=evicted_pages]")[0].text
    assert f"{after - before:,}" in figure
    assert f"in {len(gone)} evictions" in figure
    assert evicted >= after - before
    copied = sum(each["bytes"] for each in gone)
    row = find(driver, "#triggers tr[data-trigger=eviction]")[0].text
    assert f" {len(gone)} {copied // M} MiB" in row

    # Scrubbing: with the mouse to the middle of the time, from there by keys.
    chart = find(driver, "[data-chart=region][data-name=a] svg")[0]
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    wide = chart.rect["width"]
    span = float(find(driver, "#timeline")[0].get_attribute("aria-valuemax"))
    for part in (-0.25, 0.25):
        ActionChains(driver).move_to_element_with_offset(chart, part * wide, 10).perform()
        assert moment(driver) == pytest.approx((0.5 + part) * span, abs=2 * span / wide)
    # Between two samples that differ, the earlier holds.
    times = [sample["t"] - clock for sample in samples]
    there = [sample["regions"]["a"]["dev0"] for sample in samples]
    changes = [index for index in range(len(there) - 1) if there[index] != there[index + 1]]
    at = max(changes, key=lambda index: times[index + 1] - times[index])
    offset = ((times[at] + times[at + 1]) / 2 / span - 0.5) * wide
    ActionChains(driver).move_to_element_with_offset(chart, offset, 10).perform()
    assert times[at] < moment(driver) < times[at + 1]
    assert pages_of(driver, "a")["dev0"] == there[at]
    for key, step in ((Keys.ARROW_LEFT, 0), (Keys.ARROW_LEFT, -1), (Keys.ARROW_RIGHT, 0)):
        ActionChains(driver).send_keys(key).perform()
        assert moment(driver) == pytest.approx(times[at + step], abs=1e-8)
        here = samples[at + step]["regions"]["a"]
        assert pages_of(driver, "a") == {node: here[node] for node in ("host", "dev0", "dev1")}
    ActionChains(driver).send_keys(Keys.ESCAPE).perform()

    # The eviction: the mouse goes to its time, and the panel has it.
    first = gone[0]
    when = first["t"] - clock
    offset = (when / span - 0.5) * wide
    ActionChains(driver).move_to_element_with_offset(chart, offset, 60).perform()
    assert moment(driver) == pytest.approx(when, abs=2 * span / wide)
    driver.execute_script("document.activeElement.blur()")
    find(driver, "#timeline")[0].send_keys(Keys.HOME)
    assert moment(driver) == 0
    ActionChains(driver).send_keys("e").perform()
    assert moment(driver) == pytest.approx(when, abs=1e-8)
    listed = panel(driver, ".eviction[aria-current=true]")
    assert [(each["event"], each["trigger"], each["region"]) for each in listed] == [
        ("migrate_end", "eviction", "a")
    ]
    assert f"dev0 evicted a {first['first']}+{first['pages']} dev0 → host" in listed[0]["text"]
    assert not find(driver, "#pinned")[0].get_attribute("hidden")

    assert complaints(driver) == []
    page = (tmp_path / "run.html").as_uri()
    assert requested(driver) == [page]


def test_a_mark_brings_the_cursor_there(
    driver: Chrome, recorded: list[Json], tmp_path: Path
) -> None:
    show(driver, tmp_path / "run.jsonl")
    for chart in ("[data-chart=vram][data-name=dev0]", "[data-chart=region][data-name=a]"):
        marks = find(driver, f"{chart} .eviction-mark")
        assert sum(int(mark.get_attribute("data-count")) for mark in marks) == len(
            evictions(recorded)
        )
        mark = marks[-1]
        wanted = float(mark.get_attribute("data-t"))
        ActionChains(driver).send_keys(Keys.ESCAPE).move_to_element(mark).click().perform()
        assert moment(driver) == wanted
        current = panel(driver, ".eviction[aria-current=true]")
        assert [(float(each["t"]), each["region"]) for each in current] == [(wanted, "a")]
        line, shape = find(driver, f"{chart} line.cursor")[0], mark.rect
        assert line.rect["x"] == pytest.approx(shape["x"] + shape["width"] / 2, abs=1.5)
        assert find(driver, "#pinned")[0].is_displayed()
    assert not find(driver, "[data-chart=vram][data-name=dev1] .eviction-mark")
    assert complaints(driver) == []


def test_a_viewer_opens_the_export_of_a_run(
    driver: Chrome, recorded: list[Json], tmp_path: Path
) -> None:
    run("export", "--perfetto", str(tmp_path / "run.jsonl"))
    text = (tmp_path / "run.trace.json").read_text()
    found = check_format(text)
    model = read_by_viewer(driver, tmp_path, text)
    assert model["warnings"] == []
    evicted = [title for _, _, title, *_ in model["slices"] if title == "evict"]
    assert len(evicted) == len(evictions(recorded)) > 0
    assert len(model["slices"]) == sum(each["ph"] in ("X", "i") for each in found)
    region = model["counters"]["region a"]
    samples = [record["regions"]["a"] for record in recorded if record["type"] == "sample"]
    for node in ("host", "dev0", "dev1"):
        assert [value for _, value in region[node]] == [each[node] * 4096 for each in samples]


def hostile(recorded: list[Json], path: Path) -> None:
    """All names in a recording mean mischief."""
    for record in recorded:
        if record["type"] == "event":
            record["region"] = SCRIPT if record["region"] == "a" else IMAGE
        elif record["type"] == "sample":
            record["regions"][SCRIPT] = record["regions"].pop("a", {"size": 1})
        elif record["type"] == "header":
            record |= {"command": [SCRIPT, IMAGE], "mount": f"/{IMAGE}", "hmmfs": SCRIPT}
            record["topology"] = f"{SCRIPT} {IMAGE}\n"
    path.write_text("".join(json.dumps(record) + "\n" for record in recorded))


def test_names_run_no_script(driver: Chrome, recorded: list[Json], tmp_path: Path) -> None:
    path = tmp_path / "hostile.jsonl"
    hostile(recorded, path)
    show(driver, path)
    title = driver.title
    ActionChains(driver).send_keys("e").perform()
    shown = [each.text for each in find(driver, "#panel-regions bdi")]
    assert set(shown) == {SCRIPT, IMAGE}
    assert {each["region"] for each in panel(driver)} <= {SCRIPT, IMAGE}
    assert find(driver, "h1")[0].text == title.removeprefix("hmmfs: ")
    assert len(find(driver, "script")) == 2
    assert not find(driver, "img")
    assert driver.title == title
    assert complaints(driver) == []


def test_recordings_with_little_in_them(driver: Chrome, small: Mount, tmp_path: Path) -> None:
    path, bare = tmp_path / "run.jsonl", tmp_path / "bare.jsonl"
    run("record", str(small.path), "-o", str(path), "--", "true")
    bare.write_text(path.read_text().partition("\n")[0] + "\n")
    for recording, said in ((path, "Nothing was evicted, either."), (bare, "There is no sample")):
        show(driver, recording)
        assert said in find(driver, "main")[0].text
        for key in (Keys.ARROW_RIGHT, Keys.ARROW_LEFT, "e", "E"):
            ActionChains(driver).send_keys(key).perform()
        assert complaints(driver) == []
    assert "no end" in find(driver, "#notes")[0].text


def test_the_page_holds_nothing_from_elsewhere(recorded: list[Json], tmp_path: Path) -> None:
    """Even from a directory that has nothing else."""
    run("report", str(tmp_path / "run.jsonl"))
    page = (tmp_path / "run.html").read_text()
    for word in ("http:", "https:", "@import", "url(", " src=", "<link"):
        assert word not in page.replace("http://www.w3.org/2000/svg", "").replace(
            json.dumps(IMAGE)[1:-1].replace("<", "\\u003c"), ""
        ), word
