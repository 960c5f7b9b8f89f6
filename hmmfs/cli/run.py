"""``hmmfs run``: a program whose own memory the devices of a mount work on."""

from __future__ import annotations

import click

from hmmfs.cli.preload import run
from hmmfs.cli.record import BeforeDashes
from hmmfs.common.units import parse_size
from hmmfs.errors import UsageError


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


@click.command("home")
@click.argument("directory", metavar="DIR")
@click.argument("pid", metavar="PID", type=click.IntRange(min=1))
@click.option("--once", is_flag=True, help="Let devices take it again.")
@click.option("--end", is_flag=True, help="Let devices take it again that a call before kept away.")
def home_command(directory: str, pid: int, once: bool, end: bool) -> int:
    """Bring all memory of process PID, which hmmfs run started, home from the devices of DIR.

    It stays there, since the devices are detached from it. That is for debuggers, gcore and
    profilers, to which a page that a device has can't be read. The program may be stopped. For
    example:

    \b
    hmmfs home /mnt 1234
    gdb -p 1234
    hmmfs home /mnt 1234 --end
    """
    from hmmfs.api.machine import connect

    if once and end:
        raise UsageError("Only one of --once and --end can be meant.")
    machine = connect(directory)
    process = machine.process(pid)
    if end:
        process.attach(*machine.devices)
    else:
        process.home(once=once)
    return 0


COMMANDS = (run_command, home_command)
