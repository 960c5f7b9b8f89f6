"""Manual pages: section 1 from the commands, section 5 from what hmmfs/filesystem/README.md says of
the mount's files. Tables of README.md are part of the commands' pages that they belong to.

The same sources give the same bytes; nothing has a date.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from markdown_it.tree import SyntaxTreeNode
from roff import block, bold, escaped, filled, inline, literal, page, parse, table, usage

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
    "option": ("hmmfs-mount", "MOUNT OPTIONS"),
    "operation": ("hmmfs-submit", "OPERATIONS"),
    "advice": ("hmmfs-advise", "ADVICE"),
}


def helped(command: click.Command) -> Iterator[str]:
    """What the command says of itself; a line that is a command is shown as one."""
    for part in inspect.cleandoc(command.help or "").split("\n\n"):
        if part.startswith("hmmfs ") or part.startswith("\b"):
            yield from literal(part.removeprefix("\b\n").split("\n"))
        else:
            yield ".PP\n" + filled(escaped(" ".join(part.split())))


def command_page(name: str, context: click.Context, tables: dict[str, SyntaxTreeNode]) -> str:
    command = context.command
    first, *_ = inspect.cleandoc(command.help or "").split("\n\n")
    brief = escaped(" ".join(first.split()).rstrip("."))
    pieces = usage(" ".join(command.collect_usage_pieces(context)))
    out = [".SH NAME", f"{escaped(name)} \\- {brief}"]
    out += [".SH SYNOPSIS", f"{bold(context.command_path)} {pieces}"]
    out += [".SH DESCRIPTION", *helped(command), ".SH OPTIONS"]
    for param in command.get_params(context):
        record = param.get_help_record(context) if isinstance(param, click.Option) else None
        if record:
            out += [".TP\n" + usage(record[0]), filled(escaped(record[1]))]
    for words, (where, section) in TABLES.items():
        if where == name:
            out += [".SH " + section, *table(tables[words])]
    out += ends(command, name)
    return page(name, 1, VERSION, out)


def ends(command: click.Command, name: str) -> Iterator[str]:
    """What comes last in every page of a command."""
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for each, part in sorted(command.commands.items()):
            yield f".TP\n{bold(f'{name}-{each}')}(1)"
            yield filled(escaped(part.get_short_help_str(200)))
    status = re.search(r"Exit status: (.*?)(?:\n\n|$)", cli.__doc__ or "", re.S)
    assert status, "the command line says its exit status"
    yield ".SH EXIT STATUS\n" + filled(escaped(" ".join(status[1].split())))
    others = [] if isinstance(command, click.Group) else [bold("hmmfs") + "(1)"]
    yield ".SH SEE ALSO\n" + ", ".join([*others, bold("hmmfs") + "(5)"])


def files_page() -> str:
    """The sections of the README, from the first on."""
    nodes = parse(ROOT / "hmmfs/filesystem/README.md")
    first = next((at for at, node in enumerate(nodes) if node.tag == "h2"), len(nodes))
    out = [".SH NAME", "hmmfs \\- files of a mounted machine", ".SH DESCRIPTION", filled(FILES)]
    out += [line for node in nodes[first:] for line in block(node)]
    out += [".SH SEE ALSO", bold("hmmfs") + "(1)"]
    return page("hmmfs", 5, VERSION, out)


def pages() -> dict[str, str]:
    """Every page, by its path below man/."""
    tables = {
        inline(node.children[0].children[0].children[0]): node
        for node in parse(ROOT / "README.md")
        if node.type == "table"
    }
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
