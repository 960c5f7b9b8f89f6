"""scripts/mutants: what it changes, and that it is the same each time."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
CODE = """\
/* if (a < b) in a comment
 * hm_release(core, 1); */
#define LIMIT 7
static const int table[2] = {1, 2};

int call(struct hm_core *core, int a, int b)
{
    int sum = a + b;
    if (a < b && core->ready)
        return -EINVAL;
    hm_lock(HM_RANK_LIST, &core->lock);
    core->used += hm_take(a, b);
    hm_release(core, 1); /* all but 3 */
    snprintf(text, "5 < %d", sum);
    HM_GUARD(HM_RANK_JOBS, &core->jobs_lock);
    return mask & ~sum;
}
"""


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    sys.modules.pop("mutants_of", None)
    return importlib.import_module("mutants_of")


def test_c(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text(CODE)
    before, made = CODE.split("\n"), {}
    for site in tool.sites(tmp_path, "a.c"):
        line, text = tool.mutant(tmp_path, site)
        after = text.split("\n")
        assert [n for n, (a, b) in enumerate(zip(before, after, strict=True), 1) if a != b] == [
            line
        ]
        made.setdefault(site.operator, []).append(after[line - 1].strip())
    assert made == {
        "comparison": ["if (a <= b && core->ready)"],
        "arithmetic": ["int sum = a - b;"],
        "logic": ["if (a < b || core->ready)"],
        "mask": ["return mask & sum;"],
        "constant": ["hm_release(core, 2); /* all but 3 */"],
        "lock": [";", ";"],
        "statement": [";", "; /* all but 3 */"],
        "arguments": ["core->used += hm_take(b, a);", "hm_release(1, core); /* all but 3 */"],
        "error": ["return 0;"],
    }


def test_annotations_are_no_code(tool: ModuleType) -> None:
    lazy = "from __future__ import annotations\n"
    one, other = (
        "def f(a: int | None) -> int: ...\nb: int | str = 1\n",
        "def f(a: int + None): ...\nb: int = 1\n",
    )
    bare = tool.without_annotations
    assert bare(lazy + one) == bare(lazy + other)
    assert bare(one) != bare(other), "they are evaluated"
    assert bare(lazy + one) != bare(lazy + one.replace("1", "2"))


def test_what_is_no_python_is_not_drawn(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.py").write_text("match 1:\n    case 1 | 2:\n        pass\n")
    texts = iter(
        ["match 1:\n    case 1 - 2:\n        pass\n", "match 1:\n    case 1:\n        pass\n"]
    )
    monkeypatch.setattr(tool, "_python_mutant", lambda text, site: next(texts))
    site = tool.Site("a.py", "core/ReplaceBinaryOperator_BitOr_Sub", 0)
    assert not tool.changes_code(tmp_path, site)
    assert tool.changes_code(tmp_path, site)
