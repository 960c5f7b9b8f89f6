"""What scripts/picture runs: README.md's program, recorded, reported, and photographed."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import hmmfs

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "scripts/picture.png"
SIZE = (1280, 1420)
BROWSER = [
    *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--hide-scrollbars"),
]


def program() -> str:
    """The one that README.md has under "See inside"."""
    text = (ROOT / "README.md").read_text().partition("## See inside")[2]
    found = re.search(r"^cat > /tmp/busy\.py <<'EOF'\n(.*?)^EOF$", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise SystemExit("picture: README.md has no /tmp/busy.py any more")
    return found[1]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="hmmfs-picture-") as name:
        work = Path(name)
        (work / "busy.py").write_text(program())
        command = [sys.executable, "-m", "hmmfs"]
        with hmmfs.mount(vram="16M", devices=2, log="/dev/null") as machine:
            recording = str(work / "busy.jsonl")
            # python as in the README, which is what the page's title says.
            run = ["python", "busy.py"]
            subprocess.run(
                [*command, "record", str(machine.path), "-o", recording, "--", *run],
                check=True,
                cwd=work,
                env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
            )
        subprocess.run([*command, "report", recording, "-o", str(work / "busy.html")], check=True)
        subprocess.run(
            [
                *BROWSER,
                f"--user-data-dir={work / 'browser'}",
                f"--window-size={SIZE[0]},{SIZE[1]}",
                f"--screenshot={PICTURE}",
                f"file://{work / 'busy.html'}",
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
    print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()
