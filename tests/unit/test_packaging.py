"""What an installation contains."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata, resources
from pathlib import Path

import click
import pytest

import hmmfs
from hmmfs.cli import main as cli

ROOT = Path(__file__).parents[2]


def test_version_and_entry_point() -> None:
    assert metadata.version("hmmfs") == hmmfs.__version__
    (entry,) = metadata.entry_points(group="console_scripts", name="hmmfs")
    assert entry.value == "hmmfs.__main__:main"


def test_typed() -> None:
    assert resources.files("hmmfs").joinpath("py.typed").is_file()


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hmmfs", "-V"], capture_output=True, text=True, cwd="/"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"hmmfs {hmmfs.__version__}\n", "")


def test_command_starts_light() -> None:
    """`hmmfs status` and the waiting parent need neither numpy nor the native core."""
    heavy = {"numpy", "trio", "hmmfs._native", "prometheus_client"}
    code = f"import sys, hmmfs.cli.main; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


SCRIPTS = [f"scripts/{name}" for name in ("setup", "check", "demo", "test", "fresh")] + [".ci/run"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_strict(name: str) -> None:
    path = ROOT / name
    assert os.access(path, os.X_OK)
    assert re.search("^set -euo pipefail$", path.read_text(), re.M)
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_setup_has_nothing_to_do(pytestconfig: pytest.Config) -> None:
    """The tests run from a set-up checkout, so a second setup is silent."""
    if not (ROOT / ".venv" / "stamp-native").exists():
        pytest.skip("this checkout was not set up by scripts/setup")
    words = ["--test", *(["--no-browser"] if pytestconfig.getoption("--no-browser") else [])]
    done = subprocess.run(
        [str(ROOT / "scripts/setup"), *words], capture_output=True, text=True, cwd="/"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_setup_refuses_other_arguments() -> None:
    done = subprocess.run(
        [str(ROOT / "scripts/setup"), "--tset"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 2
    wanted = 'it takes nothing, --test or --test --no-browser, not "--tset".'
    assert done.stderr == f"scripts/setup: {wanted}\n"


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ((), ""),
        (("gcc", "fusermount3"), "gcc, fusermount3"),
        (
            ("pkg-config",),
            "pkg-config, libfuse 3.14 or later with its headers, zlib with its headers",
        ),
    ],
)
def test_setup_without_dpkg(lacking: tuple[str, ...], said: str) -> None:
    """Another distribution: what is there counts, by whatever package it came."""
    # Functions that the script inherits: bash has them in place of what they are named after.
    hidden = " || ".join(f"$2 == {name}" for name in ("dpkg-query", *lacking))
    functions = {"command": f'() {{ [[ {hidden} ]] && return 1; builtin command "$@"; }}'}
    functions |= dict.fromkeys(lacking, "() { return 127; }")
    environment = os.environ | {f"BASH_FUNC_{name}%%": body for name, body in functions.items()}
    command = [str(ROOT / "scripts/setup")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)
    sentence = f"install first, by this distribution's package manager: {said}."
    assert done.stderr == (f"scripts/setup: {sentence}\n" if said else "")
    assert (done.returncode, done.stdout) == (int(bool(said)), "")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "tell it which Debian to make: "),
        (["--help"], 2, "tell it which Debian to make: "),
        (["../../etc"], 2, "tell it which Debian to make: "),
        (["nosuch"], 2, 'debootstrap knows no suite "nosuch": name one such as '),
    ],
)
def test_fresh_refuses(words: list[str], status: int, said: str, tmp_path: Path) -> None:
    if words == ["nosuch"] and (os.geteuid() or not shutil.which("debootstrap")):
        pytest.skip("needs root and debootstrap, which scripts/fresh itself installs")
    command = [str(ROOT / "scripts/fresh"), *words]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"scripts/fresh: {said}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["setup.py", "native/build.py"])
def test_a_compiler_that_warns_builds_all_the_same(path: str) -> None:
    """scripts/check alone makes warnings errors: a user's compiler may be newer than ours."""
    assert "-Werror" not in (ROOT / path).read_text()


# Fields of linux/fuse.h that an older one calls padding, and newer ones what they like.
RENAMED = {"padding": "of_late", "unused": "of_late_too", "flags2": "flags_too"}


@pytest.mark.parametrize(
    "name", ["access.c", "fuse.c", "gate.c", "relay.c", "shared_access.c", "shared_size.c"]
)
def test_what_was_padding_is_never_used(name: str, tmp_path: Path) -> None:
    """Newer headers give such fields names, and others a new place: ours are our own."""
    text = Path("/usr/include/linux/fuse.h").read_text()
    for word, other in RENAMED.items():
        text = re.sub(rf"\b{word}\b", other, text)
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux/fuse.h").write_text(text)
    native = ROOT / "native"
    (path,) = native.rglob(name)
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-fsyntax-only", f"-I{tmp_path}"]
    done = subprocess.run([*command, f"-I{native}", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is in a wheel, built from the checkout beside what is there."""
    top = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(top / "build")]
    command += ["egg_info", "--egg-base", str(top)]
    command += ["bdist_wheel", "--bdist-dir", str(top / "tree"), "--dist-dir", str(top / "dist")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (path,) = (top / "dist").iterdir()
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_a_wheel_has_what_shells_and_man_look_for(wheel: list[str]) -> None:
    share = f"hmmfs-{hmmfs.__version__}.data/data/share"
    assert f"{share}/bash-completion/completions/hmmfs" in wheel
    assert f"{share}/zsh/site-functions/_hmmfs" in wheel
    assert f"{share}/fish/vendor_completions.d/hmmfs.fish" in wheel
    assert f"{share}/man/man5/hmmfs.5" in wheel
    pages = {f"{share}/man/man1/hmmfs-{name}.1" for name in cli.cli.commands}
    found = {name for name in wheel if name.startswith(f"{share}/man/man1/")}
    assert found == {f"{share}/man/man1/hmmfs.1", *pages}
    assert "hmmfs/share/completions/_hmmfs" in wheel  # for `hmmfs completion`


def test_a_wheel_has_the_library_of_hmmfs_run(wheel: list[str]) -> None:
    assert "hmmfs/libhmmfs-run.so" in wheel
    assert "hmmfs/cli/run.py" in wheel


PAGES = sorted((ROOT / "hmmfs/share/man").glob("man?/*"))


def test_manual_pages_are_up_to_date(tmp_path: Path) -> None:
    """If this fails, run scripts/man."""
    subprocess.run([sys.executable, str(ROOT / "scripts/man.py"), str(tmp_path)], check=True)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.glob("man?/*")}
    assert {path.relative_to(ROOT / "hmmfs/share/man"): path.read_bytes() for path in PAGES} == made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_manual_page_is_clean(page: Path) -> None:
    """By two formatters. A date would be that of the last change, which nobody would keep."""
    lint = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True
    )
    complaints = [line for line in lint.stdout.splitlines() if "missing date" not in line]
    assert complaints == []
    command = ["groff", "-man", "-Tutf8", "-ww", "-P-c", page]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for heading in ("Name", "See also"):
        assert f"\n{heading}\n" in re.sub(".\b", "", done.stdout)
    assert page.read_text().isascii()


def test_manual_pages_tell_of_every_option() -> None:
    for name, command in cli.cli.commands.items():
        text = (ROOT / f"hmmfs/share/man/man1/hmmfs-{name}.1").read_text().replace("\\-", "-")
        for param in command.params:
            for word in param.opts if isinstance(param, click.Option) else ():
                assert f"\\fB{word}\\fP" in text, f"{name} {word}"
