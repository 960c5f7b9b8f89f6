"""Each hazard of the protocol in the one order of events that shows it (interleavings.c). Every
scene passes with the core as it is, and fails where the mistake that it is about is made in it
(mistakes.py): so it is known to find it."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
from core_build import FLAGS, HERE, NATIVE, SOURCES, compile_into
from mistakes import LACKING, MISTAKES

from tests.model.state import Protocol

PAUSES = ["-DHM_PAUSES", "-O1"]
PROGRAM = HERE / "interleavings.c"
SCENES = re.findall(r"^    SCENE\((\w+)\),$", PROGRAM.read_text(), re.MULTILINE)
LIMIT_S = 5.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interleavings")


@pytest.fixture(scope="module")
def objects(directory: Path) -> list[Path]:
    return compile_into(directory / "core", PAUSES, [*SOURCES, PROGRAM])


def link(path: Path, objects: list[Path]) -> Path:
    subprocess.run(["gcc", *FLAGS, "-o", path, *objects, "-lz"], check=True)
    return path


@pytest.fixture(scope="module")
def program(directory: Path, objects: list[Path]) -> Path:
    return link(directory / "interleavings", objects)


def play(program: Path, scene: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, scene], capture_output=True, text=True, timeout=LIMIT_S)


@pytest.mark.parametrize("scene", SCENES)
def test_scene(program: Path, scene: str) -> None:
    done = play(program, scene)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_found(directory: Path, objects: list[Path], name: str) -> None:
    scene, file, right, wrong = MISTAKES[name]
    text = (NATIVE / file).read_text()
    assert text.count(right) == 1, f"{name}: {file} has changed: make the mistake in it anew"
    here = directory / name
    here.mkdir()
    (here / file).write_text(text.replace(right, wrong))
    (spoilt,) = compile_into(here, PAUSES, [here / file])
    others = [path for path in objects if path.name != spoilt.name]
    done = play(link(here / "interleavings", [spoilt, *others]), scene)
    assert done.returncode == 1, f"{scene} passes with the mistake: {done.stderr}"
    assert "nobody comes to" not in done.stderr, "it fails, but not by what it is about"


def test_every_mistake_of_the_model_has_its_twin() -> None:
    switches = {field.name for field in fields(Protocol) if field.default is False}
    assert switches == (switches & set(MISTAKES)) | set(LACKING)
    assert not set(MISTAKES) & set(LACKING)
    assert {mistake.scene for mistake in MISTAKES.values()} <= set(SCENES)


def test_users_build_no_pauses(directory: Path) -> None:
    """The objects are those of the same sources without the points."""
    flags = ["-O2", "-g0"]
    with_points = [source for source in SOURCES if "hm_pause(" in source.read_text()]
    assert len(with_points) > 4
    bare = directory / "bare"
    bare.mkdir()
    for source in with_points:
        text = re.sub(r'^ *hm_pause\("[\w.]+"\);\n', "", source.read_text(), flags=re.MULTILINE)
        assert "hm_pause" not in text
        (bare / source.name).write_text(text)
    without = compile_into(bare, flags, sorted(bare.glob("*.c")))
    for one in compile_into(directory / "theirs", flags, with_points):
        other = next(path for path in without if path.name == one.name)
        assert one.read_bytes() == other.read_bytes(), one.name
