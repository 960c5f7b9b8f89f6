"""What may use what: a folder uses only itself and the folders before it, and no files of a folder
use each other in a circle.

    scripts/layers.py [DIRECTORY...]

Says of each file that uses what is above it the line and the rule, and of a circle which files it
has; ends 1 if there is any. Without a DIRECTORY it looks at native/ and hmmfs/. The order of the
folders is in layers_of_c.py and layers_of_python.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from layers_of_c import Tree
from layers_of_python import Package

ROOT = Path(__file__).resolve().parents[1]


def problems(top: Path) -> Iterator[str]:
    tree = Tree(top) if next(top.rglob("*.c"), None) else Package(top)
    yield from tree.problems()
    try:
        TopologicalSorter(tree.used).prepare()
    except CycleError as error:
        yield f"{error.args[1][0]}: These use each other: {', '.join(error.args[1])}"


def main() -> int:
    tops = [Path(word) for word in sys.argv[1:]] or [ROOT / "native", ROOT / "hmmfs"]
    found = [f"{top.name}/{problem}\n" for top in tops for problem in problems(top)]
    print("".join(found), end="", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
