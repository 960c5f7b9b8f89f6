"""What a mount says of itself, read from its files; nothing here writes."""

import errno
import json
import os
import select
from collections.abc import Iterator
from typing import Any, NoReturn

from hmmfs import mountinfo
from hmmfs.errors import HmmfsError

SCHEMA = 1
PATIENCE_S = 5.0

Values = dict[str, int | str]
Status = dict[str, Any]


def read_status(path: str, patience_s: float = PATIENCE_S) -> Status:
    """The state of the mount on ``path``, in the form that ``hmmfs status --json`` promises.

    Read in a child: a request that a stuck daemon has taken cannot be interrupted by anything, so
    a reader that waits for it could not even exit.
    """
    entry = mountinfo.require_hmmfs(path)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _answer(writer, entry.point)
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
    if "status" in answer:
        return dict(answer["status"])
    number = int(answer.get("errno", errno.EIO))
    raise HmmfsError(number, f"{path} cannot be read: {answer.get('reason', 'no answer')}.")


def _answer(writer: int, point: str) -> NoReturn:
    try:
        # A stuck reader must not hold its parent's files and pipes open.
        os.closerange(0, writer)
        os.closerange(writer + 1, 1 << 20)
        try:
            answer: dict[str, object] = {"status": _collect(point)}
        except OSError as error:
            answer = {"errno": error.errno, "reason": error.strerror}
        with open(writer, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _collect(point: str) -> Status:
    return {
        "schema": SCHEMA,
        "path": point,
        "version": _text(point, "version").strip(),
        "stats": _values(point, "stats"),
        "devices": list(_devices(point)),
        "regions": list(_regions(point)),
    }


def _devices(point: str) -> Iterator[Status]:
    names = os.listdir(os.path.join(point, "devices"))
    for name in sorted(names, key=lambda name: (len(name), name)):  # dev10 after dev9
        yield {
            "name": name,
            "vram": {
                key: _number(_text(point, "devices", name, "vram", key).strip())
                for key in ("total", "used")
            },
            "stats": _values(point, "devices", name, "stats"),
        }


def _regions(point: str) -> Iterator[Status]:
    for name in sorted(os.listdir(os.path.join(point, "state"))):
        try:
            yield {"name": name, "residency": _values(point, "state", name, "residency")}
        except FileNotFoundError:  # unlinked since it was listed
            continue


def _text(*parts: str) -> str:
    with open(os.path.join(*parts)) as file:
        return file.read()


def _values(*parts: str) -> Values:
    """The ``key value`` lines of a file."""
    lines = (line.partition(" ") for line in _text(*parts).splitlines() if line.strip())
    return {key: _number(value.strip()) for key, _, value in lines}


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() else text
