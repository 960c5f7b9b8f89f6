"""What ``hmmfs run`` does. It imports little: a program is to start as if by itself."""

from __future__ import annotations

import errno
import os
import re
import sys

from hmmfs import mountinfo
from hmmfs.errors import HmmfsError, UsageError

LIBRARY = os.path.join(os.path.dirname(os.path.realpath(__file__)), "libhmmfs-run.so")
NOT_EXECUTABLE = 126  # as env(1) has it
NOT_FOUND = 127


def run(directory: str, least: int | None, command: list[str]) -> int:
    """Become the program, so this returns only if that can't be: the exit status. least: bytes of
    the smallest mapping that is the devices'. HmmfsError: the mount takes no programs."""
    point = mountinfo.require_hmmfs(directory).point
    settings = {"HMMFS_SOCKET": _socket(point), "HMMFS_DIR": point}
    if least is not None:
        settings["HMMFS_LEAST"] = str(least)
    else:
        os.environ.pop("HMMFS_LEAST", None)
    settings["LD_PRELOAD"] = _preloaded(os.environ.get("LD_PRELOAD", ""))
    settings["ASAN_OPTIONS"] = _asan_options(os.environ.get("ASAN_OPTIONS", ""))
    os.environ.update(settings)
    if not command[0]:
        raise UsageError("The program to run has an empty name.")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        print(f"hmmfs: {command[0]} can't be run: {error.strerror}.", file=sys.stderr)
        return NOT_FOUND if missing else NOT_EXECUTABLE


def _socket(point: str) -> str:
    """The abstract name by which the mount's daemon is reached."""
    try:
        with open(os.path.join(point, "socket"), errors="surrogateescape") as file:
            name = file.read().rstrip("\n")
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
    if not os.path.exists(LIBRARY):
        raise HmmfsError(errno.ENOENT, f"There is no {LIBRARY}: install hmmfs anew.")
    if re.search(r"[\s:]", LIBRARY):
        raise HmmfsError(
            errno.EINVAL,
            f"{LIBRARY} can't be preloaded: install hmmfs where no blank or colon is in the path.",
        )
    return ":".join(
        [LIBRARY, *(other for other in re.split(r"[ :]+", others) if other not in ("", LIBRARY))]
    )


def _asan_options(others: str) -> str:
    """AddressSanitizer would refuse a library before its own; what was said of that stays."""
    if "verify_asan_link_order" in others:
        return others
    return ":".join([*([others] if others else []), "verify_asan_link_order=0"])
