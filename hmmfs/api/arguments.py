"""The words of `hmmfs launch`: which kernel, which regions, what else."""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any

import numpy as np

from hmmfs.api.checks import checked_name
from hmmfs.api.machine import Machine, connect
from hmmfs.api.program import View
from hmmfs.api.region import Argument, Region
from hmmfs.common.units import parse_size
from hmmfs.errors import UsageError
from hmmfs.wire.launches import USES

FORM = re.compile(rf"({'|'.join(USES)}):(.+?)(?::([A-Za-z]\w*)(?::(\d+(?:x\d+)*))?)?")


# PID@ADDRESS[+LENGTH]: the own memory of a program under hmmfs run
PROGRAM = re.compile(r"(\d{1,9})@(0[xX][0-9A-Fa-f]{1,16}|\d{1,20})(?:\+(\w+))?", re.ASCII)


def parse_kernel(word: str) -> str:
    """``module:function`` as it is; the file of ``file.py:function`` gets its whole path."""
    where, colon, name = word.rpartition(":")
    if not colon or not where or not name:
        raise UsageError(f"{word!r} names no kernel. Give MODULE:FUNCTION or FILE.py:FUNCTION.")
    if where.endswith(".py"):
        where = os.path.abspath(where)
        if not os.path.exists(where):
            raise UsageError(f"There is no file {where}.")
    return f"{where}:{name}"


def parse_arguments(directory: str, words: tuple[str, ...]) -> tuple[Machine, list[object]]:
    """The machine on a directory, and the words as arguments of a launch on it."""
    machine = connect(directory)
    return machine, [_argument(machine, word) for word in words]


def parse_place(directory: str, word: str) -> tuple[Region, slice | None]:
    """A region on a directory, as bytes, and the part of it that ``NAME:OFFSET+LENGTH`` means."""
    machine = connect(directory)
    name, colon, span = word.rpartition(":")
    offset, plus, length = span.partition("+")
    if not colon or not plus:
        return _existing(machine, word), None
    region, start, size = _existing(machine, name), parse_size(offset), parse_size(length)
    if not size or start + size > region.nbytes:
        raise UsageError(
            f"{span} is not a part of region {name!r}, which has {region.nbytes} bytes."
        )
    return region, slice(start, start + size)


def _existing(machine: Machine, name: str) -> Region:
    if not (machine.path / "regions" / checked_name(name)).exists():
        raise UsageError(f"There is no region named {name!r}: make it in regions/ first.")
    return machine.region(name)


def _argument(machine: Machine, word: str) -> object:
    found = FORM.fullmatch(word)
    if not found:
        try:
            return json.loads(word)
        except json.JSONDecodeError:
            return word
    use, name, dtype, shape = found.groups()
    try:
        kind = np.dtype(dtype or "uint8")
    except TypeError:
        raise UsageError(f"{dtype!r} is not a dtype of numpy. Give one as float32.") from None
    dimensions = tuple(map(int, shape.split("x"))) if shape else None
    program = PROGRAM.fullmatch(name)
    if program:
        return Argument(_memory(machine, program, kind, dimensions), use)
    path = _existing(machine, name).path
    if (
        use == "reads"
        and dimensions
        and math.prod(dimensions) * kind.itemsize > path.stat().st_size
    ):
        raise UsageError(
            f"Region {name!r} is shorter than {shape} of {kind}: read no more than it has."
        )
    return Argument(machine.region(name, dimensions, kind), use)


def _memory(
    machine: Machine,
    program: re.Match[str],
    kind: np.dtype[Any],
    dimensions: tuple[int, ...] | None,
) -> View:
    pid, address, length = program.groups()
    if length is None and dimensions is None:
        raise UsageError(
            f"{program[0]} has no end: a program's memory is PID@ADDRESS+LENGTH, or has a shape."
        )
    size = parse_size(length) if length else 0
    shape = dimensions or (size // max(1, kind.itemsize),)
    view = machine.process(int(pid)).view(int(address, 0), shape, kind)
    if length and view.nbytes > size:
        raise UsageError(f"{program[0]} is shorter than the {view.nbytes} bytes of its shape.")
    return view
