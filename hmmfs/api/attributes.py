"""What was said of a range of a region, as one answer: cudaMemRangeGetAttribute for the text of
`state/NAME/advice` and `state/NAME/prefetched`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hmmfs.common.units import LARGEST

FLAGS = ("read_mostly", "pinned", "no_migrate")


@dataclass(frozen=True, slots=True)
class Said:
    """Of bytes [start, end); values are "" for a word that stands alone."""

    start: int
    end: int
    words: dict[str, str] = field(default_factory=dict)


def parsed(text: str) -> list[Said]:
    """The lines of the advice file, in order. Of the prefetched file the only word is a node."""
    found = []
    for line in text.splitlines():
        place, *words = line.split()
        start, end = 0, LARGEST
        if place != "all":
            offset, length = map(int, place.split("+"))
            start, end = offset, offset + length
        found.append(Said(start, end, dict(_pair(word) for word in words)))
    return found


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def query(advice: str, prefetched: str, start: int, end: int) -> dict[str, Any]:
    """What all bytes of [start, end), which is not empty, have in common:

    read_mostly, pinned, no_migrate: whether it was said of all of them;
    preferred_location, last_prefetch_location: a node's name; None: none, or not the same for all;
    accessed_by: the nodes that were named for all of them;
    granularity: a size, as 64K; None: none, or not the same for all."""
    said = _covering(parsed(advice), start, end)
    asked = _covering(parsed(prefetched), start, end)
    accessors = [set(filter(None, words.get("accessed_by", "").split(","))) for words in said]
    return {
        **{flag: all(flag in words for words in said) for flag in FLAGS},
        "preferred_location": _common([words.get("preferred_location") for words in said]),
        "accessed_by": sorted(set.intersection(*accessors)),
        "granularity": _common([words.get("granularity") for words in said]),
        "last_prefetch_location": _common([next(iter(words), None) for words in asked]),
    }


def _covering(said: list[Said], start: int, end: int) -> list[dict[str, str]]:
    """The words of each part of the range; of a part that nothing was said of, none."""
    parts = [one for one in said if one.start < end and one.end > start]
    covered = sum(min(one.end, end) - max(one.start, start) for one in parts)
    return [one.words for one in parts] + ([{}] if covered < end - start else [])


def _common(values: list[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None
