"""Building the native core for tests of it that have no Python in them."""

from __future__ import annotations

import os
import runpy
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "native"
SOURCES: list[Path] = runpy.run_path(str(NATIVE / "build.py"))["SOURCES"]
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-pthread", f"-I{NATIVE}"]
TELLING = ["-DHM_STEPS", "-DHM_PAUSES", "-O2", "-g"]  # its steps: beside steps.c


def source_of(name: str) -> Path:
    """The core's file of that name: no two layers have files of one name."""
    (path,) = (path for path in SOURCES if path.name == name)
    return path


def compile_into(directory: Path, flags: Iterable[str], sources: Iterable[Path]) -> list[Path]:
    """The sources' objects, made in the directory."""
    directory.mkdir(exist_ok=True)

    def one(source: Path) -> Path:
        command = ["gcc", *FLAGS, *flags, "-c", source]
        subprocess.run(command, check=True, cwd=directory)
        return directory / f"{source.stem}.o"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, sources))


def link(path: Path, objects: Iterable[Path], wrapped: Iterable[str] = ()) -> Path:
    """The program of these objects, whose calls of what is `wrapped` are __wrap_'s."""
    wraps = [f"-Wl,--wrap={name}" for name in wrapped]
    subprocess.run(["gcc", *FLAGS, "-o", path, *objects, "-lz", *wraps], check=True)
    return path
