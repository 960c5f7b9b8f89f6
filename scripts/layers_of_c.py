"""What may use what in native/: see scripts/layers.py. A file uses another if it includes it, or if
it names a function that is defined there. x.c and x.h count as one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# From bottom to top.
FOLDERS = (
    "include",
    "linux",
    "worker",
    "preload",
    "base",
    "books",
    "directory",
    "rules",
    "transaction",
    "gate",
    "program",
    "device",
    "core",
)
# Outside the core: what runs in other processes. The core uses their headers for what both say.
ALONE = ("linux", "worker", "preload")

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_INCLUDE = re.compile(r'^\s*#\s*include "([^"]+)"')
_NAME = re.compile(r"(?<!struct )(?<!enum )\bhm_\w+")
_DEFINITION = re.compile(r"^(?!static\b)[A-Za-z][\w *]*?\b(hm_\w+)\([^;{]*\)\s*\{", re.MULTILINE)


def _without_comments(text: str) -> str:
    return _COMMENT.sub(lambda found: "\n" * found[0].count("\n"), text)


def _folder(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


def _may_use(folder: str, other: str) -> bool:
    if folder == other or other == "include":
        return True
    if folder in ALONE:
        return False
    return FOLDERS.index(other) < FOLDERS.index(folder)


class Tree:
    """The C files below a directory, by their names from there."""

    def __init__(self, top: Path) -> None:
        paths = sorted(top.rglob("*.[ch]"))
        self.texts = {
            str(path.relative_to(top)): _without_comments(path.read_text()) for path in paths
        }
        self.defined = {
            function: name
            for name, text in self.texts.items()
            if name.endswith(".c")
            for function in _DEFINITION.findall(text)
        }
        self.used: dict[str, set[str]] = defaultdict(set)  # in its folder, without .c and .h

    def problems(self) -> Iterator[str]:
        yield from self._names()
        for name in self.texts:
            if _folder(name) in FOLDERS:
                yield from self._uses(name)

    def _names(self) -> Iterator[str]:
        """Of files and folders: tests find a file by its name alone."""
        seen: dict[str, str] = {}
        for name in self.texts:
            if _folder(name) not in FOLDERS:
                yield f"{name}:1: {_folder(name)}/ is not in the order of layers_of_c.py."
            other = seen.setdefault(Path(name).name, name)
            if other != name:
                yield f"{name}:1: {other} has that name, too. Give it another."

    def _uses(self, name: str) -> Iterator[str]:
        for number, line in enumerate(self.texts[name].split("\n"), 1):
            included = _INCLUDE.match(line)
            if included and included[1] not in self.texts:
                yield f"{name}:{number}: There is no {included[1]}. Include by the path from here."
            elif included:
                yield from self._use(name, number, included[1], included[1])
            elif name.endswith(".c"):
                for function in _NAME.findall(line):
                    if function in self.defined:
                        yield from self._use(name, number, self.defined[function], function)

    def _use(self, name: str, number: int, other: str, what: str) -> Iterator[str]:
        folder, its = _folder(name), _folder(other)
        if its in FOLDERS and not _may_use(folder, its):
            yield f"{name}:{number}: {folder}/ may not use {its}/: {what}"
        elif name[:-2] != other[:-2] and folder == its:
            self.used[name[:-2]].add(other[:-2])
