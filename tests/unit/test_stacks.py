"""What a test that hangs says."""

from __future__ import annotations

import os
import sys
import time

import pytest

from tests.stacks import run


def test_a_child_that_hangs() -> None:
    code = "import sys, time; print('begun', flush=True); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(AssertionError) as found:
        run([sys.executable, "-c", code], 1)
    said = str(found.value)
    assert time.monotonic() - began < 50
    assert "it takes more than 1 s\nbegun\n" in said
    assert "in the kernel: " in said
    if not os.geteuid():
        assert "nanosleep" in said


def test_a_child_that_ends() -> None:
    code = "import os, sys; print(os.environ['A']); print('b', file=sys.stderr); sys.exit(3)"
    done = run([sys.executable, "-c", code], 30, {"A": "a"})
    assert (done.returncode, done.stdout, done.stderr) == (3, "a\n", "b\n")
