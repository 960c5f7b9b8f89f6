"""Policies decide: what comes with a fault, which pages leave a full VRAM. They never copy."""

from hmmfs.policy.chosen import Policies
from hmmfs.policy.eviction import EvictionPolicy
from hmmfs.policy.prefetch import Fault, Pages, PrefetchPolicy
from hmmfs.policy.registry import named_eviction, named_prefetch

__all__ = [
    "EvictionPolicy",
    "Fault",
    "Pages",
    "Policies",
    "PrefetchPolicy",
    "named_eviction",
    "named_prefetch",
]
