"""Builds hmmfs._linux: the system calls of system_calls.h, for processes that have no core."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

ffi = FFI()
text = (HERE / "system_calls.h").read_text()
ffi.cdef("\n".join(line for line in text.splitlines() if not line.startswith("#")))
ffi.set_source(
    "hmmfs._linux",
    '#include "linux/system_calls.h"',
    sources=["native/linux/system_calls.c"],
    include_dirs=["native"],
    depends=["native/linux/system_calls.h"],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=["-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
