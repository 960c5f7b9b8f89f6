"""Policies by what a person writes: ``NAME [PARAMETER=VALUE …]``.

A name is that of a built-in policy, of one that an installed package registers under the entry
point group ``hmmfs.policies``, or ``FILE.py:CLASS``. The kind of a class is its base. Words are
split as a shell does, so a path with blanks takes quotes.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
from importlib.metadata import entry_points
from typing import Any, TypeVar

from hmmfs.common import user_files
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.policy import eviction as _eviction
from hmmfs.policy import placement as _placement
from hmmfs.policy import prefetch as _prefetch
from hmmfs.policy import thrashing as _thrashing
from hmmfs.policy.eviction import EvictionPolicy
from hmmfs.policy.placement import PlacementPolicy
from hmmfs.policy.prefetch import PrefetchPolicy
from hmmfs.policy.thrashing import ThrashingPolicy

GROUP = "hmmfs.policies"

P = TypeVar("P", EvictionPolicy, PlacementPolicy, PrefetchPolicy, ThrashingPolicy)


def named_prefetch(text: str) -> PrefetchPolicy:
    """The prefetch policy that a text names. UsageError: none does, or a parameter is wrong."""
    return _made(text, PrefetchPolicy, _prefetch.BUILT_IN, "prefetch")  # type: ignore[type-abstract]


def named_eviction(text: str) -> EvictionPolicy:
    """The eviction policy that a text names."""
    return _made(text, EvictionPolicy, _eviction.BUILT_IN, "eviction")  # type: ignore[type-abstract]


def named_placement(text: str) -> PlacementPolicy:
    """The placement policy that a text names."""
    kind = PlacementPolicy
    return _made(text, kind, _placement.BUILT_IN, "placement")  # type: ignore[type-abstract]


def named_thrashing(text: str) -> ThrashingPolicy:
    """The thrashing policy that a text names."""
    return _made(text, ThrashingPolicy, _thrashing.BUILT_IN, "thrashing")


def _made(text: str, kind: type[P], built_in: tuple[type[P], ...], what: str) -> P:
    try:
        name, *words = shlex.split(text) or [""]
    except ValueError:
        raise UsageError(f"A quote in {text[:80]!r} does not end. Quote as for a shell.") from None
    chosen = _found(name, kind, built_in, what)
    parameters: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} is not a parameter. Write PARAMETER=VALUE.")
        parameters[key] = int(value) if re.fullmatch(r"-?\d{1,18}", value, re.ASCII) else value
    takes = [key for key in inspect.signature(chosen).parameters if key not in ("args", "kwargs")]
    if unknown := parameters.keys() - set(takes):
        known = f"it has {', '.join(takes)}" if takes else "it has none"
        raise UsageError(f"{name} has no parameter {', '.join(sorted(unknown))}: {known}.")
    try:
        policy = chosen(**parameters)
    except UsageError:
        raise
    except BaseException as error:
        raise UsageError(f"{name} can't be made: {described(error)}.") from None
    if chosen not in built_in:
        policy.__dict__.setdefault("_text", text)
    return policy


def described(error: BaseException) -> str:
    """An exception of somebody's code in a sentence, whatever its __str__ does."""
    try:
        text = str(error)[:500]
    except BaseException:
        text = "which can't be printed"
    return f"{type(error).__name__}: {text}"


def _found(name: str, kind: type[P], built_in: tuple[type[P], ...], what: str) -> type[P]:
    for policy in built_in:
        if policy.name == name:
            return policy
    try:
        if ".py:" in name:
            return _checked(_from_file(name), kind, name)
        for point in entry_points(group=GROUP, name=name):
            return _checked(point.load(), kind, name)
    except HmmfsError:
        raise
    except BaseException as error:  # SystemExit too: it is somebody's file
        raise UsageError(f"The {what} policy {name} can't be loaded: {described(error)}.") from None
    known = ", ".join(policy.name for policy in built_in)
    raise UsageError(
        f'There is no {what} policy "{name[:80]}": use {known}, FILE.py:CLASS, or install a '
        f"package that registers it under {GROUP}."
    )


def _from_file(name: str) -> object:
    path, _, attribute = name.rpartition(":")
    if not os.path.isabs(path):
        raise UsageError(f"{path} is not a whole path: the daemon has no directory of yours.")
    return getattr(user_files.load(path), attribute)


def _checked(loaded: object, kind: type[P], name: str) -> type[P]:
    if not (isinstance(loaded, type) and issubclass(loaded, kind)):
        raise UsageError(f"{name} is not a subclass of hmmfs.policy.{kind.__name__}.")
    return loaded
