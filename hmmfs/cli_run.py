"""``hmmfs run``: a program whose own memory the devices of a mount work on."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import click

from hmmfs import mountinfo
from hmmfs.cli_record import BeforeDashes
from hmmfs.errors import HmmfsError
from hmmfs.units import parse_size

LIBRARY = Path(__file__).resolve().parent / "libhmmfs-run.so"
NOT_EXECUTABLE = 126  # as env(1) has it
NOT_FOUND = 127


class BeforeProgram(BeforeDashes):
    nothing = "Nothing is to be run: its form is hmmfs run DIR -- PROGRAM [ARGUMENT]..."
    behind = "PROGRAM [ARGUMENT]..."


@click.command("run", cls=BeforeProgram)
@click.argument("directory", metavar="DIR")
@click.option("--least", metavar="SIZE", help="Leave mappings alone that are smaller.")
def run_command(directory: str, least: str | None, command: list[str]) -> int:
    """Run PROGRAM so that the devices of the mount on DIR can use its memory.

    Its anonymous memory, its heap for one, is theirs as much as a region is, by the same addresses.
    Programs that it starts are attached too. If the mount can't attach one it says so, and the
    program runs on by itself. For example:

    hmmfs run /mnt -- python train.py
    """
    point = mountinfo.require_hmmfs(directory).point
    settings = {"HMMFS_SOCKET": _socket(point), "HMMFS_DIR": point}
    if least is not None:
        settings["HMMFS_LEAST"] = str(parse_size(least))
    else:
        os.environ.pop("HMMFS_LEAST", None)
    os.environ.update(settings, LD_PRELOAD=_preloaded(os.environ.get("LD_PRELOAD", "")))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        click.echo(f"hmmfs: {command[0]} can't be run: {error.strerror}.", err=True)
        return NOT_FOUND if missing else NOT_EXECUTABLE


def _socket(point: str) -> str:
    """The abstract name by which the mount's daemon is reached."""
    try:
        name = Path(point, "socket").read_text(errors="surrogateescape").rstrip("\n")
    except FileNotFoundError:
        name = ""
    if not name:
        raise HmmfsError(
            errno.ENOTSUP,
            f"The daemon of {point} takes no programs: mount again with this version of hmmfs.",
        )
    return name


def _preloaded(others: str) -> str:
    """The value of LD_PRELOAD. The library comes first, and once where hmmfs run is nested."""
    library = str(LIBRARY)
    if not LIBRARY.exists():
        raise HmmfsError(errno.ENOENT, f"There is no {library}: install hmmfs anew.")
    if re.search(r"[\s:]", library):
        raise HmmfsError(
            errno.EINVAL,
            f"{library} can't be preloaded: install hmmfs where no blank or colon is in the path.",
        )
    return ":".join(
        [library, *(other for other in re.split(r"[ :]+", others) if other not in ("", library))]
    )


COMMANDS = (run_command,)
