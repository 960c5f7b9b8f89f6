"""What an import brings with it: nothing heavy before it is used, and all names all the same."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import hmmfs

# What takes tens of milliseconds, or starts threads, or opens /dev/fuse.
HEAVY = (
    "numpy",
    "trio",
    "pyfuse3",
    "cffi",
    "hmmfs._native",
    "hmmfs.api.machine",
    "click",
    "cloudpickle",
)
SAY = f"import sys; print(*({set(HEAVY)!r} & sys.modules.keys()))"


def heavy_after(*command: str, cwd: Path | None = None) -> list[str]:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=60, cwd=cwd
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "words",
    [
        "import hmmfs",
        "import hmmfs; dir(hmmfs)",
        "from hmmfs import HmmfsError; HmmfsError",
        "import pytest; import hmmfs.pytest_plugin",
    ],
)
def test_an_import_brings_nothing_heavy(words: str) -> None:
    assert heavy_after("-c", f"{words}; {SAY}") == []


# What only the daemon needs: its packages, and what they stand on.
DAEMON = ("daemon", "service", "policy", "filesystem", "program")
THEIRS = ("trio", "pyfuse3", "click", "prometheus_client")


@pytest.mark.parametrize(
    "module", ["hmmfs", "hmmfs.api.machine", "hmmfs.device.worker", "hmmfs.cli.preload"]
)
def test_only_the_daemon_loads_the_daemon(module: str) -> None:
    """A device's process starts anew for each kernel that crashes."""
    said = heavy_after("-c", f"import {module}, sys; print(*sys.modules)")
    found = {name for name in said if name in THEIRS or name.split(".")[:2][-1] in DAEMON}
    assert {name for name in found if name in THEIRS or name.startswith("hmmfs.")} == set()


def test_pytest_starts_without_anything_heavy(tmp_path: Path) -> None:
    """With the plugin loaded as an installed package has it, and no test that asks for it."""
    (tmp_path / "test_it.py").write_text(
        f"def test_it(request):\n    assert request.config.pluginmanager.hasplugin('hmmfs')\n"
        f"    import sys\n    assert not {set(HEAVY)!r} & sys.modules.keys()\n"
    )
    said = heavy_after("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", cwd=tmp_path)
    assert "1 passed" in " ".join(said)


def test_the_names_are_there_before_they_are_imported() -> None:
    words = "import hmmfs; print(*dir(hmmfs)); from hmmfs import *; print(mount.__module__)"
    *listed, module = heavy_after("-c", words)
    assert {*hmmfs.__all__, "__version__", "__doc__"} <= set(listed)
    assert module == "hmmfs.api.machine"


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="module 'hmmfs' has no attribute 'nothing'"):
        _ = hmmfs.nothing  # type: ignore[attr-defined]


def test_checkers_and_editors_see_each_name_imported() -> None:
    """They read what is imported for them alone, and no __getattr__, which would allow any name."""
    tree = ast.parse(Path(hmmfs.__file__).read_text())
    (choice,) = (one for one in tree.body if isinstance(one, ast.If))
    assert ast.unparse(choice.test) == "TYPE_CHECKING"
    imports = [one for one in choice.body if isinstance(one, ast.ImportFrom)]
    assert sorted(name.name for one in imports for name in one.names) == hmmfs.__all__
    assert not any(getattr(one, "name", "") == "__getattr__" for one in tree.body)
    for one in imports:
        assert one.module is not None
        module = importlib.import_module(one.module)
        for name in one.names:
            assert getattr(hmmfs, name.name) is getattr(module, name.name)


def test_a_plain_run_does_without_the_command_line() -> None:
    """It takes 50 ms to import; whatever is more than `run DIRECTORY -- COMMAND` is its."""
    words = "import sys; from hmmfs.__main__ import main; sys.argv = ['hmmfs', *{words}]"
    said = "; main(); print('hmmfs.cli.main' in sys.modules)"
    run = "import hmmfs.cli.preload; hmmfs.cli.preload.run = lambda *all: print(*all); "
    plain = run + words.format(words=["run", "/mnt", "--", "ls", "-l"]) + said
    assert heavy_after("-c", plain) == ["/mnt", "None", "['ls',", "'-l']", "False"]
    for other in (["run", "/mnt", "--"], ["run", "--help"], ["run", "-x", "--", "ls"], ["--help"]):
        code = words.format(words=other)
        code += "; import atexit; atexit.register(lambda: print('hmmfs.cli.main' in sys.modules))"
        code += "; main()"
        done = subprocess.run(
            [sys.executable, "-c", run + code], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.endswith("True\n"), other
