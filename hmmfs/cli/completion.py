"""What a shell offers at TAB, and the scripts that have it ask.

The words in a command's usage say what is wanted: DIR a mount, DEV and REGION what is in the mount
that was given, FILE a file. The scripts call the command with _HMMFS_COMPLETE, by click's protocol,
with the words so far and one that has just begun.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from importlib import resources

import click
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    add_completion_class,
    split_arg_string,
)

from hmmfs.common import mountinfo
from hmmfs.errors import HmmfsError
from hmmfs.inspect.mount.reading import ask
from hmmfs.mounting.config import OPTIONS

# The files are called as the shells want it.
SHELLS = {"bash": "hmmfs", "zsh": "_hmmfs", "fish": "hmmfs.fish"}
PATIENCE_S = 1.0  # with a mount that does not answer: somebody waits at a prompt
# These commands make a mount, so that their DIR is none yet: mount, and mount(8)'s form.
MAKERS = ("mount", "hmmfs")
CURSOR = "x"  # stands where it is, so that a blank before it ends a word
USES = ("reads", "writes", "updates")  # of a region, as hmmfs.wire.launches has them


def script(shell: str) -> str:
    """For one of SHELLS."""
    return resources.files("hmmfs").joinpath("share/completions", SHELLS[shell]).read_text()


def words_given(instruction: str) -> list[str]:
    """The words before the one that is being written, where _HMMFS_COMPLETE has that value."""
    shell = {"bash_complete": _Bash, "zsh_complete": _Zsh, "fish_complete": _Fish}.get(instruction)
    return shell.words()[0] if shell else []


def prepare(command: click.Command) -> None:
    """Have its arguments and options offered by what they are called, and its commands'."""
    for part in command.commands.values() if isinstance(command, click.Group) else ():
        prepare(part)
    for param in command.params:
        wanted = set(re.findall("[A-Z]+", param.metavar or "")) & set(OFFERS)
        if wanted:
            offer = functools.partial(_offer, wanted)
            param.shell_complete = offer  # type: ignore[method-assign]


def _offer(wanted: set[str], context: click.Context, begun: str) -> list[CompletionItem[str]]:
    found = [item for word in sorted(wanted) for item in OFFERS[word](context, begun)]
    # What a line of the answer can take, and a prompt.
    return [item for item in found if item.value.isprintable()]


def _mounts(context: click.Context, begun: str) -> Iterator[CompletionItem[str]]:
    """Never touched: the kernel's list has them."""
    if context.command.name in MAKERS:
        yield CompletionItem(begun, type="dir")
        return
    points = {entry.point for entry in mountinfo.entries() if entry.type == mountinfo.TYPE}
    relative = begun and not begun.startswith("/")
    for point in sorted(map(os.path.relpath, points) if relative else points):
        if point.startswith(begun):
            yield CompletionItem(point)


def _inside(context: click.Context, *path: str) -> list[str]:
    """Names in a directory of the mount that was given, or of the only one that there is; none
    where it does not answer soon."""
    given = [
        value
        for param in context.command.params
        if "DIR" in (param.metavar or "")
        for value in _values(context.params.get(param.name or ""))
    ]
    points = [entry.point for entry in mountinfo.entries() if entry.type == mountinfo.TYPE]
    if not given and len(points) != 1:
        return []
    where = given[0] if given else points[0]
    try:
        names = ask(where, lambda top: os.listdir(os.path.join(top, *path)), PATIENCE_S)
    except HmmfsError:
        return []
    return sorted(names, key=lambda name: (len(name), name))


def _values(value: object) -> list[str]:
    return [
        one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, str)
    ]


def _devices(context: click.Context, begun: str) -> Iterator[CompletionItem[str]]:
    """The last of several with commas between them."""
    before, comma, last = begun.rpartition(",")
    for name in _inside(context, "devices"):
        if name.startswith(last):
            yield CompletionItem(before + comma + name)


def _regions(context: click.Context, begun: str) -> Iterator[CompletionItem[str]]:
    return (CompletionItem(name) for name in _inside(context, "regions") if name.startswith(begun))


def _programs(context: click.Context, begun: str) -> Iterator[CompletionItem[str]]:
    """Under hmmfs run, by their numbers."""
    pids = (name[1:] for name in _inside(context, "state") if name.startswith("@"))
    return (CompletionItem(pid) for pid in pids if pid.isdecimal() and pid.startswith(begun))


def _arguments(context: click.Context, begun: str) -> Iterator[CompletionItem[str]]:
    """Of a launch."""
    use, colon, name = begun.partition(":")
    if colon and use in USES:
        for item in _regions(context, name):
            yield CompletionItem(f"{use}:{item.value}")
    elif not colon:
        yield from (CompletionItem(f"{use}:") for use in USES if use.startswith(begun))


def _files(context: click.Context, begun: str) -> Iterator[CompletionItem[str]]:
    yield CompletionItem(begun, type="file")


def _options(context: click.Context, begun: str) -> Iterator[CompletionItem[str]]:
    """Of a mount: the last of several with commas between them."""
    before, comma, last = begun.rpartition(",")
    name = last.partition("=")[0]
    if name != last:
        known = OPTIONS.get(name)
        words = [f"{name}={word}" for word in ("on", "off") if known and known.bare]
    else:
        words = [known if option.bare else f"{known}=" for known, option in OPTIONS.items()]
    yield from (CompletionItem(before + comma + word) for word in words if word.startswith(last))


# By the words of a usage.
OFFERS: dict[str, Callable[[click.Context, str], Iterator[CompletionItem[str]]]] = {
    "DIR": _mounts,
    "DEV": _devices,
    "REGION": _regions,
    "PID": _programs,
    "ARGUMENT": _arguments,
    "FILE": _files,
    "OPTIONS": _options,
}


class _Complete(ShellComplete):
    """What the shells have in common. A line for each offer, and in it, after tabs: what kind of
    thing, the word, and what it means."""

    @staticmethod
    def words() -> tuple[list[str], str]:
        """Those before the one that is being written, one a line, and that one."""
        before = os.environ["COMP_WORDS"]
        return before.split("\n") if before else [], os.environ["COMP_CWORD"]

    def get_completion_args(self) -> tuple[list[str], str]:
        prepare(self.cli)
        return self.words()

    def format_completion(self, item: CompletionItem[str]) -> str:
        return f"{item.type}\t{item.value}\t{item.help or ''}"

    def source(self) -> str:
        return script(self.name)


@add_completion_class
class _Zsh(_Complete):
    name = "zsh"


@add_completion_class
class _Fish(_Complete):
    """The word as it was written, in quotes perhaps."""

    name = "fish"

    @staticmethod
    def words() -> tuple[list[str], str]:
        before, word = _Complete.words()
        return before, _unquoted(word)[-1]


@add_completion_class
class _Bash(_Complete):
    """The whole line as it was written, since bash takes words apart at = and : as well. What it
    replaces is its own last word, COMP_CWORD, so that is what it gets."""

    name = "bash"

    @staticmethod
    def words() -> tuple[list[str], str]:
        _, *before, word = _unquoted(os.environ["COMP_WORDS"])
        return before, word

    def format_completion(self, item: CompletionItem[str]) -> str:
        word, last = self.words()[1], os.environ["COMP_CWORD"]
        if not word.endswith(last):  # it was not in quotes, and has backslashes
            last = _unquoted(last)[-1]
        return f"{item.type}\t{item.value[len(word) - len(last) :]}\t{item.help or ''}"


def _unquoted(text: str) -> list[str]:
    """The words of an unfinished line; the last is the one that is being written."""
    *words, last = split_arg_string(text + CURSOR)
    return [*words, last.removesuffix(CURSOR)]
