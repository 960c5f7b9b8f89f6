"""What may use what in hmmfs/: see scripts/layers.py. A file uses another if it imports it,
wherever that stands. An import for checkers alone makes no circle: nothing runs by it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# From bottom to top; what is not a folder is a file of the top level.
FOLDERS = (
    "errors",
    "kernels",
    "common",
    "wire",
    "mounting",
    "inspect/mount",
    "inspect/smi",
    "inspect/heat",
    "inspect/top",
    "inspect/record",
    "inspect/report",
    "api",
    "memory",
    "policy",
    "service",
    "program",
    "device",
    "filesystem",
    "daemon",
    "cli",
    "pytest_plugin",
    "__main__",
)
# They talk to the daemon by the files of its mount; of ours only these use them.
CLIENTS = tuple(folder for folder in FOLDERS if folder == "api" or folder.startswith("inspect/"))
OF_CLIENTS = (*CLIENTS, "cli", "pytest_plugin")


def _imported(text: str, files: set[str]) -> Iterator[tuple[int, str, bool]]:
    """Line numbers, the files that are imported there, by their names from hmmfs/ on, and whether
    for checkers alone."""
    tree = ast.parse(text)
    typing = {
        node
        for one in ast.walk(tree)
        if isinstance(one, ast.If) and ast.unparse(one.test) == "TYPE_CHECKING"
        for line in one.body
        for node in ast.walk(line)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            found = _file_of(name, files)
            if found:
                yield node.lineno, found, node in typing


def _file_of(name: str, files: set[str]) -> str | None:
    """Of a module, or of a name in it."""
    package, *words = name.split(".")
    for count in range(len(words), 0, -1) if package == "hmmfs" else ():
        path = "/".join(words[:count])
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if file in files:
                return file
    return None


class Package:
    """The Python files below a directory, by their names from there."""

    def __init__(self, top: Path) -> None:
        self.texts = {
            str(path.relative_to(top)): path.read_text() for path in sorted(top.rglob("*.py"))
        }
        self.used: dict[str, set[str]] = {}  # in its folder

    def folder(self, name: str) -> str:
        """The longest that fits."""
        parts = name.removesuffix(".py").split("/")
        for count in range(len(parts), 0, -1):
            if "/".join(parts[:count]) in FOLDERS:
                return "/".join(parts[:count])
        return ""

    def problems(self) -> Iterator[str]:
        files = set(self.texts)
        for name, text in self.texts.items():
            if name == "__init__.py" or (name.endswith("/__init__.py") and not _code(text)):
                continue
            folder = self.folder(name)
            if not folder:
                yield f"{name}:1: It is not in the order of layers_of_python.py."
                continue
            for line, other, typing in _imported(text, files):
                its = self.folder(other)
                if its and not _may_use(folder, its):
                    yield f"{name}:{line}: {folder}/ may not use {its}/: {other}"
                elif its == folder and other != name and not typing and "__init__" not in name:
                    self.used.setdefault(name, set()).add(other)


def _code(text: str) -> bool:
    return any(not isinstance(node, ast.Expr) for node in ast.parse(text).body)


def _may_use(folder: str, other: str) -> bool:
    if folder == other:
        return True
    if other in CLIENTS and folder not in OF_CLIENTS:
        return False
    return FOLDERS.index(other) < FOLDERS.index(folder)
