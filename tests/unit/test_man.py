"""Markdown as a manual page, as a formatter shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MARKDOWN = r"""
# Of files

## Files & such

.hidden is first, 'quoted' too; `back\slash` and a\nb, `--long-option`, x^2 ~ y … 面.

| path | mode | meaning |
| --- | --- | --- |
| `stats` | r | lines of `key value` |
| .dot | | *what* is **there** |
| a `cell` of more words than fit into a line of text, and so it is long | | x |

### Lists

- one
  of two lines
- two

      .code 'in' it

  - nested

```
.PP is text here
  \fBand so is this
```

[a link](elsewhere.md) ends it.
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    import man

    page = tmp_path / "a.7"
    (whole,) = man.parsed(MARKDOWN).children
    page.write_text(man.page("a-b", 7, "tried", whole.children[1:]))
    yield page
    sys.modules.pop("man")


@pytest.fixture
def shown(page: Path) -> str:
    command = ["groff", "-man", "-Tutf8", "-ww", "-rLL=78n", "-P-cbou", str(page)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_what_a_formatter_takes(page: Path) -> None:
    """ASCII; and what a paragraph is about is one line, however long, the next one being text."""
    text = page.read_text()
    assert text.isascii()
    assert re.search(r"^\.B a \\fBcell\\fP of more .* and so it is long\nx$", text, re.M), text
    assert '\n.TH "a-b" "7" "" "hmmfs ' in text


def test_every_character_is_shown(shown: str) -> None:
    words = " ".join(shown.split())
    for text in (
        "Files & such",
        ".hidden is first, 'quoted' too; back\\slash and a\\nb, --long-option, x^2 ~ y … 面.",
        "stats lines of key value [mode: r]",
        ".dot what is there",
        "and so it is long x Lists",
        "• one of two lines • two .code 'in' it • nested",
        "a link ends it.",
    ):
        assert text in words, words


def test_code_keeps_its_lines(shown: str) -> None:
    assert re.search(r"^ +\.PP is text here\n +  \\fBand so is this$", shown, re.M), shown
