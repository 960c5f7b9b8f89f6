"""Where a source can be changed into a mutant, and the mutant's text. For Python the changes are
cosmic-ray's; for C the ones here, by what stands in a line."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Of cosmic-ray's these make mutants that are equivalent or that no test is to find.
LEFT_OUT = (
    "core/RemoveDecorator",
    "core/VariableReplacer",
    "core/VariableInserter",
    "core/ExceptionReplacer",
)


class Site(NamedTuple):
    """One change: its kind, and its number, from 0, among the places of that kind in the file."""

    file: str
    operator: str
    occurrence: int


class Rule(NamedTuple):
    """What is changed in a line of C, and into what."""

    name: str
    pattern: re.Pattern[str]
    change: Callable[[re.Match[str]], str]


def _swap(pairs: dict[str, str]) -> Callable[[re.Match[str]], str]:
    return lambda found: pairs[found[0]]


COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
WORDS = {"+": "-", "-": "+", "&&": "||", "||": "&&"}
RULES = [
    Rule(
        "comparison",
        re.compile(r"(?<= )(?:[<>]=?|[=!]=)(?= )"),
        _swap(COMPARISONS),
    ),
    Rule("arithmetic", re.compile(r"(?<= )[+-](?= )"), _swap(WORDS)),
    Rule("logic", re.compile(r"(?<= )(?:&&|\|\|)(?= |$)"), _swap(WORDS)),
    Rule("mask", re.compile(r"& ~"), lambda _: "& "),
    Rule(
        "constant",
        re.compile(r"(?<![\w.\"%])\d+(?![\w.\"])"),
        lambda found: str(int(found[0]) + 1),
    ),
    Rule("condition", re.compile(r"(?<=if \()(?=\w+->\w+\)|\w+\)|!)"), lambda _: "!"),
    Rule(
        "lock",
        re.compile(
            r"^ +(?:HM_GUARD|hm_lock\w*|pthread_(?:mutex_lock|cond_broadcast|cond_signal))\(.*\);$"
        ),
        lambda _: ";",
    ),
    Rule(
        "statement",
        re.compile(r"^ +(?:hm_(?!lock)\w+\(.*\)|[\w>.\[\]-]+ [|&+-]?= [^;]+);$"),
        lambda _: ";",
    ),
    Rule(
        "arguments",
        re.compile(r"(?<=\()(\w+), (\w+)(?=[,)])"),
        lambda found: f"{found[2]}, {found[1]}",
    ),
    Rule("error", re.compile(r"(?<=return )-E[A-Z]+(?=;)"), lambda _: "0"),
]
BY_NAME = {rule.name: rule for rule in RULES}


def _c_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of code: no comments, no directives, no declarations, no text for people."""
    comment = False
    for number, line in enumerate(text.split("\n")):
        begins = line.lstrip().startswith("/*")
        inside = comment or begins
        comment = (comment or begins) and "*/" not in line
        told = line.startswith(("#", "static const", "enum", "struct")) or "Static_assert" in line
        # A declaration's = is the only statement that must not go.
        if inside or told or not line.startswith(" ") or '"' in line:
            continue
        yield number, line.split("/*")[0].rstrip()


def _matches(line: str, rule: Rule) -> list[re.Match[str]]:
    declared = re.match(r" +(?:const |struct |bool |u?int\w* |size_t |ssize_t |static )", line)
    if rule.name == "statement" and declared:
        return []
    return list(rule.pattern.finditer(line))


def sites(root: Path, file: str) -> list[Site]:
    text = (root / file).read_text()
    if file.endswith(".py"):
        return _python_sites(file, text)
    found = []
    for rule in RULES:
        count = sum(len(_matches(line, rule)) for _, line in _c_lines(text))
        found += [Site(file, rule.name, number) for number in range(count)]
    return found


def changes_code(root: Path, site: Site) -> bool:
    """False: it is in an annotation, which nobody evaluates, or makes what is not Python, such as
    the `|` of a case."""
    if not site.file.endswith(".py"):
        return True
    text = (root / site.file).read_text()
    try:
        return without_annotations(text) != without_annotations(_python_mutant(text, site))
    except SyntaxError:
        return False


def without_annotations(text: str) -> str:
    """What a module does, where its annotations are not evaluated."""
    tree = ast.parse(text)
    if "from __future__ import annotations" in text:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.returns = None
            elif isinstance(node, ast.arg):
                node.annotation = None
            elif isinstance(node, ast.AnnAssign):
                node.annotation = ast.Constant(None)
    return ast.dump(tree)


def mutant(root: Path, site: Site) -> tuple[int, str]:
    """The line, from 1, and the whole text."""
    text = (root / site.file).read_text()
    if site.file.endswith(".py"):
        changed = _python_mutant(text, site)
        lines = zip(text.split("\n"), changed.split("\n"), strict=False)
        return next(n for n, (a, b) in enumerate(lines, 1) if a != b), changed
    rule, left, lines = BY_NAME[site.operator], site.occurrence, text.split("\n")
    for number, line in _c_lines(text):
        found = _matches(line, rule)
        if left < len(found):
            at = found[left]
            end = lines[number][len(line) :]
            lines[number] = line[: at.start()] + rule.change(at) + line[at.end() :] + end
            return number + 1, "\n".join(lines)
        left -= len(found)
    raise ValueError(f"{site} is not a place in it")


def _operators() -> list[str]:
    from cosmic_ray.plugins import operator_names

    return sorted(name for name in operator_names() if not name.startswith(LEFT_OUT))


def _python_sites(file: str, text: str) -> list[Site]:
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    tree, found = get_ast(text), []
    for name in _operators():
        operator = get_operator(name)()
        count = sum(len(list(operator.mutation_positions(node))) for node in ast_nodes(tree))
        found += [Site(file, name, number) for number in range(count)]
    return found


def _python_mutant(text: str, site: Site) -> str:
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    changed = mutate_code(text, get_operator(site.operator)(), site.occurrence)
    if changed is None:
        raise ValueError(f"{site} is not a place in it")
    return str(changed)
