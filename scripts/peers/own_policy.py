"""The shortest policies that somebody can write, for the bench: they are asked for each fault, and
for each victim."""

from hmmfs.policy import Fault, Pages, PrefetchPolicy
from hmmfs.policy.eviction import FirstInFirstOut


class Own(PrefetchPolicy):
    """Only the pages touched."""

    name = "own"

    def pages(self, fault: Fault) -> Pages:
        return fault.touched


class Oldest(FirstInFirstOut):
    """A built-in policy, in Python."""
