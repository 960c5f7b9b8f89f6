"""hmmfs smi, topo and map: what they say is what the mount's files say."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from conftest import HMMFS, Mount, MountFactory, run

import hmmfs
from hmmfs.common.mountinfo import Entry
from hmmfs.inspect.smi.query import FIELDS

M = 1 << 20


def touch(x: np.ndarray) -> None:
    x[::4096] += 1


@pytest.fixture
def busy(mount_factory: MountFactory) -> Mount:
    """grid thrashes for want of VRAM, mailbox between program and device; calm does not."""
    mount = mount_factory(vram="4M", devices=2, host="64M", peer="nvlink3")
    machine = hmmfs.connect(mount.path)
    grid, mailbox, calm = (
        machine.region(name, size * M) for name, size in (("grid", 6), ("mailbox", 1), ("calm", 1))
    )
    calm.cpu[:] = 1
    for _ in range(5):
        machine.dev0.launch(touch, hmmfs.updates(grid)).wait()
        machine.dev1.launch(touch, hmmfs.updates(mailbox)).wait()
        mailbox.cpu[::4096] += 1
    return mount


def smi(mount: Mount, *words: str) -> str:
    return run("smi", str(mount.path), *words).stdout


# ---- smi


def test_the_table(busy: Mount) -> None:
    text = smi(busy)
    assert f"on {busy.path}," in text.splitlines()[0]
    device = next(line for line in text.splitlines() if line.startswith(" dev0"))
    faults = busy.values("devices/dev0/faults")["total"]
    assert device.split()[:9] == [
        "dev0",
        "private",
        "4",
        "MiB",
        "/",
        "4",
        "MiB",
        "100",
        str(faults),
    ]
    grid = next(line for line in text.splitlines() if line.startswith(" grid"))
    found = busy.residency("grid")
    assert f"host={found['pages_host']} dev0={found['pages_dev0']}" in grid


def test_what_thrashes_in_words(busy: Mount) -> None:
    said = smi(busy).partition("Thrashing\n")[2].splitlines()
    pages = {line.split()[0]: int(line.split()[3][6:]) for line in _thrashing(busy)}
    assert said[0].startswith(
        f"Region grid thrashes on dev0: {pages['grid']:,} pages (".replace(",", " ")
    )
    assert "use more by turns than its 4 MiB of VRAM hold; with twice as much all would" in said[0]
    assert said[1] == f"    hmmfs advise {busy.path} grid accessed_by=dev0"
    assert said[2].startswith("Region mailbox thrashes between programs and dev1: ")
    assert said[3] == f"    hmmfs advise {busy.path} mailbox no_migrate"
    assert len(said) == 4
    for line in (said[1], said[3]):
        run(*line.split()[1:])
    assert (busy.path / "state/mailbox/advice").read_text() == "all no_migrate\n"


def _thrashing(mount: Mount) -> list[str]:
    return (mount.path / "thrashing").read_text().splitlines()


def test_nothing_thrashes(mount_factory: MountFactory) -> None:
    mount = mount_factory(devices=0, host="16M")
    text = smi(mount)
    assert "There are no devices." in text
    assert "There are no regions." in text
    assert text.endswith("No region thrashes.\n")


def test_every_field(busy: Mount) -> None:
    names = list(FIELDS)
    found = list(csv.reader(io.StringIO(smi(busy, "--query", ",".join(names)))))
    assert [cell.partition(" [")[0] for cell in found[0]] == names
    assert len(found) == 3
    bare = smi(busy, "--query", ",".join(names), "--format=csv,noheader,nounits")
    rows = [dict(zip(names, row, strict=True)) for row in csv.reader(io.StringIO(bare))]
    for number, row in enumerate(rows):
        stats = busy.values(f"devices/dev{number}/stats")
        faults = busy.values(f"devices/dev{number}/faults")
        vram = busy.path / f"devices/dev{number}/vram"
        assert row["name"] == f"dev{number}"
        assert row["memory.used"] == (vram / "used").read_text().strip()
        assert int(row["memory.free"]) == 4 * M - int(row["memory.used"])
        for word in ("read", "write", "migrated", "populated", "upgraded", "stale", "pending"):
            assert int(row[f"faults.{word}"]) == faults[word]
        for word in ("evicted", "thrashed", "shared", "refaulted"):
            assert int(row[f"{word}.pages"]) == stats[f"{word}_pages"]
        for way in ("in", "out"):
            assert int(row[f"pages.{way}"]) == stats[f"pages_{way}"]
            for why in ("cpu_fault", "device_fault", "prefetch", "eviction", "operation"):
                assert int(row[f"{way}.{why}"]) == stats[f"{way}_{why}"]
    told = run("smi", "--help-query").stdout
    assert [line.split()[0] for line in told.splitlines()[: len(names)]] == names


def test_units_and_choice(busy: Mount) -> None:
    assert smi(busy, "--query=name,memory.total", "-i", "dev1") == (
        f"name,memory.total [B]\ndev1,{4 * M} B\n"
    )
    links = "--query=link.dev1.name,link.host.name"
    assert smi(busy, links, "-i", "0", "--format=csv,noheader") == "nvlink3,pcie3\n"


def test_json(busy: Mount) -> None:
    found = json.loads(smi(busy, "--json"))
    assert found["schema"] == 1
    assert [device["name"] for device in found["devices"]] == ["dev0", "dev1"]
    assert found["devices"][0]["faults"] == busy.values("devices/dev0/faults")
    assert found["devices"][1]["stats"] == busy.values("devices/dev1/stats")
    regions = {region["name"]: region for region in found["regions"]}
    assert regions["grid"]["residency"] == busy.residency("grid")
    assert regions["grid"]["faults"] == busy.values("state/grid/faults")
    causes = [(each["region"], each["device"], each["cause"]) for each in found["thrashing"]]
    assert causes == [("grid", "dev0", "capacity"), ("mailbox", "dev1", "sharing")]


@pytest.mark.parametrize(
    ("words", "lines"),
    [(["--json"], 3), (["--query=name,faults.rate"], 7), ([], 60)],
    ids=["json", "csv", "table"],
)
def test_again_and_again(busy: Mount, words: list[str], lines: int) -> None:
    child = subprocess.Popen(
        [*HMMFS, "smi", str(busy.path), "-l", "0.05", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    read = [child.stdout.readline() for _ in range(lines)]
    assert all(line.endswith("\n") for line in read)
    child.send_signal(signal.SIGINT)
    rest, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert errors.strip() == "", "the shell is on a new line"
    if words == ["--json"]:
        assert all(json.loads(line)["schema"] == 1 for line in read)
    elif words:
        text = "".join(read) + rest
        assert text.count("name,faults.rate") == 1, "the header comes once"
        assert re.search(r"^dev0,\d+\.\d", text, re.MULTILINE)
    else:
        assert ("".join(read) + rest).count("Devices") >= 2


def test_names_are_shown_not_obeyed(mount_factory: MountFactory) -> None:
    mount = mount_factory(vram="4M", host="16M")
    for name in (b"[red]x", b"\x1b[2Jgone", b"\xff\xfe", b"line\nbreak"):
        with open(os.fsencode(mount.regions) + b"/" + name, "wb") as file:
            file.truncate(4096)
    text = smi(mount)
    for shown in ("[red]x", "\\033[2Jgone", "\\377\\376", "line\\012break"):
        assert f" {shown} " in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["--query=memory.usd"], 2, 'did you mean "memory.used"?'),
        (["--query="], 2, "no field"),
        (["--query=name", "--format=xml"], 2, "is not a format"),
        (["--format=csv"], 2, "is of --query"),
        (["--query=name", "--json"], 2, "Give it or --query"),
        (["-i", "dev7"], 2, "the devices are dev0, dev1"),
        (["-l", "0"], 2, "0.05"),
        (["-l", "never"], 2, "never"),
        (["-l", "nan"], 2, "not a number of seconds"),
    ],
)
def test_mistakes(mount: Mount, words: list[str], status: int, sentence: str) -> None:
    done = run("smi", str(mount.path), *words, check=False)
    assert done.returncode == status
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_no_mount(tmp_path: Path) -> None:
    for command in (["smi"], ["top"], ["topo"], ["map"]):
        words = [*command, str(tmp_path), *(["a"] if command == ["map"] else [])]
        done = run(*words, check=False)
        assert done.returncode in (1, 2)
        assert done.stderr.startswith("hmmfs: ")
        assert done.stderr.count("\n") == 1


def test_the_only_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    from hmmfs.common import mountinfo
    from hmmfs.errors import HmmfsError
    from hmmfs.inspect.mount.mounts import choose

    there = [Entry("/x", "ext4", "", 0, 1), Entry("/a b", mountinfo.TYPE, "", 0, 2)]
    monkeypatch.setattr(mountinfo, "entries", lambda: there)
    assert choose(None) == "/a b"
    there.append(Entry("/c", mountinfo.TYPE, "", 0, 3))
    with pytest.raises(HmmfsError, match=r"several hmmfs mounts.*/a b, /c"):
        choose(None)
    there[:] = there[:1]
    with pytest.raises(HmmfsError, match="There is no hmmfs mount"):
        choose(None)


def test_an_audit(busy: Mount) -> None:
    assert run("audit", str(busy.path)).stdout == "ok\n"


# ---- topo


def test_topo(busy: Mount) -> None:
    text = run("topo", "-m", str(busy.path)).stdout
    matrix = [line.split() for line in (busy.path / "topology").read_text().splitlines()]
    shown = [line.split() for line in text.splitlines()[1 : 1 + len(matrix)]]
    assert shown == [matrix[0][1:], *matrix[1:]]
    found = json.loads(run("topo", "--json", str(busy.path)).stdout)
    assert found["schema"] == 1
    assert [link["nodes"] for link in found["links"]] == [
        ["host", "dev0"],
        ["host", "dev1"],
        ["dev0", "dev1"],
    ]
    said = dict(
        line.split() for line in (busy.path / "devices/dev1/links/dev0").read_text().splitlines()
    )
    assert found["links"][2]["type"] == said["type"] == "nvlink3"
    assert found["links"][2]["latency_ns"] == int(said["latency_ns"])
    assert found["links"][2]["bandwidth"] == int(said["bandwidth"])


def test_topo_without_links(mount: Mount) -> None:
    text = run("topo", str(mount.path)).stdout
    assert "  dev0  pcie3  X      -" in text
    assert "no link: copies go through the host" in text


# ---- map


def test_a_map_in_the_terminal(busy: Mount) -> None:
    text = run("map", str(busy.path), "grid").stdout
    rows = [line.split() for line in text.splitlines() if re.match(r"[0-9a-f]{12}  ", line)]
    width = len("".join(row[1] for row in rows))
    found = busy.residency("grid")
    drawn = "".join(row[1] for row in rows)
    assert drawn.count("h") * 1536 == found["pages_host"] * width
    assert drawn.count("0") * 1536 == found["pages_dev0"] * width
    host, device = (f"{found[key]:,}".replace(",", " ") for key in ("pages_host", "pages_dev0"))
    assert text.splitlines()[-1].startswith(f"host: {host} pages (")
    assert f" dev0: {device} pages (" in text.splitlines()[-1]
    assert run("map", str(busy.regions / "grid")).stdout == text


@pytest.mark.parametrize("by", ["dirty", "faults", "evictions"])
def test_a_map_of_counts(busy: Mount, by: str) -> None:
    text = run("map", str(busy.path), "grid", "--by", by).stdout
    assert f"Region grid, 6 MiB, by {by}" in text
    drawn = "".join(re.findall(r"^[0-9a-f]{12}  (\S+)", text, re.MULTILINE))
    assert set(drawn) <= set(".123456789")
    assert "9" in drawn


def test_pictures(busy: Mount, tmp_path: Path) -> None:
    for by in ("owner", "faults"):
        png, svg = tmp_path / "grid.png", tmp_path / "grid.svg"
        run("map", str(busy.path), "grid", "--by", by, "-o", str(png))
        image = matplotlib.image.imread(png)
        assert min(image.shape[:2]) > 200
        assert image[..., :3].std() > 0.05, "it is not blank"
        run("map", str(busy.path), "grid", "--by", by, "-o", str(svg))
        first = svg.read_bytes()
        ElementTree.fromstring(first)
        run("map", str(busy.path), "grid", "--by", by, "-o", str(svg))
        assert svg.read_bytes() == first, "the same picture twice"


def test_mistakes_with_maps(busy: Mount, tmp_path: Path) -> None:
    for words, sentence in (
        (["grid", "-o", "grid.jpg"], "neither .png nor .svg"),
        (["nothing"], "There is no region nothing"),
        (["a/b"], "is not a region's name"),
        (["grid", "-o", str(tmp_path / "no/grid.png")], "No such file or directory"),
    ):
        done = run("map", str(busy.path), *words, check=False)
        assert done.returncode in (1, 2)
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1


def test_pictures_take_matplotlib(busy: Mount, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('there is none')\n")
    done = subprocess.run(
        [*HMMFS, "map", str(busy.path), "grid", "-o", str(tmp_path / "x.png")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "hmmfs[plot]" in done.stderr
    assert done.stderr.count("\n") == 1
