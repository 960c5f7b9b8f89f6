"""Each public name of the Python API is used by some test."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import hmmfs
from hmmfs import kernels, policy, pytest_plugin

TESTS = Path(__file__).resolve().parents[1]


def used() -> set[str]:
    """What tests look up in something, take as a fixture or import."""
    found: set[str] = set()
    for path in TESTS.rglob("*.py"):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.keyword) and node.arg:
                found.add(node.arg)
            elif isinstance(node, ast.Name):
                found.add(node.id)
            elif isinstance(node, ast.ImportFrom):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Constant) and "import " in str(node.value):
                found |= set(re.findall(r"\w+", str(node.value)))  # a program, or policies
    return found


USED = used()
CLASSES = [
    *(getattr(hmmfs, name) for name in hmmfs.__all__ if inspect.isclass(getattr(hmmfs, name))),
    *(getattr(policy, name) for name in policy.__all__ if name.endswith("Policy")),
    policy.Fault,
]


@pytest.mark.parametrize("of", CLASSES, ids=lambda of: of.__name__)
def test_class(of: type) -> None:
    names = {name for name in vars(of) if not name.startswith("_")}
    assert sorted(names - USED) == []


def test_functions() -> None:
    names = set(hmmfs.__all__)
    for module in (kernels, pytest_plugin):
        names |= {
            name
            for name, found in inspect.getmembers(module, inspect.isfunction)
            if not name.startswith("_") and found.__module__ == module.__name__
        }
    names -= {name for name in vars(pytest_plugin) if name.startswith("pytest_")}  # pytest's hooks
    assert sorted(names - USED) == []
