"""Python files of users: kernels and policies that are named as ``FILE.py:NAME``."""

import importlib.util
import os
import sys
from types import ModuleType


def load(path: str) -> ModuleType:
    """The file as a module. No bytecode is left beside it, which may be anywhere. ImportError: it
    is not a Python file. Whatever its code raises goes on."""
    spec = importlib.util.spec_from_file_location(os.path.basename(path)[:-3], path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module
