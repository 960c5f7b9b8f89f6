"""What ``hmmfs run`` does. It imports little: a program is to start as if by itself."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Mapping

from hmmfs.common import mountinfo
from hmmfs.errors import HmmfsError, UsageError

PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
LIBRARY = os.path.join(PACKAGE, "libhmmfs-run.so")
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
    settings |= preloading(LIBRARY, os.environ)
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
            f"The daemon of {point} takes no programs. Mount again with this version of hmmfs.",
        )
    return name


def preloading(library: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment must have for the library to be preloaded. It comes first, and once
    where hmmfs run is nested. LD_PRELOAD can't say a path with blanks; a path of directories can.
    HmmfsError: there is no library, or neither can say where it is."""
    directory, name = os.path.split(library)
    if not os.path.exists(library):
        raise HmmfsError(errno.ENOENT, f"There is no {library}. Install hmmfs anew.")
    if re.search(r"[:;$]", directory):
        raise HmmfsError(
            errno.EINVAL,
            f"{library} can't be preloaded. Install hmmfs where the path has no colon, semicolon "
            "or dollar sign.",
        )
    found = {}
    if re.search(r"\s", directory):
        library = name
        paths = re.split(r"[:;]", environment.get("LD_LIBRARY_PATH", ""))
        found["LD_LIBRARY_PATH"] = ":".join(_first(directory, paths))
    others = re.split(r"[ :]+", environment.get("LD_PRELOAD", ""))
    found["LD_PRELOAD"] = ":".join(_first(library, others))
    return found


def _first(one: str, others: list[str]) -> list[str]:
    return [one, *(other for other in others if other not in ("", one))]


def _asan_options(others: str) -> str:
    """AddressSanitizer would refuse a library before its own; what was said of that stays."""
    if "verify_asan_link_order" in others:
        return others
    return ":".join([*([others] if others else []), "verify_asan_link_order=0"])
