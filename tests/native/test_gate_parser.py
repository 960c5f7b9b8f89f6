"""What the gate makes of messages that are too short, too long, or lie about themselves."""

from __future__ import annotations

import errno
import struct

import pytest
from hmmfs._native import ffi, lib
from hypothesis import given
from hypothesis import strategies as st

READ, WRITE, INTERRUPT, IOCTL, FALLOCATE, LSEEK, COPY, GETATTR = 15, 16, 36, 39, 43, 46, 47, 3
OPCODES = [READ, WRITE, INTERRUPT, IOCTL, FALLOCATE, LSEEK, COPY]
UNIQUE, INO = 77, (1 << 32) + 5


def message(opcode: int, body: bytes, length: int | None = None) -> bytes:
    length = 40 + len(body) if length is None else length
    return struct.pack("<IIQQIIIHH", length, opcode, UNIQUE, INO, 0, 0, 1, 0, 0) + body


def read_body(offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", 9, offset, size, 0, 0, 0, 0)


def write_body(offset: int, data: bytes, size: int | None = None) -> bytes:
    size = len(data) if size is None else size
    return struct.pack("<QQIIQII", 9, offset, size, 1, 0, 0, 0) + data


def fallocate_body(offset: int, length: int) -> bytes:
    return struct.pack("<QQQII", 9, offset, length, 3, 0)


def lseek_body(offset: int) -> bytes:
    return struct.pack("<QQII", 9, offset, 4, 0)


def ioctl_body(command: int, data: bytes, size: int | None = None, capacity: int = 40) -> bytes:
    size = len(data) if size is None else size
    return struct.pack("<QIIQII", 9, 0, command, 1 << 46, size, capacity) + data


def parse(data: bytes) -> tuple[int, object]:
    # Exactly as large as the message, so that a sanitizer sees a read beyond it.
    buffer = ffi.new("uint8_t[]", data) if data else ffi.NULL
    request = ffi.new("struct hm_request *")
    return lib.hm_gate_parse(buffer, len(data), request), request


GOOD = {
    "read": (message(READ, read_body(8192, 4096)), {"offset": 8192, "size": 4096, "fh": 9}),
    "write": (message(WRITE, write_body(1, b"abc")), {"offset": 1, "size": 3, "flags": 1}),
    "fallocate": (message(FALLOCATE, fallocate_body(5, 6)), {"offset": 5, "length": 6, "mode": 3}),
    "lseek": (message(LSEEK, lseek_body(12)), {"offset": 12, "mode": 4}),
    "copy": (message(COPY, struct.pack("<7Q", 9, 4096, INO + 1, 8, 8192, 512, 0)), {"ino": INO}),
    "interrupt": (message(INTERRUPT, struct.pack("<Q", 55)), {"length": 55}),
    "ioctl": (
        message(IOCTL, ioctl_body(0xC0284801, b"x" * 40, capacity=72)),
        {"fh": 9, "flags": 0, "mode": 0xC0284801, "size": 40, "length": 72, "pid": 1, "uid": 0},
    ),
    "ioctl without bytes": (message(IOCTL, ioctl_body(0x5401, b"")), {"mode": 0x5401, "size": 0}),
    "other": (message(GETATTR, b"x" * 16), {"opcode": GETATTR}),
}

BAD = {
    "nothing": b"",
    "half a header": message(READ, b"")[:20],
    "no body": message(READ, b""),
    "length too small": message(READ, read_body(0, 1), length=79),
    "length too large": message(READ, read_body(0, 1), length=81),
    "read with a tail": message(READ, read_body(0, 1) + b"x"),
    "read of 2 MiB": message(READ, read_body(0, 2 << 20)),
    "read past 2^63": message(READ, read_body(1 << 63, 1)),
    "write without its data": message(WRITE, write_body(0, b"", size=4096)),
    "write with too much data": message(WRITE, write_body(0, b"abcd", size=3)),
    "write without a header": message(WRITE, b"1234"),
    "fallocate that wraps": message(FALLOCATE, fallocate_body(1 << 62, 1 << 62)),
    "short fallocate": message(FALLOCATE, fallocate_body(0, 1)[:-1]),
    "short lseek": message(LSEEK, b"12345678"),
    "short interrupt": message(INTERRUPT, b"1234"),
    "ioctl without a header": message(IOCTL, b"12345678"),
    "ioctl without its bytes": message(IOCTL, ioctl_body(1, b"", size=40)),
    "ioctl with too few bytes": message(IOCTL, ioctl_body(1, b"x" * 39, size=40)),
    "ioctl with too many bytes": message(IOCTL, ioctl_body(1, b"x" * 41, size=40)),
    "ioctl of 4 GiB": message(IOCTL, ioctl_body(1, b"x" * 40, size=0xFFFFFFFF)),
    "ioctl of 2 MiB": message(IOCTL, ioctl_body(1, bytes(2 << 20))),
    "more than the gate reads": message(GETATTR, bytes(1 << 21)),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_messages(name: str) -> None:
    data, fields = GOOD[name]
    result, request = parse(data)
    assert result == 0
    assert {field: getattr(request, field) for field in fields} == fields
    assert (request.unique, request.ino) == (UNIQUE, INO)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", BAD)
def test_bad_messages(name: str) -> None:
    assert parse(BAD[name])[0] == -errno.EINVAL


@given(st.sampled_from(sorted(GOOD)), st.data())
def test_any_cut_is_refused(name: str, data: st.DataObject) -> None:
    whole = GOOD[name][0]
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert parse(whole[:cut])[0] == -errno.EINVAL


@given(st.binary(max_size=200), st.sampled_from(OPCODES))
def test_any_body_is_taken_or_refused(body: bytes, opcode: int) -> None:
    result, request = parse(message(opcode, body))
    assert result in (0, -errno.EINVAL)
    if result == 0 and opcode == WRITE:
        assert request.size == len(body) - 40  # type: ignore[attr-defined]
    if result == 0 and opcode == IOCTL:
        assert request.size == len(body) - 32  # type: ignore[attr-defined]
