"""Policies by name: the built-in ones, and those that installed packages register.

A package registers a class under the entry point group ``hmmfs.policies``; its kind is its base.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TypeVar

from hmmfs.errors import HmmfsError, UsageError
from hmmfs.policy import eviction as _eviction
from hmmfs.policy import placement as _placement
from hmmfs.policy.eviction import EvictionPolicy
from hmmfs.policy.placement import PlacementPolicy

GROUP = "hmmfs.policies"

P = TypeVar("P", EvictionPolicy, PlacementPolicy)


def placement(name: str) -> PlacementPolicy:
    """What `prefetch=` names."""
    return _find(name, PlacementPolicy, _placement.BUILT_IN, "prefetch")  # type: ignore[type-abstract]


def eviction(name: str) -> EvictionPolicy:
    """What `eviction=` names."""
    return _find(name, EvictionPolicy, _eviction.BUILT_IN, "eviction")  # type: ignore[type-abstract]


def _find(name: str, kind: type[P], built_in: tuple[type[P], ...], what: str) -> P:
    for policy in built_in:
        if policy.name == name:
            return policy()
    for point in entry_points(group=GROUP, name=name):
        try:
            loaded = point.load()
        except Exception as error:
            raise HmmfsError(
                22, f'The {what} policy "{name}" from {point.value} cannot be loaded: {error}.'
            ) from error
        if isinstance(loaded, type) and issubclass(loaded, kind):
            return loaded()
    known = ", ".join(policy.name for policy in built_in)
    raise UsageError(
        f'There is no {what} policy "{name}": use {known}, or install a package that registers it '
        f"under {GROUP}."
    )
