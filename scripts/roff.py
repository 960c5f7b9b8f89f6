"""Text and Markdown as roff, in ASCII, for man(7)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

TEXT = "meaning"  # the column of a table that is text; without it, the last
SPECIAL = {
    "\\": r"\e",
    '"': r"\(dq",
    "-": r"\-",
    "'": r"\(aq",
    "`": r"\(ga",
    "^": r"\(ha",
    "~": r"\(ti",
}


def parse(path: Path) -> list[SyntaxTreeNode]:
    markdown = MarkdownIt("commonmark").enable("table")
    return list(SyntaxTreeNode(markdown.parse(path.read_text())).children)


def escaped(text: str) -> str:
    """Text as roff would have it, in ASCII."""
    return "".join(
        SPECIAL.get(char, char if ord(char) < 128 else f"\\[u{ord(char):04X}]") for char in text
    )


def bold(text: str) -> str:
    return f"\\fB{escaped(text)}\\fP" if text else ""


def usage(words: str) -> str:
    """Options bold, what stands for something else in italics."""
    parts = re.split(r"(?<![\w-])(-[\w-]+)|\b([A-Z][A-Z0-9]+)\b", words)
    out = []
    for plain, option, placeholder in zip(parts[::3], parts[1::3], parts[2::3], strict=False):
        out += [escaped(plain or ""), bold(option or "")]
        out.append(f"\\fI{placeholder}\\fP" if placeholder else "")
    return "".join([*out, escaped(parts[-1] or "")])


def filled(text: str) -> str:
    """Lines of a length that people like; none of them a request by mistake."""
    lines = textwrap.wrap(text, 78, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(guarded, lines))


def guarded(line: str) -> str:
    return f"\\&{line}" if line[:1] in ("", ".", "'") else line


def inline(node: SyntaxTreeNode) -> str:
    if node.type in ("text", "code_inline"):
        shown = escaped(node.content)
        return f"\\fB{shown}\\fP" if node.type == "code_inline" else shown
    if node.type in ("softbreak", "hardbreak"):
        return " "
    inner = "".join(map(inline, node.children))
    font = {"strong": "B", "em": "I"}.get(node.type)
    return f"\\f{font}{inner}\\fP" if font else inner


def table(node: SyntaxTreeNode) -> Iterator[str]:
    """A list: of each row the first cell, and then the others."""
    rows = [
        [inline(cell) for cell in row.children] for part in node.children for row in part.children
    ]
    heads = rows.pop(0)
    main = heads.index(TEXT) if TEXT in heads else len(heads) - 1
    for row in rows:
        notes = [
            f"{heads[at]}: {cell}." for at, cell in enumerate(row) if cell and at not in (0, main)
        ]
        yield ".TP\n" + guarded(row[0])  # a line, however long
        yield filled(" ".join([row[main], *(f"[{note[:-1]}]" for note in notes)]).strip()) or r"\&"


def block(node: SyntaxTreeNode) -> Iterator[str]:
    if node.type == "table":
        yield from table(node)
    elif node.type == "heading":
        yield f".{'SH' if node.tag == 'h2' else 'SS'} " + inline(node.children[0])
    elif node.type in ("fence", "code_block"):
        yield from literal(node.content.rstrip("\n").split("\n"))
    elif node.type in ("bullet_list", "ordered_list"):
        for item in node.children:
            yield ".IP \\(bu 2"
            first, *others = item.children
            yield from list(block(first))[1:]  # the mark began the paragraph
            for part in others:
                yield from (".RS 4", *block(part), ".RE")
    else:
        yield ".PP"
        yield filled(inline(node))


def literal(lines: Iterable[str]) -> Iterator[str]:
    yield ".PP\n.RS 4\n.nf"
    for line in lines:
        yield guarded(escaped(line)) if line else ""
    yield ".fi\n.RE"


def page(name: str, section: int, version: str, parts: Iterable[str]) -> str:
    """A whole page, of parts that begin with `.SH NAME`."""
    top = f'.TH {escaped(name.upper())} {section} "" "{escaped(version)}" "hmmfs"'
    # A heading begins a paragraph by itself.
    return re.sub(r"^(\.S[HS] .*\n)\.PP\n", r"\1", "\n".join([top, *parts, ""]), flags=re.M)
