"""Builds hmmfs._native: the C files below this directory, and the declarations of
include/hmmfs.h.

cffi parses C but not its preprocessor, so the header's directives are left out here and its
``#define NAME number`` lines are kept as constants.
"""

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# All but the library of hmmfs run and the system calls, which are built apart.
SOURCES = sorted(path for path in HERE.rglob("*.c") if path.parent.name not in ("preload", "linux"))


def declarations() -> str:
    """The header as cffi wants it: constants first, then everything but directives."""
    text = (HERE / "include/hmmfs.h").read_text()
    constants = re.findall(r"^#define (HM_\w+) \d+$", text, flags=re.M)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return "\n".join(f"#define {name} ..." for name in constants) + "\n" + body


ffi = FFI()
ffi.cdef(declarations())
# -O2: memcpy and popcount loops. HMMFS_SANITIZE=address,undefined builds for a sanitizer run.
sanitize = os.environ.get("HMMFS_SANITIZE")
flags = ["-O2", "-g", "-std=gnu11", "-pthread", "-Wall", "-Wextra"]
flags += ["-Wno-unused-parameter"]  # of what cffi generates
links = ["-pthread"]
if sanitize:
    flags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-O1"]
    links += [f"-fsanitize={sanitize}"]
ffi.set_source(
    "hmmfs._native",
    '#include "include/hmmfs.h"',
    sources=[os.path.relpath(path, ROOT) for path in SOURCES],
    include_dirs=[os.path.relpath(HERE, ROOT)],
    depends=[os.path.relpath(path, ROOT) for path in sorted(HERE.rglob("*.h"))],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=flags,
    extra_link_args=links,
    libraries=["z"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
