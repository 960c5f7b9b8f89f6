"""scripts/layers.py: each break of the order of native/ and of hmmfs/ is found, with its line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def said_of(native: Path) -> list[str]:
    command = [sys.executable, str(ROOT / "scripts/layers.py"), str(native)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == bool(done.stderr)
    return done.stderr.splitlines()


@pytest.fixture
def native(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "native", tmp_path / "native"))


def test_the_core_is_in_order(native: Path) -> None:
    assert said_of(native) == []


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("worker/remote.c", '#include "base/core.h"', "worker/ may not use base/: base/core.h"),
        ("base/pool.h", '#include "gate/access.h"', "base/ may not use gate/: gate/access.h"),
        ("base/pool.c", "hm_audit(0, 0, 0);", "base/ may not use core/: hm_audit"),
        (
            "worker/remote.c",
            '#include "preload/preload.h"',
            "worker/ may not use preload/: preload/preload.h",
        ),
        (
            "preload/helper.c",
            "void *x = hm_region_get;",
            "preload/ may not use base/: hm_region_get",
        ),
        ("gate/gate.c", "hm_audit(0, 0, 0);", "gate/ may not use core/: hm_audit"),
        ("preload/tools.c", '#include "tools.h"', "There is no tools.h. "),
        ("include/hmmfs.h", '#include "worker/remote.h"', "include/ may not use worker/: "),
    ],
)
def test_what_is_above_is_not_used(native: Path, name: str, line: str, said: str) -> None:
    path = native / name
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:-1], line, ""]))
    (found,) = said_of(native)
    assert found.startswith(f"native/{name}:{len(lines)}: {said}")


def test_comments_use_nothing(native: Path) -> None:
    with (native / "worker/remote.c").open("a") as file:
        file.write('/* as hm_region_get does\n#include "core.h"\n*/\n')
    assert said_of(native) == []


def test_a_circle(native: Path) -> None:
    with (native / "preload/complain.c").open("a") as file:
        file.write("void *x = hm_attach;\n")
    (found,) = said_of(native)
    place, _, names = found.partition(": These use each other: ")
    assert place.startswith("native/preload/")
    assert set(names.split(", ")) == {"preload/attach", "preload/complain"}


def test_names_of_files_and_folders(native: Path) -> None:
    (native / "worker/pool.c").touch()
    (native / "elsewhere").mkdir()
    (native / "elsewhere/new.c").touch()
    assert said_of(native) == [
        "native/elsewhere/new.c:1: elsewhere/ is not in the order of layers_of_c.py.",
        "native/worker/pool.c:1: base/pool.c has that name, too. Give it another.",
    ]


def test_one_file_changes_owners() -> None:
    """And which pages there are: what hangs on that is counted there, too."""
    changes = re.compile(
        r"->(?:owner|present|device)\[[^]]*\] *[|&]?=[^=]"
        r"|hm_(?:add|keep|drop)\([^,()]*->(?:present|device),"
    )
    found = {
        path.name for path in (ROOT / "native").rglob("*.c") if changes.search(path.read_text())
    }
    assert found == {"owner.c"}


def test_one_file_says_in_which_order_locks_are_taken() -> None:
    """Of the core: what runs in other processes has locks of its own."""
    takes = re.compile(r"pthread_(?:mutex|rwlock)_\w*lock\(")
    found = {
        path.name
        for path in (ROOT / "native").rglob("*.[ch]")
        if path.parent.name not in ("preload", "worker") and takes.search(path.read_text())
    }
    assert found == {"lock.h"}


# ---- hmmfs/


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "hmmfs", tmp_path / "hmmfs"))


def test_the_package_is_in_order(package: Path) -> None:
    assert said_of(package) == []


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        (
            "memory/core.py",
            "import hmmfs.daemon.daemon",
            "memory/ may not use daemon/: daemon/daemon.py",
        ),
        (
            "memory/types.py",
            "from hmmfs import policy",
            "memory/ may not use policy/: policy/__init__.py",
        ),
        (
            "common/toml.py",
            "from hmmfs.wire import calls",
            "common/ may not use wire/: wire/calls.py",
        ),
        (
            "device/links.py",
            "def f():\n    import hmmfs.cli.main",
            "device/ may not use cli/: cli/main.py",
        ),
        (
            "daemon/daemon.py",
            "from hmmfs.api.handle import Handle",
            "daemon/ may not use api/: api/handle.py",
        ),
        (
            "service/jobs.py",
            "from hmmfs.inspect.mount import words",
            "service/ may not use inspect/mount/: ",
        ),
        (
            "inspect/mount/rows.py",
            "from hmmfs.inspect.smi import smi",
            "inspect/mount/ may not use inspect/smi/: ",
        ),
        (
            "policy/named.py",
            "if TYPE_CHECKING:\n    from hmmfs.service.reservations import Reservations",
            "policy/ may not use service/: service/reservations.py",
        ),
        ("errors.py", "from hmmfs.common.units import K", "errors/ may not use common/: "),
        (
            "policy/__init__.py",
            "from hmmfs.service.reservations import Reservations",
            "policy/ may not use service/",
        ),
    ],
)
def test_what_is_above_is_not_imported(package: Path, name: str, line: str, said: str) -> None:
    path = package / name
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:-1], line, ""]))
    (found,) = said_of(package)
    number = len(lines) + line.count("\n")
    assert found.startswith(f"hmmfs/{name}:{number}: {said}")


def test_a_circle_of_imports(package: Path) -> None:
    words = "from hmmfs.policy.chosen import Policies\n"
    for name in ("named.py", "prefetch.py"):
        with (package / "policy" / name).open("a") as file:
            file.write(f"if TYPE_CHECKING:\n    {words}")
    assert said_of(package) == [], "for checkers alone"
    with (package / "policy/named.py").open("a") as file:
        file.write(f"def f():\n    {words}")
    (found,) = said_of(package)
    assert "These use each other: " in found
    assert "policy/named.py" in found
    assert "policy/chosen.py" in found


def test_a_folder_that_is_new(package: Path) -> None:
    (package / "elsewhere").mkdir()
    (package / "elsewhere/new.py").touch()
    (found,) = said_of(package)
    assert found.startswith("hmmfs/elsewhere/new.py:1: ")
