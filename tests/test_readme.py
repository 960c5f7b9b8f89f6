"""Every block of README.md that can be run is run, in order, in one shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script(text: str, top: str) -> str:
    """The README's blocks as one shell script that stops at the first failure."""
    parts = ["set -eu"]
    for kind, body in BLOCK.findall(text):
        if "scripts/test" in body:
            continue  # that is what is running
        body = body.replace("/tmp/hm", top)
        parts.append(f"python - <<'END'\n{body}END" if kind == "python" else body)
    return "\n".join(parts)


@pytest.mark.timeout(300)
def test_blocks_run(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    top = str(tmp_path / "hm")
    lines = script(text, top)
    assert lines.count("hmmfs ") >= 6
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    try:
        done = subprocess.run(
            ["bash", "-c", lines], cwd=ROOT, env=environment, capture_output=True, text=True
        )
    finally:
        subprocess.run(
            [sys.executable, "-m", "hmmfs", "umount", "-z", top], check=False, capture_output=True
        )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "every byte compared with a shadow: equal",
        "98304.0",
        " 7   7   7   7",
        "pages_dev1",
    ):
        assert said in done.stdout, f"{said!r} is not in: {done.stdout}"
    assert "Region 'a' ends at byte" in done.stdout  # last_error
    sums = re.findall(r"program (\w{8}), device (\w{8}), expected (\w{8}): equal", done.stdout)
    assert len(sums) == 3
    assert all(len(set(each)) == 1 for each in sums)


def test_commands_of_the_readme_exist() -> None:
    for name in re.findall(r"\bscripts/\w+", (ROOT / "README.md").read_text()):
        assert os.access(ROOT / name, os.X_OK), name
