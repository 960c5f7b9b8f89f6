"""Which mount is meant."""

from __future__ import annotations

import errno

from hmmfs.common import mountinfo
from hmmfs.common.names import printable
from hmmfs.errors import HmmfsError, UsageError


def choose(path: str | None) -> str:
    """The directory of the mount on ``path``; without a path, of the only one there is.

    HmmfsError: there is none there, or none at all. UsageError: there are several.
    """
    if path is not None:
        return mountinfo.require_hmmfs(path).point
    # By directory: of mounts on top of each other, the uppermost is the one that is seen.
    uppermost = {entry.point: entry.type for entry in mountinfo.entries()}
    points = [point for point, kind in uppermost.items() if kind == mountinfo.TYPE]
    if not points:
        raise HmmfsError(errno.ENOENT, "There is no hmmfs mount: make one with hmmfs mount DIR.")
    if len(points) > 1:
        there = ", ".join(printable(point) for point in points)
        raise UsageError(f"There are several hmmfs mounts, so give the directory of one: {there}.")
    return points[0]
