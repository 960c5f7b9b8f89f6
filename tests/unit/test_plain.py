"""scripts/plain.py finds what it is to find, and names the line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def said_of(path: Path, text: str) -> list[str]:
    path.write_text(text)
    command = [sys.executable, str(ROOT / "scripts/plain.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == bool(done.stderr)
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("A list of which some are new.", "of which"),
        ("It waits till then.", "until"),
        ("Whoever comes.", "who"),
        ("That is no name.", "X is not Y"),
        ("They are no victims.", "X is not Y"),
        ("The host has no room.", "capacity"),
        ("hm_take_room(t);", "capacity"),
        ("struct hm_census;", "counts"),
        ("hm_lent(core);", "labelled"),
    ],
)
def test_a_word_is_found(tmp_path: Path, line: str, hint: str) -> None:
    (found,) = said_of(tmp_path / "a.py", f"x = 1\n# {line}\n")
    assert f"{tmp_path}/a.py:2: " in found
    assert hint in found


def test_plain_sentences_are_left_alone(tmp_path: Path) -> None:
    text = "# There is no device dev9; it is no longer there. A distill, and a tillage.\n"
    text += "# no_room 3\n"
    assert said_of(tmp_path / "a.c", text) == []


def test_markdown_is_narrow_but_for_tables_and_code(tmp_path: Path) -> None:
    wide = "x " * 61
    text = f"| {wide} |\n\n```\n{wide}\n```\n\n    {wide}\n\n{wide}\n"
    (found,) = said_of(tmp_path / "a.md", text)
    assert ":9: 122 columns" in found
    assert said_of(tmp_path / "a.py", f"# {wide}\n") == []
