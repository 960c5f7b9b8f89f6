"""What a mount's core does in random steps is what the model allows: see tests/model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fsx
import pytest
from conftest import PATIENCE_S, mounted
from test_fsx import SMALL, Mode, explore_steps, name, peer  # noqa: F401

from tests.model.conformance import complaints

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-std=gnu11 -D_GNU_SOURCE -pthread -O2 -fPIC"
# Of the modes of test_fsx.py those whose memory is recalled: the model has no other.
MODES: list[Mode] = [
    {},
    {"express": "off"},
    {"keep_clean": "off", "prefetch": "none"},
    {"prefetch": "density", "eviction": "tree"},
    {"type": "coherent+private", "visible": "1M"},
    {"placement": "never", "thrashing": "uvm"},
]
EXAMPLES = 60


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, with a core that tells its steps."""
    directory = tmp_path_factory.mktemp("build")
    shutil.copytree(
        ROOT / "hmmfs",
        directory / "hmmfs",
        ignore=shutil.ignore_patterns("_native*", "__pycache__"),
    )
    told = directory / "steps.o"
    source = ROOT / "tests/native/steps.c"
    subprocess.run(
        ["gcc", *FLAGS.split(), f"-I{ROOT}/native", "-c", source, "-o", told], check=True
    )
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", str(directory)]
    command += ["--build-temp", str(directory / "temp")]
    flags = {"CFLAGS": "-DHM_STEPS", "LDFLAGS": str(told)}
    subprocess.run(command, cwd=ROOT, env=os.environ | flags, check=True)
    for other in (ROOT / "hmmfs").glob("_linux*.so"):  # has no core in it that could tell
        shutil.copy(other, directory / "hmmfs")
    return directory


@pytest.mark.parametrize("mode", MODES, ids=name)
def test_steps(
    build: Path,
    tmp_path: Path,
    peer: fsx.Peer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    mode: Mode,
) -> None:
    monkeypatch.setenv("HMMFS_STEPS", str(tmp_path / "steps"))
    with mounted(tmp_path, PATIENCE_S, build=build, **SMALL | mode) as mount:
        explore_steps(mount, peer, EXAMPLES)
    assert complaints(tmp_path, 100) == ""
