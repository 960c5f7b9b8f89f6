"""What hmmfs raises: an errno for programs and one sentence for people."""

import errno
import os


class HmmfsError(OSError):
    """An errno and one sentence that says what was wrong and what would be right."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(number, sentence)
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class UsageError(HmmfsError):
    """What was asked for cannot be right: EINVAL, and exit status 2 on the command line."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.EINVAL, sentence)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return UsageError, (self.sentence,)  # another process makes it anew from that


def check(ret: int, what: str) -> int:
    """Hand back a native call's result, or raise its -errno: the only place that translates it."""
    if ret < 0:
        raise HmmfsError(-ret, f"{what}: {os.strerror(-ret)}.")
    return ret
