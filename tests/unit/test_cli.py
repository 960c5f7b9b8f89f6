"""The command line up to the point of mounting, and its refusals."""

import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from hmmfs import __version__
from hmmfs.cli import main as cli
from hmmfs.common import mountinfo
from hmmfs.errors import HmmfsError
from hmmfs.inspect.mount import status as status_module
from hmmfs.inspect.mount.status import read_status
from hmmfs.mounting.config import Config
from hmmfs.wire import calls

Served = list[tuple[str, Config]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """What the daemon would have been asked to serve."""
    calls: Served = []

    def serve(path: str, config: Config, ready: Callable[[], None], owner: None) -> int:
        calls.append((path, config))
        ready()
        return 0

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setitem(sys.modules, "hmmfs.daemon.daemon", types.SimpleNamespace(serve=serve))
    return calls


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = cli.main(args)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("hmmfs: ")
    return status, captured.err


def test_mount_form(served: Served, tmp_path: Path) -> None:
    args = ["mount", str(tmp_path), "-o", "vram=8M", "-o", "devices=2", "-f"]
    assert cli.main(args) == 0
    assert served == [(str(tmp_path), Config(vram=8 << 20, devices=2, foreground=True))]


def test_mount8_form(served: Served, tmp_path: Path) -> None:
    options = "rw,vram=64M,user_id=0,dev,suid"
    assert cli.main(["src0", str(tmp_path), "-o", options, "-f"]) == 0
    assert cli.main(["src0", str(tmp_path), "-s", "-d", "-o", "fsname=x"]) == 0
    assert served == [
        (str(tmp_path), Config(fsname="src0", foreground=True)),
        (str(tmp_path), Config(fsname="x", threads=1, debug=True, foreground=True)),
    ]


def test_config_file(served: Served, tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text('[mount]\nvram = "8M"\n')
    args = ["mount", str(tmp_path), "--config", str(tmp_path / "f.toml"), "-o", "debug"]
    assert cli.main(args) == 0
    assert served[0][1] == Config(vram=8 << 20, debug=True, foreground=True)


def test_background(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    note = tmp_path / "note"

    def serve(path: str, config: Config, ready: Callable[[], None], owner: None) -> int:
        note.write_text(f"{path} {config.foreground} {os.getpid()}")
        ready()
        return 0

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setitem(sys.modules, "hmmfs.daemon.daemon", types.SimpleNamespace(serve=serve))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["src0", ".", "-o", "rw"]) == 0
    path, foreground, pid = note.read_text().split()
    os.waitpid(int(pid), 0)
    assert (path, foreground) == (str(tmp_path), "False")
    assert int(pid) != os.getpid()


@pytest.mark.parametrize("foreground", [["-f"], []])
def test_failure_of_the_daemon(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    foreground: list[str],
) -> None:
    def serve(*_: object) -> int:
        raise HmmfsError(16, "The mount is taken.")

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setitem(sys.modules, "hmmfs.daemon.daemon", types.SimpleNamespace(serve=serve))
    status, message = fails(["mount", str(tmp_path), *foreground], capsys)
    assert (status, message) == (1, "hmmfs: The mount is taken.\n")


@pytest.mark.parametrize(
    ("args", "status", "sentence"),
    [
        (["mount"], 2, "Missing argument 'DIR'."),
        (["mount", "/tmp", "-o", "vrma=1"], 2, '"vrma" (did you mean "vram"?)'),
        (["mount", "/tmp", "-o", "vram=1K"], 2, '"vram=1K" is wrong'),
        (["mount", "/tmp", "-q"], 2, "No such option"),
        (["mount", "/tmp", "/var"], 2, "unexpected extra argument"),
        (["mount", "/tmp", "--config", "/none.toml"], 2, "/none.toml cannot be read"),
        (["src0", "/tmp", "-o", "bogus"], 2, 'no option "bogus"'),
        (["src0"], 2, "Missing argument 'DIR'."),
        (["unmount", "/tmp"], 2, 'no command "unmount" (did you mean "umount"?)'),
        (["staus", "/tmp"], 2, 'no command "staus" (did you mean "status"?)'),
        (["umount", "/tmp"], 1, "/tmp is not an hmmfs mount"),
        (["umount", "/proc"], 1, "/proc is not an hmmfs mount"),
        (["umount", "/nowhere/at/all"], 1, "/nowhere/at/all is not an hmmfs mount"),
        (["status", "/tmp"], 1, "/tmp is not an hmmfs mount"),
        (["status"], 2, "Missing argument 'DIR'."),
        (["submit", "/tmp", "dev0"], 2, "Missing argument"),
        (["submit", "/tmp", "dev0", "checksum a"], 1, "/tmp is not an hmmfs mount"),
    ],
)
def test_refusals(
    served: Served,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    status: int,
    sentence: str,
) -> None:
    got, message = fails(args, capsys)
    assert sentence in message
    assert got == status
    assert not served


def test_a_source_may_resemble_a_command(served: Served, tmp_path: Path) -> None:
    assert cli.main(["mounts", str(tmp_path), "-f", "-o", "rw"]) == 0
    assert served[0][1].fsname == "mounts"


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([flag]) == 0
    assert capsys.readouterr().out == f"hmmfs {__version__}\n"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-h"]) == 0
    assert "umount" in capsys.readouterr().out
    assert cli.main(["mount", "-h"]) == 0
    assert "keep_clean" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert "Usage" in capsys.readouterr().out


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a mount's files, which counts as a mount here."""
    files = {
        "version": "0.1.0\n",
        "stats": "faults 12\nidle 0\nmode private memory\n",
        "devices/dev10/stats": "",
        "devices/dev10/vram/total": "0\n",
        "devices/dev10/vram/used": "0\n",
        "devices/dev9/stats": "evictions 3\n",
        "devices/dev9/vram/total": "67108864\n",
        "devices/dev9/vram/used": "2097152\n",
        "usage": "# region residency.pages_host residency.pages_dev9 residency.dirty_host "
        "residency.dirty_device residency.cpu_cached residency.size faults.cpu\n"
        "a\\040[b] 4 512 3 40 2 2113536 7\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    entry = mountinfo.Entry(str(tmp_path), mountinfo.TYPE, "hmmfs", 0, 77)
    monkeypatch.setattr(mountinfo, "require_hmmfs", lambda _: entry)
    monkeypatch.setattr(calls, "_file", lambda device, _: f"{device}/submit")
    return tmp_path


def test_status_json(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tree), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "path": str(tree),
        "version": "0.1.0",
        "stats": {"faults": 12, "idle": 0, "mode": "private memory"},
        "devices": [
            {
                "name": "dev9",
                "vram": {"total": 64 << 20, "used": 2 << 20},
                "stats": {"evictions": 3},
            },
            {"name": "dev10", "vram": {"total": 0, "used": 0}, "stats": {}},
        ],
        "regions": [
            {
                "name": "a [b]",
                "residency": {
                    "pages_host": 4,
                    "pages_dev9": 512,
                    "dirty_host": 3,
                    "dirty_device": 40,
                    "cpu_cached": 2,
                    "size": 2113536,
                },
            }
        ],
    }


def test_status_table(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", str(tree)]) == 0
    out = capsys.readouterr().out
    for text in ("dev9", "64M", "2M", "a [b]", "2064K", "512", "43", "faults", "12"):
        assert text in out
    assert "idle" not in out


def test_status_of_a_silent_mount(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "_collect", lambda _: time.sleep(1))
    with pytest.raises(HmmfsError, match=r"not answered for 0\.1 s: .*connections/77/abort"):
        read_status(str(tree), patience_s=0.1)


def test_status_of_a_dead_mount(tree: Path) -> None:
    (tree / "version").unlink()
    with pytest.raises(HmmfsError, match="cannot be read: No such file or directory"):
        read_status(str(tree))


def test_submit_prints_answers(tree: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    # A plain file answers with what was written to it, which is all that is needed here.
    (tree / "devices/dev9/submit").touch()
    assert cli.main(["submit", str(tree), "dev9", "checksum a"]) == 0
    assert capsysbinary.readouterr().out == b"checksum a\n"


def test_submit_tells_the_reason(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "devices/dev9/submit").symlink_to("/dev/full")
    monkeypatch.setattr(calls, "_answer", lambda _: "")  # that one never ends
    status, message = fails(["submit", str(tree), "dev9", "checksum b"], capsys)
    assert (status, message) == (1, 'hmmfs: "checksum b" failed: No space left on device.\n')
    status, message = fails(["submit", str(tree), "dev4", "checksum b"], capsys)
    assert message == "hmmfs: There is no device dev4; the devices are dev10, dev9.\n"
    assert status == 1
