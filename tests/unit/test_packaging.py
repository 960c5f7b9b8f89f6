"""What an installation contains."""

import os
import re
import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import pytest

import hmmfs

ROOT = Path(__file__).parents[2]


def test_version_and_entry_point() -> None:
    assert metadata.version("hmmfs") == hmmfs.__version__
    (entry,) = metadata.entry_points(group="console_scripts", name="hmmfs")
    assert entry.value == "hmmfs.cli:main"


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
    code = f"import sys, hmmfs.cli; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


@pytest.mark.parametrize("name", ["scripts/setup", "scripts/check", "scripts/test", ".ci/run"])
def test_scripts_are_strict(name: str) -> None:
    path = ROOT / name
    assert os.access(path, os.X_OK)
    assert re.search("^set -euo pipefail$", path.read_text(), re.M)
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_setup_has_nothing_to_do() -> None:
    """The tests run from a set-up checkout, so a second setup is silent."""
    if not (ROOT / ".venv" / "stamp-native").exists():
        pytest.skip("this checkout was not set up by scripts/setup")
    done = subprocess.run(
        [str(ROOT / "scripts/setup"), "--test"], capture_output=True, text=True, cwd="/"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_setup_refuses_other_arguments() -> None:
    done = subprocess.run(
        [str(ROOT / "scripts/setup"), "--tset"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 2
    assert done.stderr == 'scripts/setup: it takes nothing or --test, not "--tset".\n'
