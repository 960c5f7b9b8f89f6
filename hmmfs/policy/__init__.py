"""Policies decide: where a touched page comes to be, what comes with it, which pages leave a full
VRAM. They never copy."""

from hmmfs.policy.chosen import Policies
from hmmfs.policy.eviction import EvictionPolicy
from hmmfs.policy.placement import PlacementPolicy
from hmmfs.policy.prefetch import Fault, Pages, PrefetchPolicy
from hmmfs.policy.registry import named_eviction, named_placement, named_prefetch, named_thrashing
from hmmfs.policy.thrashing import ThrashingPolicy

__all__ = [
    "EvictionPolicy",
    "Fault",
    "Pages",
    "PlacementPolicy",
    "Policies",
    "PrefetchPolicy",
    "ThrashingPolicy",
    "named_eviction",
    "named_placement",
    "named_prefetch",
    "named_thrashing",
]
