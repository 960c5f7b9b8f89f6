"""Words that make a sentence hard to read, and words of this project that have another name now.

    scripts/plain.py [FILE...]

Looks at sources and documents; says of each such word the file, the line, and what to write.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = (".py", ".c", ".h", ".md", ".toml")
FINE = "longer|more|other|sense|use|reason|hindrance|accident|habit|way|larger"
INSTEAD = {
    r"of which": "two sentences, or 'that ... of'",
    r"till": "until",
    r"from\s+afar|afar": "remotely; remote",
    r"whoever": "who, or the thing itself",
    rf"(?<!there )(?:is|are) no (?!{FINE})[a-z]+": "'is not a': X is not Y. Use Z.",
}
# These have another name now, in identifiers, too. The changelog is as it was written.
RENAMED = {
    # The counter no_room in MOUNT/stats is public.
    r"(?!no_room\b)(?:\w+_)?rooms?(?:_\w+)?": "capacity, reservation; full; evict",
    r"(?:\w+_)?census(?:_\w+)?": "counts, counters",
    r"(?:\w+_)?lent": "labelled, duplicate",
}
_HISTORY = ("CHANGELOG.md",)
WIDTH = 120  # of Markdown, but for tables and code


def _compiled(words: dict[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(rf"\b{word}\b", re.IGNORECASE), hint) for word, hint in words.items()]


_INSTEAD, _RENAMED = _compiled(INSTEAD), _compiled(RENAMED)


def problems(name: str, text: str) -> Iterator[str]:
    patterns = _INSTEAD if name in _HISTORY else _INSTEAD + _RENAMED
    code = False
    for number, line in enumerate(text.split("\n"), 1):
        for pattern, hint in patterns:
            if found := pattern.search(line):
                yield f"{name}:{number}: {found[0]!r}: write {hint}"
        code ^= name.endswith(".md") and line.lstrip().startswith("```")
        wide = name.endswith(".md") and not code and not line.startswith(("|", "    "))
        if wide and len(line) > WIDTH:
            yield f"{name}:{number}: {len(line)} columns: break the line at {WIDTH}"


def main() -> int:
    names = sys.argv[1:] or [
        name
        for path in sorted(ROOT.rglob("*"))
        if path.suffix in KINDS
        and not re.match(r"(?:\.|build/|.*egg-info/)", name := str(path.relative_to(ROOT)))
    ]
    own = ("scripts/plain.py", "tests/unit/test_plain.py")
    found = [
        problem
        for name in names
        if name not in own
        for problem in problems(name, (ROOT / name).read_text())
    ]
    print("".join(f"{problem}\n" for problem in found), end="", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
