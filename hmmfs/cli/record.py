"""``hmmfs record``, ``hmmfs report`` and ``hmmfs export``: a run, written down."""

from __future__ import annotations

import os
import sys

import click

from hmmfs.cli.inspect import Seconds
from hmmfs.common.names import printable
from hmmfs.errors import UsageError


class BeforeDashes(click.Command):
    """What is behind the first "--" is a command of its own, whose options are not ours."""

    nothing = "Nothing is to be recorded: its form is hmmfs record [DIR] -o FILE -- COMMAND...."
    behind = "COMMAND..."

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        command = args[at + 1 :]
        rest = super().parse_args(ctx, args[:at])
        if not command:
            raise UsageError(self.nothing)
        ctx.params["command"] = command
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "--", self.behind]


@click.command("record", cls=BeforeDashes)
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("-o", "--output", "path", metavar="FILE", required=True, help="Compressed if *.gz.")
@click.option(
    "--interval",
    type=Seconds(0.001, 3600),
    default=0.05,
    metavar="SECONDS",
    show_default=True,
    help="Between two samples of what is where.",
)
def record_command(directory: str | None, path: str, interval: float, command: list[str]) -> int:
    """Run COMMAND and write down what it does to the memory of a mount.

    Every event of the mount's trace goes to FILE, and samples of what is where; hmmfs report and
    hmmfs export make something of it. COMMAND finds the mount's directory in HMMFS_MOUNT, and its
    exit status becomes that of hmmfs record (128 and the signal's number if it was killed). DIR may
    be left out where there is just one mount. For example:

    hmmfs record /mnt -o run.jsonl -- python train.py
    """
    from hmmfs.inspect.mount.mounts import choose
    from hmmfs.inspect.record.recorder import record

    point = choose(directory)
    outcome = record(point, path, command, interval)
    if outcome.trouble:
        print(f"hmmfs: {outcome.trouble}", file=sys.stderr)
    if outcome.trace != "all":
        print(
            f"hmmfs: The trace of {printable(point)} keeps {printable(outcome.trace)}, so the "
            "recording has no other events. See trace_size and trace_filter there.",
            file=sys.stderr,
        )
    if outcome.lost:
        print(
            f"hmmfs: {outcome.lost} events were lost, {outcome.events} were recorded: "
            f"a larger trace_size in {point} holds more.",
            file=sys.stderr,
        )
    return outcome.status or (1 if outcome.trouble else 0)


@click.command("report")
@click.argument("recording", metavar="FILE")
@click.option("-o", "--output", "path", metavar="OUT.html", help="[default: FILE with .html]")
def report_command(recording: str, path: str | None) -> int:
    """Make a page of what hmmfs record wrote to FILE, and print its name.

    It is one HTML file that needs nothing else, the network included.
    """
    from hmmfs.inspect.report.report import report

    path = _apart(recording, ".html", path)
    report(recording, path)
    click.echo(os.fsencode(path))
    return 0


@click.command("export")
@click.argument("recording", metavar="FILE")
@click.option("--perfetto", "form", flag_value="perfetto", help="Chrome trace-event JSON.")
@click.option("--csv", "form", flag_value="csv", help="A row an event.")
@click.option("--parquet", "form", flag_value="parquet", help="The same; needs hmmfs[parquet].")
@click.option(
    "-o", "--output", "path", metavar="OUT", help="[default: FILE with .trace.json, .csv, .parquet]"
)
def export_command(recording: str, form: str | None, path: str | None) -> int:
    """Turn what hmmfs record wrote to FILE into a format of other programs, and print its name."""
    if form is None:
        raise UsageError("Give one of --perfetto, --csv and --parquet.")
    from hmmfs.inspect.record.export import FORMS, export

    path = _apart(recording, FORMS[form], path)
    export(recording, form, path)
    click.echo(os.fsencode(path))
    return 0


def _apart(recording: str, ending: str, path: str | None) -> str:
    """The file to write: the one asked for, unless it is the recording itself."""
    if path is None:
        return _beside(recording, ending)
    if os.path.exists(path) and os.path.exists(recording) and os.path.samefile(path, recording):
        raise UsageError(f"{printable(path)} is the recording itself. Give another file to -o.")
    return path


def _beside(recording: str, ending: str) -> str:
    stem, suffix = os.path.splitext(recording.removesuffix(".gz"))
    return (stem if suffix in (".jsonl", ".json") else stem + suffix) + ending


COMMANDS = (record_command, report_command, export_command)
