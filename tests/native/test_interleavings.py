"""Each hazard of the protocol in the one order of events that shows it (interleavings.c). Every
scene passes with the core as it is, and fails where the mistake that it is about is made in it
(mistakes.py): so it is known to find it."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from core_build import HERE, SOURCES, compile_into, link
from mistakes import MISTAKES, spoilt

from hmmfs.cli.preload import LIBRARY
from tests.model.state import Protocol
from tests.stacks import run

PAUSES = ["-DHM_PAUSES", "-O1"]
# Which of the programs has a scene.
SCENES = {
    scene: name
    for name in ("interleavings", "worker_scenes", "program_scenes")
    for scene in re.findall(r"\bSCENE\((\w+)\)", (HERE / f"{name}.c").read_text())
}
LIMIT_S = 5.0
RELEASE = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
# Why a program's own memory can't be migrated here.
LACKS = "UFFDIO_MOVE is of Linux 6.8" if RELEASE < (6, 8) else ""
LACKS = "a userfaultfd tells root alone what a program does" if os.geteuid() else LACKS


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interleavings")


@pytest.fixture(scope="module")
def objects(directory: Path) -> list[Path]:
    return compile_into(directory / "core", PAUSES, SOURCES)


Play = Callable[[str, list[Path]], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def play(directory: Path) -> Play:
    """play(scene, objects) links the scene with the core of these objects, and runs it."""
    sources = [HERE / f"{name}.c" for name in set(SCENES.values())]
    mains = {path.stem: path for path in compile_into(directory / "mains", PAUSES, sources)}

    @functools.cache
    def linked(name: str, core: tuple[Path, ...]) -> Path:
        path = directory / f"{name}-{len(list(directory.iterdir()))}"
        return link(path, [mains[name], *core])

    def played(scene: str, core: list[Path]) -> subprocess.CompletedProcess[str]:
        program = linked(SCENES[scene], tuple(core))
        command = [program, scene]
        if SCENES[scene] == "program_scenes":
            if LACKS:
                pytest.skip(LACKS)
            command.append(LIBRARY)
        return run(command, LIMIT_S)

    return played


@pytest.mark.parametrize("scene", SCENES)
def test_scene(play: Play, objects: list[Path], scene: str) -> None:
    done = play(scene, objects)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_found(play: Play, directory: Path, objects: list[Path], name: str) -> None:
    scene, here = MISTAKES[name].scene, directory / name
    here.mkdir()
    done = play(scene, spoilt(name, here, PAUSES, objects))
    by_the_core = done.returncode == -signal.SIGABRT and done.stderr.startswith("lock.c: ")
    assert done.returncode == 1 or by_the_core, f"{scene} passes with the mistake: {done.stderr}"
    assert "nobody comes to" not in done.stderr, "it fails, but not by what it is about"


def test_every_mistake_of_the_model_has_its_twin() -> None:
    switches = {field.name for field in fields(Protocol) if field.default is False}
    assert len(switches) > 20
    assert switches <= set(MISTAKES)
    assert {mistake.scene for mistake in MISTAKES.values()} <= set(SCENES)


def test_users_build_neither_pauses_nor_steps(directory: Path) -> None:
    """The objects are those of the same sources without them."""
    flags = ["-O2", "-g0"]
    points = re.compile(r"^ *hm_(?:pause|step|step_of)\([^;]*\);(?: /\*.*\*/)?\n", re.MULTILINE)
    with_points = [source for source in SOURCES if points.search(source.read_text())]
    assert len(with_points) > 8
    bare = directory / "bare"
    bare.mkdir()
    for source in with_points:
        text = points.sub("", source.read_text())
        assert "hm_pause(" not in text
        assert "hm_step" not in text
        (bare / source.name).write_text(text)
    without = compile_into(bare, flags, sorted(bare.glob("*.c")))
    for one in compile_into(directory / "theirs", flags, with_points):
        other = next(path for path in without if path.name == one.name)
        assert one.read_bytes() == other.read_bytes(), one.name
