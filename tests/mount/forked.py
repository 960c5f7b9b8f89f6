"""The command line without the start of an interpreter: a process that has all of it imported forks
one for each command. Of the CPU time of a mount, 0.8 s, imports are three quarters.

The command itself runs as ever, and so does the daemon that it forks. `test_first.py`,
`test_endings.py` and others start a real one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

REQUEST_BYTES = 1 << 20


class Commands:
    """Use it as a context; it ends with it."""

    def __enter__(self) -> Commands:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            # What our own libraries start with one thread must not be changed by many.
            environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait(10)

    def run(self, *args: str, timeout: float = 60) -> tuple[int, str]:
        """As `hmmfs ARG …`: its exit status, and what it wrote to standard error."""
        request = {"args": args, "environment": dict(os.environ), "directory": os.getcwd()}
        self._socket.settimeout(timeout)
        self._socket.send(json.dumps(request).encode())
        status, said = json.loads(self._socket.recv(REQUEST_BYTES))
        return status, said


def _carry_out(request: dict[str, Any], said: int) -> int:
    from hmmfs.cli import main as cli

    os.dup2(said, 2)
    os.close(said)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["directory"])
    status = cli.main(request["args"])
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def _serve(connection: socket.socket) -> None:
    while data := connection.recv(REQUEST_BYTES):
        with tempfile.TemporaryFile() as said:
            if (pid := os.fork()) == 0:
                connection.close()
                status = 70
                try:
                    status = _carry_out(json.loads(data), said.fileno())
                except BaseException:
                    os.write(2, traceback.format_exc().encode())
                finally:
                    os._exit(status)
            _, status = os.waitpid(pid, 0)
            said.seek(0)
            answer = [os.waitstatus_to_exitcode(status), said.read().decode(errors="replace")]
        connection.send(json.dumps(answer).encode())


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # a test's module by the name of another
    import hmmfs.cli.main
    import hmmfs.daemon.daemon  # noqa: F401

    with socket.socket(fileno=int(sys.argv[1])) as connection:
        os.set_inheritable(connection.fileno(), False)
        _serve(connection)
