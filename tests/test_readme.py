"""Every block of README.md that can be run is run, in order, in one shell.

A ``console`` block has commands after ``$ `` (continued after ``> ``) and the output that each must
give, where ``...`` stands for anything; numbers that differ from run to run are in `VARYING`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(console|sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEST_SCRIPT = "scripts/test"  # it runs this very test, so it is looked at only
# Sections that say that what they show takes root.
OF_ROOT = ("The memory of any program", "Other memory, other policies")
MARK = "\x1e"  # no output has it

# What the demo's random bytes and timing decide. The demo itself checks that they are right.
VARYING = {
    "scripts/demo": (
        (r"\b[0-9a-f]{8}\b", r"[0-9a-f]{8}"),
        (r" +\d+ │", r" +\\d+ │"),
        (r"[─┬┴]{2,}", r"[─┬┴]+"),
    )
}


@dataclass
class Step:
    """Something to run, and what it must print; None is anything."""

    command: str
    output: list[str] | None = field(default_factory=list)


def steps(text: str) -> list[Step]:
    found: list[Step] = []
    for kind, body in BLOCK.findall(text):
        if kind == "sh":
            found.append(Step(body, None))
        elif kind == "python":
            said = re.findall(r"print\(.*\)  # (.*)", body)
            found.append(Step(f"python - <<'END'\n{body}END", said))
        else:
            found.extend(session(body))
    return found


def session(body: str) -> list[Step]:
    """The steps of a console block."""
    found: list[Step] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:]))
        elif line.startswith("> ") and not found[-1].output:
            found[-1].command += "\n" + line[2:]
        else:
            output = found[-1].output
            assert output is not None
            output.append(line)
    return found


def pattern(step: Step) -> str:
    """A regular expression for the output of a step."""
    parts = []
    for line in step.output or []:
        if line == "...":
            parts.append(r"(.*\n)*")
            continue
        made = re.escape(line).replace(re.escape("..."), ".*").replace(r"\ ", " ")
        for varying, by in VARYING.get(step.command, ()):
            made = re.sub(varying, by, made)
        parts.append(made + r"\n")
    return "".join(parts)


def run(todo: list[Step], environment: dict[str, str]) -> list[str]:
    """What each step printed; the first that fails ends the test."""
    # What setup says when it has something to do comes before the first mark.
    # Jobs in the background end with a shell that fails: they have its output open.
    lines = [
        "set -eu",
        "exec 2>&1 </dev/null",
        "trap 'jobs -p | xargs -r kill 2>/dev/null || true' EXIT",
        "scripts/setup",
    ]
    for step in todo:
        lines += [f"printf '{MARK}'", step.command]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    said = done.stdout.split(MARK)[1:]
    command = todo[len(said) - 1].command if said else "scripts/setup"
    assert done.returncode == 0, f"«{command}» failed: {said[-1:] or done.stdout}"
    return said


@pytest.mark.timeout(300)
def test_blocks_run(tmp_path: Path) -> None:
    home = str(tmp_path)
    text = README.read_text().replace("/tmp/", f"{home}/")
    if os.geteuid():
        for section in OF_ROOT:
            text = re.sub(rf"(?ms)^## {section}$.*?(?=^## )", "", text)
    found = steps(text)
    todo = [step for step in found if step.command != TEST_SCRIPT]
    assert len(found) - len(todo) == 1
    assert sum(step.command.startswith("hmmfs ") for step in todo) >= 6
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": home,
        "COLUMNS": "80",
    }
    try:
        said = run(todo, environment)
    finally:
        if (tmp_path / "hm").is_mount():
            umount = [sys.executable, "-m", "hmmfs", "umount", "-z", f"{home}/hm"]
            subprocess.run(umount, check=False)
    for step, output in zip(todo, said, strict=True):
        if step.output is not None:
            assert re.fullmatch(pattern(step), output), f"«{step.command}» says:\n{output}"
    assert not list(tmp_path.iterdir()), "the README leaves something behind"


def test_commands_of_the_readme_exist() -> None:
    text = README.read_text()
    for name in {TEST_SCRIPT, *re.findall(r"\bscripts/\w+", text)}:
        assert os.access(ROOT / name, os.X_OK), name


def test_options_and_operations_are_those_there_are() -> None:
    from hmmfs.mounting.config import OPTIONS
    from hmmfs.wire.commands import FORMS

    reference = README.read_text().partition("## Reference")[2]
    rows = "\n".join(re.findall(r"^\| `.*", reference, re.MULTILINE))
    for name in (*OPTIONS, *FORMS):
        assert re.search(rf"`{name}\b", rows), f"{name} is in no table of README.md"


def test_links_lead_somewhere() -> None:
    for readme in (README, *ROOT.glob("hmmfs/**/README.md"), *ROOT.glob("[nst]*/README.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", readme.read_text()):
            assert (readme.parent / link).exists(), f"{readme}: {link}"
