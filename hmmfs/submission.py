"""What is written to a device's submit file."""

import errno

from hmmfs.errors import HmmfsError

# Bytes of one write. The kernel sends a longer write in parts: at 1 MiB, and a page before that if
# the program's buffer does not begin with a page.
MAX_SUBMISSION = (1 << 20) - 4096


def submission(operations: str) -> bytes:
    """The bytes of operations, one a line. E2BIG: they would not arrive as one write."""
    data = operations.encode(errors="surrogateescape") + b"\n"
    if len(data) > MAX_SUBMISSION:
        raise HmmfsError(
            errno.E2BIG,
            f"What is sent to a device has at most {MAX_SUBMISSION} bytes, and this {len(data)}: "
            "put large arguments into a region.",
        )
    return data
