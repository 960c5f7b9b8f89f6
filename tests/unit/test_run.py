"""`hmmfs run` up to the point where the program takes its place."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmmfs.cli import main as cli
from hmmfs.cli import preload as run
from hmmfs.common import mountinfo


class Replaced(Exception):
    pass


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that passes for a mount. What a test sets in the environment is undone."""
    entry = mountinfo.Entry(str(tmp_path), mountinfo.TYPE, "hmmfs", 0, 1)
    monkeypatch.setattr(mountinfo, "require_hmmfs", lambda _: entry)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    (tmp_path / "socket").write_text("hmmfs-abc\n")
    return tmp_path


def ran(args: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that would have been run."""
    commands = []

    def execvp(_: str, command: list[str]) -> None:
        commands.append(command)
        raise Replaced

    monkeypatch.setattr(os, "execvp", execvp)
    with pytest.raises(Replaced):
        cli.main(args)
    return commands[0]


@pytest.fixture(params=["of one word", "one"])
def library(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Where the library is, with blanks in the path and without."""
    path = Path(tempfile.mkdtemp(prefix="hmmfs-")) / request.param / "libhmmfs-run.so"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(run, "LIBRARY", str(path))
    yield path
    shutil.rmtree(path.parents[1])


def test_environment(mount: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blanks = " " in str(library)
    word, directory = (library.name, library.parent) if blanks else (library, None)
    os.environ |= {"LD_PRELOAD": f"other.so {word}:more.so", "HMMFS_LEAST": "1"}
    os.environ["LD_LIBRARY_PATH"] = f"/x y:{directory}:/z" if blanks else "/x y:/z"
    args = ["run", "--least", "2M", "elsewhere", "--", "prog", "--least", "--", "-x"]
    assert ran(args, monkeypatch) == ["prog", "--least", "--", "-x"]
    assert os.environ["HMMFS_SOCKET"] == "hmmfs-abc"
    assert os.environ["HMMFS_DIR"] == str(mount)
    assert os.environ["HMMFS_LEAST"] == str(2 << 20)
    assert os.environ["LD_PRELOAD"] == f"{word}:other.so:more.so"
    wanted = f"{directory}:/x y:/z" if blanks else "/x y:/z"
    assert os.environ["LD_LIBRARY_PATH"] == wanted


@pytest.mark.parametrize("blanks", [False, True])
def test_the_loader_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blanks: bool) -> None:
    directory = Path(tempfile.mkdtemp(prefix="hm m" if blanks else "hmm"))
    library = Path(shutil.copy(run.LIBRARY, directory))
    try:
        done = subprocess.run(
            ["cat", "/proc/self/maps"],
            env=os.environ | run.preloading(str(library), {}),
            capture_output=True,
            text=True,
        )
    finally:
        shutil.rmtree(directory)
    assert done.stderr == ""
    assert str(library) in done.stdout


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (None, "verify_asan_link_order=0"),
        ("", "verify_asan_link_order=0"),
        ("detect_leaks=0", "detect_leaks=0:verify_asan_link_order=0"),
        ("verify_asan_link_order=1", "verify_asan_link_order=1"),
    ],
)
def test_options_of_address_sanitizer(
    mount: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, given: str
) -> None:
    os.environ.pop("ASAN_OPTIONS", None)
    if own is not None:
        os.environ["ASAN_OPTIONS"] = own
    ran(["run", str(mount), "--", "prog"], monkeypatch)
    assert os.environ["ASAN_OPTIONS"] == given


def test_without_options(mount: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blanks = " " in str(library)
    os.environ |= {"HMMFS_LEAST": "1"}
    for name in ("LD_PRELOAD", "LD_LIBRARY_PATH"):
        os.environ.pop(name, None)
    assert ran(["run", str(mount), "--", "prog"], monkeypatch) == ["prog"]
    assert "HMMFS_LEAST" not in os.environ
    assert os.environ["LD_PRELOAD"] == (library.name if blanks else str(library))
    assert os.environ.get("LD_LIBRARY_PATH") == (str(library.parent) if blanks else None)


def test_what_cannot_be_run(mount: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = mount / "plain"
    plain.write_text("")
    for program, status, why in (
        ("/nowhere/at-all", 127, "No such file or directory"),
        ("no-program-of-this-name", 127, "No such file or directory"),
        (str(plain), 126, "Permission denied"),
        (str(mount), 126, "Permission denied"),
    ):
        assert cli.main(["run", str(mount), "--", program]) == status
        assert capsys.readouterr().err == f"hmmfs: {program} can't be run: {why}.\n"


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_a_mount_that_takes_no_programs(
    mount: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    (mount / "socket").unlink()
    if text is not None:
        (mount / "socket").write_text(text)
    assert cli.main(["run", str(mount), "--", "true"]) == 1
    assert capsys.readouterr().err == (
        f"hmmfs: The daemon of {mount} takes no programs. Mount again with this version of hmmfs.\n"
    )


def test_wrongly_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", str(tmp_path), "--", "true"]) == 1
    assert "is not an hmmfs mount" in capsys.readouterr().err
    for args in (["run", str(tmp_path)], ["run", str(tmp_path), "--"]):
        assert cli.main(args) == 2
        assert capsys.readouterr().err == (
            "hmmfs: Nothing is to be run: its form is hmmfs run DIR -- PROGRAM [ARGUMENT]...\n"
        )
    assert cli.main(["run", "--", "true"]) == 2
    assert "DIR" in capsys.readouterr().err


@pytest.mark.parametrize("letter", ":;$")
def test_a_path_that_cannot_be_preloaded(
    mount: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], letter: str
) -> None:
    library = mount / f"a{letter}b" / "c.so"
    monkeypatch.setattr(run, "LIBRARY", str(library))
    assert cli.main(["run", str(mount), "--", "true"]) == 1
    assert capsys.readouterr().err == f"hmmfs: There is no {library}. Install hmmfs anew.\n"
    library.parent.mkdir()
    library.touch()
    assert cli.main(["run", str(mount), "--", "true"]) == 1
    assert "no colon, semicolon or dollar sign" in capsys.readouterr().err
