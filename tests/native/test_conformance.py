"""What the core does is what the model allows, step by step: in storms, with a worker, and in
the scenes of the protocol. And of a core with a mistake it is said what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from core_build import HERE, SOURCES, TELLING, compile_into, link
from mistakes import MISTAKES, spoilt
from test_interleavings import SCENES as ALL_SCENES
from test_stress import SECONDS, STORMS, storm

from tests.model.conformance import complaints
from tests.model.test_rules import SEEN
from tests.stacks import run

# The model has no programs' own memory.
SCENES = {scene: name for scene, name in ALL_SCENES.items() if name != "program_scenes"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conformance")


@pytest.fixture(scope="module")
def objects(directory: Path) -> list[Path]:
    return compile_into(directory / "core", TELLING, [*SOURCES, HERE / "steps.c"])


@pytest.fixture(scope="module")
def mains(directory: Path) -> dict[str, Path]:
    names = {"stress", "device", *SCENES.values()}
    made = compile_into(directory / "mains", TELLING, [HERE / f"{name}.c" for name in names])
    return {path.stem: path for path in made}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which the processes of this test leave their steps."""
    monkeypatch.setenv("HMMFS_STEPS", str(tmp_path / "steps"))
    return tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount without a helper")
@pytest.mark.parametrize(("seed", "express", "advise"), STORMS)
def test_storm(
    objects: list[Path], mains: dict[str, Path], here: Path, seed: int, express: int, advise: int
) -> None:
    storm(link(here / "stress", [mains["stress"], *objects]), here, seed, express, advise)
    assert complaints(here, 500) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount without a helper")
def test_worker(objects: list[Path], mains: dict[str, Path], here: Path) -> None:
    program = link(here / "device", [mains["device"], *objects])
    for prefetch in "0123":
        command = ["setarch", "-R", program, str(SECONDS), "5", prefetch]
        done = run(command, 60)
        assert done.returncode == 0, done.stdout + done.stderr
    assert complaints(here, 100) == ""


def test_scenes(objects: list[Path], mains: dict[str, Path], here: Path) -> None:
    for name in set(SCENES.values()):
        link(here / name, [mains[name], *objects])
    for scene, name in SCENES.items():
        done = run([here / name, scene], 10)
        assert done.returncode == 0, f"{scene}: {done.stderr}"
    assert complaints(here, 200) == ""


@pytest.mark.parametrize("mistake", SEEN)
def test_a_mistake_shows(
    objects: list[Path], mains: dict[str, Path], here: Path, mistake: str
) -> None:
    """In the scene that finds it. By one step of the core, where the model may show it by another:
    it thaws the block in the hold of the lock in which it flips."""
    core = spoilt(mistake, here, TELLING, objects)
    scene = MISTAKES[mistake].scene
    program = link(here / "scene", [mains[SCENES[scene]], *core])
    run([program, scene], 10)
    assert complaints(here, 5) != ""
