"""Builds hmmfs._native: the C files beside this one, and the declarations of hmmfs.h.

cffi parses C but not its preprocessor, so the header's directives are left out here and its
``#define NAME number`` lines are kept as constants.
"""

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SOURCES = [
    "access.c",
    "account.c",
    "advice.c",
    "afar.c",
    "anonymous.c",
    "copies.c",
    "cost.c",
    "directory.c",
    "events.c",
    "gate.c",
    "jobs.c",
    "labels.c",
    "movers.c",
    "operation.c",
    "order.c",
    "pending.c",
    "placement.c",
    "pool.c",
    "prefetch.c",
    "process.c",
    "region.c",
    "recall.c",
    "relay.c",
    "room.c",
    "shared.c",
    "shared_access.c",
    "side.c",
    "space.c",
    "spares.c",
    "stays.c",
    "take.c",
    "thrash.c",
    "times.c",
    "touch.c",
    "trace.c",
    "transaction.c",
    "uffd.c",
    "vma.c",
]


def declarations() -> str:
    """The header as cffi wants it: constants first, then everything but directives."""
    text = (HERE / "hmmfs.h").read_text()
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
    '#include "hmmfs.h"',
    sources=[os.path.relpath(HERE / name, ROOT) for name in SOURCES],
    include_dirs=[os.path.relpath(HERE, ROOT)],
    depends=[os.path.relpath(path, ROOT) for path in sorted(HERE.glob("*.h"))],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=flags,
    extra_link_args=links,
    libraries=["z"],
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
