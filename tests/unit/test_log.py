"""What becomes of lines of the log that can't be written."""

from __future__ import annotations

import logging
import os
import resource
import socket
from pathlib import Path

import pytest

from hmmfs.daemon.log import LogHandler


def logger(fd: int, name: str) -> logging.Logger:
    made = logging.Logger("test")
    made.addHandler(LogHandler(fd, name))
    return made


def test_lines_are_counted_while_they_cannot_be_written(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.setblocking(False)
        log = logger(ours.fileno(), "The log file x")
        written = 0
        while not capfd.readouterr().err:
            log.info("line %d", written)
            written += 1
        for _ in range(3):
            log.info("lost as well")
        for number in range(written - 1):
            assert theirs.recv(1 << 16).endswith(b" hmmfs INFO: line %d\n" % number)
        log.info("after")
        log.info("and on")
        lost, after = theirs.recv(1 << 16).splitlines()
        assert lost == b"hmmfs: lines that could not be written here: 4"
        assert after.endswith(b"INFO: after")
        assert theirs.recv(1 << 16).count(b"\n") == 1
    assert capfd.readouterr().err == "", "said once"


def test_a_full_disk_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    log = logger(full, "The log file /dev/full")
    for number in range(3):
        log.error("line %d", number)
    os.close(full)
    said = "hmmfs: The log file /dev/full can't be written: No space left on device.\n"
    assert capfd.readouterr().err == said


def test_half_a_line_is_lost(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, limits = tmp_path / "log", resource.getrlimit(resource.RLIMIT_FSIZE)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    log = logger(fd, "it")
    os.write(fd, b"." * 199 + b"\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (240, limits[1]))
    try:
        log.info("a line of more bytes than there may be")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.info("whole")
    os.close(fd)
    _, half, lost, whole = path.read_text().splitlines()
    assert len(half) == 40
    assert lost == "hmmfs: lines that could not be written here: 1"
    assert whole.endswith(" hmmfs INFO: whole")
    assert "it can't be written" in capfd.readouterr().err


def test_what_utf8_cannot_say(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    logger(fd, "it").info("%s", "a\udcff")
    os.close(fd)
    assert (tmp_path / "log").read_text().endswith("INFO: a\\udcff\n")
