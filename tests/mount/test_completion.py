"""Completion in real shells, with real mounts: what stands on the command line after a TAB."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmmfs.cli import completion
from hmmfs.cli.completion import SHELLS
from hmmfs.wire import launches
from tests.mount.conftest import Mount, MountFactory, run, wait_until

SHARE = Path(__file__).parents[2] / "hmmfs/share/completions"
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "TERM": "dumb",
    "LC_ALL": "C.UTF-8",
    "INPUTRC": "/dev/null",
}
SHOW = "\x14"  # a key that writes the line to a file, and begins a new one
START = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        """bind -x '"\\C-t": printf "%s\\n" "$READLINE_LINE" >{shown}; READLINE_LINE='; """
        "source {script}",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "fpath=({share} $fpath); autoload -U compinit; compinit -u -d {shown}.dump; "
        'show() {{ print -r -- "$BUFFER" >{shown}; BUFFER= }}; zle -N show; bindkey ^T show',
    ),
}


class Interactive:
    """A shell on a terminal of its own."""

    def __init__(self, shell: str, where: Path) -> None:
        words, setup = START[shell]
        self._shown = where / "shown"
        self.printed = b""
        self._terminal, theirs = pty.openpty()
        self._process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT, cwd=where,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._drain = threading.Thread(target=self._read)
        self._drain.start()
        setup = setup.format(shown=self._shown, share=SHARE, script=SHARE / SHELLS[shell])
        os.write(self._terminal, f"{setup}; : >{self._shown}.ready\n".encode())
        assert wait_until((where / "shown.ready").exists, 60)

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.printed += os.read(self._terminal, 1 << 16)

    def __call__(self, line: str) -> str:
        """What is there when TAB was pressed after that."""
        self._shown.unlink(missing_ok=True)
        os.write(self._terminal, f"{line}\t{SHOW}".encode())

        def written() -> bool:
            return self._shown.exists() and self._shown.read_text().endswith("\n")

        assert wait_until(written, 60)
        return self._shown.read_text().removesuffix("\n")

    def close(self) -> None:
        self._process.send_signal(signal.SIGHUP)
        self._process.wait(60)
        self._drain.join()
        os.close(self._terminal)


def in_fish(line: str) -> list[str]:
    """What fish would offer."""
    source = f"source {SHARE / SHELLS['fish']}; complete --do-complete (cat | string collect)"
    done = subprocess.run(
        ["fish", "--no-config", "-c", source], input=line, capture_output=True, text=True,
        env=ENVIRONMENT | {"HOME": "/tmp"}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return [offer.split("\t")[0] for offer in done.stdout.splitlines()]


@pytest.fixture(params=["bash", "zsh"])
def typed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Interactive]:
    shell = Interactive(request.param, tmp_path)
    yield shell
    shell.close()


# By what is typed of them.
NAMES = {
    "tw": "two words",
    "\\$": "$dollar 'n' \"quotes\"",
    "c": "col:on=x",
    "g": "größe, $HOME 'q' \"r\" `s`",
    "b": "back\\slash",
    "-- -": "-dash",
}


@pytest.fixture
def mount(mount_factory: MountFactory) -> Mount:
    made = mount_factory(vram="8M", devices=1)
    for name in NAMES.values():
        made.region(name, 4096)
    # Neither can be offered; the others can.
    made.region("new\nline", 4096)
    (made.regions / os.fsdecode(b"\xff")).touch()
    return made


def last(line: str) -> str:
    """The last word of a command line, as the command would get it."""
    return shlex.split(line)[-1]


def test_commands_and_mounts(typed: Interactive, mount: Mount) -> None:
    top = str(mount.path)
    assert typed("hmmfs umo") == "hmmfs umount "
    assert typed(f"hmmfs status {top[:-1]}") == f"hmmfs status {top} "
    assert typed("hmmfs status --js") == "hmmfs status --json "
    assert typed(f"hmmfs submit {top} d") == f"hmmfs submit {top} dev0 "
    assert typed(f"hmmfs status {mount.path.name[:2]}") == f"hmmfs status {mount.path.name} "
    assert typed("hmmfs completion z") == "hmmfs completion zsh "


@pytest.mark.parametrize(("begun", "name"), NAMES.items())
def test_regions(typed: Interactive, mount: Mount, begun: str, name: str) -> None:
    line = typed(f"hmmfs advise {mount.path} {begun}")
    assert last(line) == name
    assert line.endswith(" ")


def test_within_quotes(typed: Interactive, mount: Mount) -> None:
    for quote in "'\"":
        for begun, name in (("two w", "two words"), ("g", NAMES["g"]), ("col:o", "col:on=x")):
            line = typed(f"hmmfs advise {mount.path} {quote}{begun}")
            assert last(line).replace("\\$", "$").replace("\\`", "`") == name
    assert last(typed(f"hmmfs advise {mount.path} 'back\\s")) == "back\\slash"


def test_after_a_colon(typed: Interactive, mount: Mount) -> None:
    begun = f"hmmfs launch {mount.path} dev0 hmmfs.kernels:axpy "
    assert typed(begun + "rea") == begun + "reads:"
    assert last(typed(begun + "2.0 updates:tw")) == "updates:two words"
    assert last(typed(f"hmmfs advise {mount.path} col:o")) == "col:on=x"


def test_the_uses_are_those_of_a_launch() -> None:
    assert launches.USES == completion.USES


def test_programs(typed: Interactive, mount: Mount) -> None:
    command = [sys.executable, "-m", "hmmfs", "run", str(mount.path), "--", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as program:
        assert wait_until((mount.path / f"state/@{program.pid}").exists)
        first, rest = str(program.pid)[0], program.pid
        assert typed(f"hmmfs home {mount.path} {first}") == f"hmmfs home {mount.path} {rest} "
        assert in_fish(f"hmmfs home {mount.path} ") == [str(rest)]
        assert program.stdin is not None
        program.stdin.close()


def test_options(typed: Interactive, tmp_path: Path) -> None:
    for begun in ("hmmfs mount /mnt -o ", "hmmfs src0 /mnt -f -o "):
        assert typed(begun + "metrics_p") == begun + "metrics_port="
        assert typed(begun + "vram=64M,dev") == begun + "vram=64M,devices="
        assert typed(begun + "express=of") == begun + "express=off "
        assert typed(begun + "express=") == begun + "express=o"
        assert typed(begun + "vram=64M,nonsense") == begun + "vram=64M,nonsense"


def test_directories_and_files(typed: Interactive, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "plan.toml").touch()
    assert typed("hmmfs mount plac") == "hmmfs mount place/"
    assert typed("hmmfs mount --config plan") == "hmmfs mount --config plan.toml "


def test_fish(mount: Mount, tmp_path: Path) -> None:
    top = str(mount.path)
    assert in_fish("hmmfs umo") == ["umount"]
    assert in_fish(f"hmmfs status {top[:-1]}") == [top]
    assert in_fish(f"hmmfs submit {top} ") == ["dev0"]
    assert sorted(in_fish(f"hmmfs advise {top} ")) == sorted(NAMES.values())
    assert in_fish(f"hmmfs advise {top} 'two w") == ["two words"]
    assert in_fish("hmmfs mount /mnt -o vram=64M,dev") == ["vram=64M,devices="]
    assert in_fish("hmmfs src0 /mnt -o express=of") == ["express=off"]
    assert in_fish("hmmfs mount /us") == ["/usr/"]


def test_a_stuck_daemon_holds_no_shell_up(typed: Interactive, mount: Mount) -> None:
    """And its directory is offered all the same."""
    top, pid = str(mount.path), mount.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        assert typed(f"hmmfs submit {top} d") == f"hmmfs submit {top} d"
        assert typed(f"hmmfs umount {top[:-1]}") == f"hmmfs umount {top} "
        assert in_fish(f"hmmfs submit {top} d") == []
    finally:
        os.kill(pid, signal.SIGCONT)


def test_nothing_at_all(typed: Interactive, tmp_path: Path) -> None:
    """Mistakes on the line, and mounts that are none: no word, and no message in between."""
    for line in (
        f"hmmfs submit {tmp_path} d",
        "hmmfs stauts /tmp d",
        "hmmfs submit --nonsense d",
        "hmmfs advise 'unbalanced",
    ):
        assert typed(line) == line
    for word in (b"hmmfs: ", b"is not", b"Traceback", b"rror"):
        assert word not in typed.printed


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_are_printed(shell: str) -> None:
    assert run("completion", shell).stdout == (SHARE / SHELLS[shell]).read_text()


def test_other_shells() -> None:
    done = run("completion", "csh", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_several_mounts(mount: Mount, mount_factory: MountFactory) -> None:
    """Each is offered, and what is in the one that was given."""
    other = mount_factory(devices=3)
    parent = str(mount.path.parent)
    assert sorted(in_fish(f"hmmfs status {parent}")) == sorted([str(mount.path), str(other.path)])
    assert in_fish(f"hmmfs submit {other.path} ") == ["dev0", "dev1", "dev2"]
    assert in_fish(f"hmmfs advise {other.path} ") == []
