"""Reading the files of a mount, with a limit on how long that may take."""

from __future__ import annotations

import errno
import json
import os
import select
from collections.abc import Callable
from typing import Any, NoReturn

from hmmfs.common import mountinfo
from hmmfs.errors import HmmfsError

PATIENCE_S = 5.0

Values = dict[str, int | str]


def ask(path: str, collect: Callable[[str], Any], patience_s: float = PATIENCE_S) -> Any:
    """What ``collect`` returns for the directory of the mount on ``path``; it must fit into JSON.

    It runs in a child: a request that a stuck daemon has taken cannot be interrupted by anything,
    so a reader that waits for it could not even exit. HmmfsError: it failed, or took too long.
    """
    entry = mountinfo.require_hmmfs(path)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _answer(writer, collect, entry.point)
    os.close(writer)
    with open(reader, "rb", buffering=0) as pipe:
        if not select.select([pipe], [], [], patience_s)[0]:
            raise HmmfsError(
                errno.ETIMEDOUT,
                f"{path} has not answered for {patience_s:g} s: "
                f"/sys/fs/fuse/connections/{entry.minor}/abort ends what waits for it.",
            )
        answer = json.loads(pipe.read() or b"{}")
    os.waitpid(pid, 0)
    if "found" in answer:
        return answer["found"]
    number = int(answer.get("errno", errno.EIO))
    raise HmmfsError(number, f"{path} cannot be read: {answer.get('reason', 'no answer')}.")


def _answer(writer: int, collect: Callable[[str], Any], point: str) -> NoReturn:
    try:
        # A stuck reader must not hold its parent's files and pipes open.
        os.closerange(0, writer)
        os.closerange(writer + 1, 1 << 20)
        try:
            answer: dict[str, object] = {"found": collect(point)}
        except OSError as error:
            answer = {"errno": error.errno, "reason": error.strerror}
        with open(writer, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def text(*parts: str) -> str:
    with open(os.path.join(*parts), errors="surrogateescape") as file:
        return file.read()


def line(*parts: str) -> str:
    """A file of one value."""
    return text(*parts).rstrip("\n")


def values(*parts: str) -> Values:
    """The ``key value`` lines of a file."""
    lines = (each.partition(" ") for each in text(*parts).splitlines() if each.strip())
    return {key: number(value.strip()) for key, _, value in lines}


def number(word: str) -> int | str:
    return int(word) if word.isascii() and word.isdecimal() else word
