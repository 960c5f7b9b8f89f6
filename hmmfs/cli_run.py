"""``hmmfs run``: a program whose own memory the devices of a mount work on."""

from __future__ import annotations

import click

from hmmfs.cli_record import BeforeDashes
from hmmfs.run import run
from hmmfs.units import parse_size


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
    return run(directory, None if least is None else parse_size(least), command)


COMMANDS = (run_command,)
