"""The ``hmmfs`` command. Data goes to stdout, messages to stderr, one sentence each.

Exit status: 0 done, 1 failed, 2 wrongly called, 130 interrupted.
"""

import difflib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

import click

from hmmfs import __version__
from hmmfs.cli import inspect as cli_inspect
from hmmfs.cli import record as cli_record
from hmmfs.cli import run as cli_run
from hmmfs.common import mountinfo
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.mounting import computer
from hmmfs.mounting.config import OPTIONS, Config
from hmmfs.mounting.daemonize import Owner, in_background, open_standard_files, sd_notify
from hmmfs.wire.calls import transact

FAILED = 1
WRONG = 2
INTERRUPTED = 130
CONTEXT = {"help_option_names": ["-h", "--help"]}
OPTIONS_HELP = f"Options, separated by commas: {', '.join(OPTIONS)}."


@click.group(context_settings=CONTEXT)
@click.version_option(
    __version__, "-V", "--version", prog_name="hmmfs", message="%(prog)s %(version)s"
)
def cli() -> None:
    """A heterogeneous-memory machine that you can mount.

    Also called as mount(8) does: hmmfs SOURCE DIR -o OPTIONS.
    """


def _mount_options(command: Callable[..., int]) -> Callable[..., int]:
    """What `hmmfs mount DIR` and `hmmfs SOURCE DIR` have in common."""
    for decorate in (
        click.option("-d", "debug", is_flag=True, help="Log what is done; implies -f."),
        click.option("-f", "foreground", is_flag=True, help="Stay in the foreground."),
        click.option("--config", "toml", metavar="FILE", help="A TOML file with a [mount] table."),
        click.option("-o", "options", metavar="OPTIONS", multiple=True, help=OPTIONS_HELP),
    ):
        command = decorate(command)
    return command


@cli.command("mount")
@click.argument("directory", metavar="DIR")
@click.option(
    "--metrics-port", "port", metavar="PORT", help="Serve metrics there; as -o metrics_port=PORT."
)
@_mount_options
def mount_command(
    directory: str,
    options: tuple[str, ...],
    toml: str | None,
    foreground: bool,
    debug: bool,
    port: str | None,
) -> int:
    """Mount on DIR, and return when the mount answers."""
    if port is not None:
        options = (*options, "metrics_port=" + port.replace(",", "\\,"))
    config = Config.from_options(",".join(options), toml)
    return _serve(directory, config, foreground, debug)


@click.command("hmmfs", context_settings=CONTEXT)
@click.argument("source")
@click.argument("directory", metavar="DIR")
@click.option("-s", "single", is_flag=True, help="One gate thread.")
@_mount_options
def mount8_command(
    source: str,
    directory: str,
    options: tuple[str, ...],
    toml: str | None,
    foreground: bool,
    debug: bool,
    single: bool,
) -> int:
    """Mount on DIR under the name SOURCE, as mount(8) calls it."""
    config = Config.from_options(",".join(options), toml, fsname=source)
    return _serve(directory, replace(config, threads=1) if single else config, foreground, debug)


def _serve(
    directory: str, config: Config, foreground: bool, debug: bool, owner: Owner | None = None
) -> int:
    debug = debug or config.debug
    config = replace(config, debug=debug, foreground=foreground or debug)
    # Inherited as ignored, it would take the exit statuses of fusermount3 and of workers.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not directory:
        raise UsageError("The directory to mount on has an empty name.")
    # Absolute, because a daemon may leave the directory it was started in.
    path = mountinfo.resolve(directory)
    # numpy's OpenBLAS starts a thread for every CPU when it is imported; the daemon does no
    # linear algebra, and forks its watchdog while it is still single-threaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

    def work(ready: Callable[[], None]) -> int:
        from hmmfs.daemon.daemon import serve

        return serve(path, config, ready, owner)

    def warned() -> None:
        if sentence := computer.complaint(config.memory):
            _complain(sentence, 0)

    def ready() -> None:
        warned()
        sd_notify("READY=1")

    if config.foreground and owner is None:
        return work(ready)
    status = in_background(work)
    if owner is None:  # a program is told in another way
        warned()
    return status


@cli.command("umount")
@click.argument("directory", metavar="DIR")
@click.option("-z", "lazy", is_flag=True, help="Detach it now; it ends when nothing uses it.")
def umount_command(directory: str, lazy: bool) -> int:
    """End the mount on DIR."""
    from hmmfs.mounting import mounts as mounting

    mounting.unmount(directory, lazy)
    return 0


@cli.command("status")
@click.argument("directory", metavar="DIR")
@click.option("--json", "as_json", is_flag=True, help="For programs; its schema has a version.")
def status_command(directory: str, as_json: bool) -> int:
    """Show devices, regions and counters of the mount on DIR."""
    from hmmfs.inspect.mount.status import read_status

    status = read_status(directory)
    if as_json:
        print(json.dumps(status, indent=2))
    else:
        from hmmfs.inspect.mount.table import print_status

        cli_inspect.tolerate_names()
        print_status(status)
    return 0


for command in (*cli_inspect.COMMANDS, *cli_record.COMMANDS, *cli_run.COMMANDS):
    cli.add_command(command)


@cli.command("submit")
@click.argument("directory", metavar="DIR")
@click.argument("device", metavar="DEV")
@click.argument("operations", metavar="OPERATION...", nargs=-1, required=True)
def submit_command(directory: str, device: str, operations: tuple[str, ...]) -> int:
    """Run operations on a device of the mount on DIR, and print their answers.

    For example: hmmfs submit /mnt dev0 'fill a 7' 'checksum a'.
    """
    top = os.path.join(mountinfo.require_hmmfs(directory).point, "devices", device)
    for operation in operations:
        answer, _ = transact(top, operation, None)
        sys.stdout.buffer.write(os.fsencode(answer))
        sys.stdout.buffer.flush()
    return 0


@cli.command("launch")
@click.argument("directory", metavar="DIR")
@click.argument("device", metavar="DEV")
@click.argument("kernel", metavar="MODULE:FUNCTION|FILE.py:FUNCTION")
@click.argument("arguments", metavar="ARGUMENT...", nargs=-1)
@click.option("--limit", type=float, metavar="SECONDS", help="End it after that.")
def launch_command(
    directory: str, device: str, kernel: str, arguments: tuple[str, ...], limit: float | None
) -> int:
    """Run a kernel on a device of the mount on DIR, and print what it returns.

    A region is reads:NAME, writes:NAME or updates:NAME, with :DTYPE and :SHAPE (as 64x1024) behind
    it where it is not bytes; anything else is JSON, or a string. For example:

    hmmfs launch /mnt dev0 hmmfs.kernels:axpy 2.0 reads:x:float32 updates:y:float32
    """
    from hmmfs.api.arguments import parse_arguments, parse_kernel

    machine, words = parse_arguments(directory, arguments)
    result = machine.device(device).launch(parse_kernel(kernel), *words, limit=limit).wait()
    if result is not None:
        print(result)
    return 0


@cli.command("advise")
@click.argument("directory", metavar="DIR")
@click.argument("place", metavar="REGION[:OFFSET+LENGTH]")
@click.argument("words", metavar="[ADVICE...]", nargs=-1)
def advise_command(directory: str, place: str, words: tuple[str, ...]) -> int:
    """Say how a region of the mount on DIR is used; without ADVICE, print what was said.

    ADVICE is read_mostly, preferred_location=NODE, accessed_by=NODE[,NODE], granularity=SIZE,
    pinned, no_migrate, each also with unset_ before it, or unset_all. A NODE is host or dev0, dev1
    and so on. For example:

    hmmfs advise /mnt a:0+2M preferred_location=host accessed_by=dev0
    """
    from hmmfs.api.arguments import parse_place

    region, part = parse_place(directory, place)
    if words:
        region.advise(*words, part=part)
        return 0
    for name, value in region.attributes(part or slice(None)).items():
        shown = ",".join(value) if isinstance(value, list) else value
        print(name, int(shown) if isinstance(shown, bool) else shown or "none")
    return 0


@cli.command("completion")
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> int:
    """Print the script that completes the words of this command in a shell.

    An installed package has it where shells look. For others:

    source <(hmmfs completion bash)
    """
    from hmmfs.cli import completion

    print(completion.script(shell), end="")
    return 0


def _command(args: list[str]) -> click.Command:
    """The subcommands' parser, or mount(8)'s form where the first argument names none of them."""
    first = next((arg for arg in args if not arg.startswith("-")), None)
    if not args or first is None or first in cli.commands:
        return cli
    near = difflib.get_close_matches(first, list(cli.commands), n=1, cutoff=0.75)
    if near and "-o" not in args:
        raise UsageError(
            f'There is no command "{first}" (did you mean "{near[0]}"?); for a source of that '
            "name give options with -o."
        )
    return mount8_command


def main(argv: list[str] | None = None) -> int:
    """The ``hmmfs`` program: no mistake of its user shows a traceback."""
    args = sys.argv[1:] if argv is None else argv
    open_standard_files()
    try:
        if asked := os.environ.get("_HMMFS_COMPLETE"):
            from hmmfs.cli import completion

            # Where the words are by which the parser is chosen; click sees to the rest.
            args = completion.words_given(asked)
        result = _command(args).main(args, prog_name="hmmfs", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return WRONG
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except HmmfsError as error:
        return _complain(str(error), WRONG if isinstance(error, UsageError) else FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return _complain(f"{where}{error.strerror}.", FAILED)


def _complain(sentence: str, status: int) -> int:
    print(f"hmmfs: {sentence}", file=sys.stderr)
    return status
