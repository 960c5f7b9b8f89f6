"""Manual pages: section 1 from the commands, section 5 from what hmmfs/filesystem/README.md says of
the mount's files. Tables of README.md are part of the commands' pages that they belong to.

MyST reads the Markdown and docutils writes the pages. The same sources give the same bytes; nothing
has a date.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from docutils import nodes
from docutils.core import publish_doctree, publish_from_doctree
from docutils.utils import new_document
from myst_parser.docutils_ import Parser

import hmmfs
from hmmfs.cli import main as cli

ROOT = Path(__file__).resolve().parents[1]
VERSION = f"hmmfs {hmmfs.__version__}"
FILES = (
    "A mount has the data of its regions below regions/, and beside it text files, in which the "
    "machine that it emulates is seen and set. They are like those of sysfs: each says one value, "
    "or lines of a key and a value. Paths are of the directory that it is mounted on."
)
# Tables of README.md, by the heading of their first column: the page, and the section there.
TABLES = {
    "option": ("hmmfs-mount", "Mount options"),
    "operation": ("hmmfs-submit", "Operations"),
    "advice": ("hmmfs-advise", "Advice"),
}
TEXT = "meaning"  # the column of a table that is text; without it, the last
SETTINGS = {
    "_disable_config": True,
    "doctitle_xform": False,
    "report_level": 4,
    "myst_all_links_external": True,
    "myst_suppress_warnings": ["myst.header"],
}

Inline = list[nodes.Node]


def parsed(markdown: str) -> nodes.document:
    """Markdown as a formatter of manual pages can show it: links are their words, and tables lists.
    A box of three columns would not fit a terminal."""
    document = publish_doctree(markdown, parser=Parser(), settings_overrides=SETTINGS)
    for link in list(document.findall(nodes.reference)):
        link.parent.replace(link, link.children)
    for table in list(document.findall(nodes.table)):
        table.parent.replace(table, listed(table))
    return document


def cells(row: nodes.Node) -> list[Inline]:
    return [list(cell.children[0].children) if cell.children else [] for cell in row.children]


def listed(table: nodes.table) -> nodes.definition_list:
    """Of each row the first cell is a term, the others say what it is."""
    heads, *rows = [cells(row) for row in table.findall(nodes.row)]
    words = ["".join(node.astext() for node in head) for head in heads]
    main = words.index(TEXT) if TEXT in words else len(words) - 1
    found = definitions()
    found["first"] = words[0]
    for row in rows:
        said = row[main]
        for at, cell in enumerate(row):
            if cell and at not in (0, main):
                said = [*said, nodes.Text(f" [{words[at]}: "), *cell, nodes.Text("]")]
        found += definition(row[0], said)
    return found


def definitions(*items: nodes.definition_list_item) -> nodes.definition_list:
    return nodes.definition_list("", *items)


def definition(term: Inline, said: Inline) -> nodes.definition_list_item:
    said = [paragraph(*said)] if said else []
    return nodes.definition_list_item("", nodes.term("", "", *term), nodes.definition("", *said))


def section(title: str, *parts: nodes.Node) -> nodes.section:
    return nodes.section("", nodes.title("", title), *parts)


def paragraph(*words: nodes.Node) -> nodes.paragraph:
    return nodes.paragraph("", "", *words)


def usage(words: str) -> Inline:
    """Options bold, what stands for something else in italics."""
    found: Inline = []
    for word in re.split(r"((?<![\w-])-[\w-]+|\b[A-Z][A-Z0-9]+\b)", words):
        if word.startswith("-"):
            found.append(nodes.strong("", word))
        elif re.fullmatch(r"[A-Z][A-Z0-9]+", word):
            found.append(nodes.emphasis("", word))
        elif word:
            found.append(nodes.Text(word))
    return found


def helped(command: click.Command) -> Iterator[nodes.Node]:
    """What the command says of itself; a line that is a command is shown as one."""
    for part in inspect.cleandoc(command.help or "").split("\n\n"):
        if part.startswith("hmmfs ") or part.startswith("\b"):
            text = part.removeprefix("\b\n")
            yield nodes.literal_block(text, text)
        else:
            yield paragraph(nodes.Text(" ".join(part.split())))


def command_page(
    name: str, context: click.Context, tables: dict[str, nodes.definition_list]
) -> str:
    command = context.command
    first, *_ = inspect.cleandoc(command.help or "").split("\n\n")
    pieces = usage(" ".join(["", *command.collect_usage_pieces(context)]))
    records = [
        param.get_help_record(context)
        for param in command.get_params(context)
        if isinstance(param, click.Option)
    ]
    options = [
        definition(usage(record[0]), [nodes.Text(record[1])]) for record in records if record
    ]
    parts = [
        section("Synopsis", paragraph(nodes.strong("", context.command_path), *pieces)),
        section("Description", *helped(command)),
        section("Options", definitions(*options)),
    ]
    for words, (where, title) in TABLES.items():
        if where == name:
            parts.append(section(title, tables[words]))
    return page(name, 1, " ".join(first.split()).rstrip("."), [*parts, *ends(command, name)])


def ends(command: click.Command, name: str) -> Iterator[nodes.section]:
    """What comes last in every page of a command."""
    if isinstance(command, click.Group):
        items = (
            definition(manual(f"{name}-{each}", 1), [nodes.Text(part.get_short_help_str(200))])
            for each, part in sorted(command.commands.items())
        )
        yield section("Commands", definitions(*items))
    status = re.search(r"Exit status: (.*?)(?:\n\n|$)", cli.__doc__ or "", re.S)
    assert status, "the command line says its exit status"
    yield section("Exit status", paragraph(nodes.Text(" ".join(status[1].split()))))
    others = [] if isinstance(command, click.Group) else [*manual("hmmfs", 1), nodes.Text(", ")]
    yield section("See also", paragraph(*others, *manual("hmmfs", 5)))


def manual(name: str, number: int) -> Inline:
    return [nodes.strong("", name), nodes.Text(f"({number})")]


def files_page() -> str:
    """The sections of the README, from the first on."""
    document = parsed((ROOT / "hmmfs/filesystem/README.md").read_text())
    (whole,) = document.children
    top = [part for part in whole.children if isinstance(part, nodes.section)]
    ending = section("See also", paragraph(*manual("hmmfs", 1)))
    described = section("Description", paragraph(nodes.Text(FILES)))
    return page("hmmfs", 5, "files of a mounted machine", [described, *top, ending])


def page(name: str, number: int, brief: str, parts: Iterable[nodes.Node]) -> str:
    """A whole page, in ASCII; its beginning is of docutils' making."""
    document = new_document(name)
    document += nodes.title("", name)
    document += nodes.subtitle("", brief)
    facts = {"manual_section": str(number), "manual_group": "hmmfs"}
    fields = [
        nodes.field(
            "", nodes.field_name("", key), nodes.field_body("", paragraph(nodes.Text(value)))
        )
        for key, value in facts.items()
    ]
    document += nodes.docinfo("", nodes.version("", VERSION), *fields)
    for part in parts:
        document += part
    text = publish_from_doctree(
        document,
        writer="manpage",
        settings_overrides={"_disable_config": True, "output_encoding": "unicode"},
    )
    # A heading begins a paragraph by itself.
    text = re.sub(r"^(\.S[HS] .*\n)\.sp\n", r"\1", text, flags=re.M)
    return re.sub(r"[^\x00-\x7f]", lambda found: f"\\[u{ord(found[0]):04X}]", text)


def pages() -> dict[str, str]:
    """Every page, by its path below man/."""
    lists = parsed((ROOT / "README.md").read_text()).findall(nodes.definition_list)
    tables = {found["first"]: found for found in lists if "first" in found}
    top = click.Context(cli.cli, info_name="hmmfs", **cli.cli.context_settings)
    found = {"man1/hmmfs.1": command_page("hmmfs", top, tables), "man5/hmmfs.5": files_page()}
    for name, command in cli.cli.commands.items():
        context = click.Context(command, info_name=name, parent=top)
        found[f"man1/hmmfs-{name}.1"] = command_page(f"hmmfs-{name}", context, tables)
    return found


def main(directory: str = str(ROOT / "hmmfs/share/man")) -> None:
    """Write them; pages of commands that are no more go."""
    wanted = pages()
    top = Path(directory)
    for old in top.glob("man?/*"):
        if str(old.relative_to(top)) not in wanted:
            old.unlink()
    for name, text in wanted.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
