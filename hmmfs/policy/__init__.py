"""Policies decide: what to bring home for a CPU fault, which block to evict. They never copy."""

from hmmfs.policy.eviction import EvictionPolicy
from hmmfs.policy.placement import PlacementPolicy
from hmmfs.policy.registry import eviction, placement

__all__ = ["EvictionPolicy", "PlacementPolicy", "eviction", "placement"]
