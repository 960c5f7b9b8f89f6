"""What is done for a program when the kernel writes its core dump, or somebody else reads the file
that it has mapped for that (`filesystem/dumps.py`)."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from hmmfs.errors import HmmfsError

if TYPE_CHECKING:
    from hmmfs.program.processes import Process

log = logging.getLogger(__name__)

TRIES = 20  # of some seconds at most, each; a dump waits that long rather than lack pages


class Dumping:
    """Of a program that is yet to be attached: `process` is None until then."""

    process: Process | None = None

    async def come_home(self) -> bool:
        """All of its pages. Of a program that dumps, devices get nothing any more. Whether there
        may be another reader: it does not dump."""
        if self.process is None:
            return True
        dumps = _is_dumping(self.process)
        for left in reversed(range(TRIES if dumps else 1)):
            try:
                await (self.process.take_back() if dumps else self.process.home())
                break
            except HmmfsError as error:
                if error.errno == errno.EBUSY and left:
                    continue
                log.warning(
                    "Process %d may lack pages in a dump: %s", self.process.pid, error.sentence
                )
                break
        return not dumps

    def left(self) -> int | None:
        """How many pages devices have of it. None: it dumps its core, which is to have them all."""
        if self.process is None:
            return 0
        return None if _is_dumping(self.process) else self.process.away()


def _is_dumping(process: Process) -> bool:
    try:
        with open(f"/proc/{process.pid}/status") as status:
            return "\nCoreDumping:\t1\n" in status.read()
    except OSError:
        return False
