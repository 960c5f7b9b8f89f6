"""The text form of advice, as `state/NAME/advice` says and takes it.

A line is a range and what is said of it:

    all|OFFSET+LENGTH WORD...

    read_mostly                unset_read_mostly
    preferred_location=NODE    unset_preferred_location
    accessed_by=NODE[,NODE]    unset_accessed_by[=NODE[,NODE]]
    granularity=SIZE           unset_granularity
    pinned                     unset_pinned
    no_migrate                 unset_no_migrate
    unset_all

A NODE is host or devN. `all` is the whole region, however long it gets; other ranges are widened to
whole pages. What the file says may be written to it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import replace

from hmmfs.common.units import LARGEST, format_size, parse_size
from hmmfs.errors import HmmfsError, UsageError
from hmmfs.memory import BLOCK_BYTES, HOST, PAGE_SIZE, Advice, AdviceField, NumaMode, Region

MAX_PAGES = LARGEST // PAGE_SIZE
FLAGS = {
    "read_mostly": AdviceField.READ_MOSTLY,
    "pinned": AdviceField.PINNED,
    "no_migrate": AdviceField.NO_MIGRATE,
}
WORDS = ("read_mostly", "preferred_location", "accessed_by", "granularity", "pinned", "no_migrate")
_RANGE = re.compile(r"(\w+)\+(\w+)", re.ASCII)

Said = tuple[AdviceField, int]


def node_name(node: int) -> str:
    return f"dev{node - 1}" if node else "host"


def shown(region: Region) -> str:
    """A line for each range that something was said of."""
    ranges: list[Advice] = []
    for one in region.advice():
        one = replace(one, prefetched=None)
        last = ranges[-1] if ranges else one
        if last.first + last.count == one.first and replace(last, first=0, count=0) == replace(
            one, first=0, count=0
        ):
            ranges[-1] = replace(last, count=last.count + one.count)
        else:
            ranges.append(one)
    return "".join(
        f"{_range_of(one)} {' '.join(words)}\n" for one in ranges if (words := _words(one))
    )


def prefetched(region: Region) -> str:
    """A line for each range that somebody last asked to have on some node."""
    return "".join(
        f"{_range_of(one)} {node_name(one.prefetched)}\n"
        for one in region.advice()
        if one.prefetched is not None
    )


def apply(region: Region, text: str, nodes: int) -> None:
    """Say what the lines say; if one of them is wrong, nothing."""
    lines = [line.split() for line in text.splitlines()]
    parsed = [
        (*_pages(words[0]), list(_said(words[0], words[1:], nodes))) for words in lines if words
    ]
    if not parsed:
        raise UsageError("There is no advice in that. Write all, or OFFSET+LENGTH, and words.")
    before = region.advice()
    try:
        for first, count, said in parsed:
            for field, value in said:
                region.advise(first, count, field, value)
    except HmmfsError:
        _restore(region, before, nodes)
        raise


def numa_shown(region: Region) -> str:
    """Its NUMA policy, as `state/NAME/numa` says and takes it: default, bind=NODE[,NODE],
    preferred=NODE or interleave=NODE[,NODE]."""
    mode, nodes = region.numa
    return f"{mode.value}={','.join(map(node_name, nodes))}" if nodes else mode.value


def numa_apply(region: Region, text: str, nodes: int) -> None:
    name, equals, value = text.partition("=")
    try:
        mode = NumaMode(name)
    except ValueError:
        known = ", ".join(one.value for one in NumaMode)
        raise UsageError(f"{name[:80]!r} is not a NUMA policy: there are {known}.") from None
    if bool(equals) != (mode is not NumaMode.DEFAULT):
        raise UsageError(
            f"{text[:80]!r} is wrong. Write default, or a policy and nodes, bind=dev0."
        )
    chosen = sorted({_node(word, nodes) for word in value.split(",")}) if equals else []
    if mode is NumaMode.PREFERRED and len(chosen) > 1:
        raise UsageError(f"{text[:80]!r} is wrong: one node is preferred.")
    region.set_numa(mode, chosen)


def _range_of(one: Advice) -> str:
    if one.first == 0 and one.count == MAX_PAGES:
        return "all"
    return f"{one.first * PAGE_SIZE}+{one.count * PAGE_SIZE}"


def _restore(region: Region, before: list[Advice], nodes: int) -> None:
    """As it was: fewer ranges than there are now, so that they fit."""
    for name in WORDS:
        for field, value in _unset(name, "", nodes):
            region.advise(0, MAX_PAGES, field, value)
    for one in before:
        for word in _words(one):
            name, _, text = word.partition("=")
            for field, value in _set(name, text, nodes):
                region.advise(one.first, one.count, field, value)


def _words(one: Advice) -> list[str]:
    words = [name for name in FLAGS if getattr(one, name)]
    if one.preferred is not None:
        words.append(f"preferred_location={node_name(one.preferred)}")
    if one.accessed_by:
        words.append(f"accessed_by={','.join(map(node_name, one.accessed_by))}")
    if one.granularity is not None:
        words.append(f"granularity={format_size(one.granularity * PAGE_SIZE)}")
    return words


def _pages(word: str) -> tuple[int, int]:
    """The pages, first and count, that a range touches."""
    if word == "all":
        return 0, MAX_PAGES
    found = _RANGE.fullmatch(word)
    if not found:
        raise UsageError(f"{word[:80]!r} is not a range. Write all, or OFFSET+LENGTH as in 0+2M.")
    offset, length = map(parse_size, found.groups())
    if not length:
        raise UsageError(f"{word[:80]!r} is a range of no bytes. Give a length above 0.")
    first, end = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
    if end > MAX_PAGES:
        raise HmmfsError(errno.ERANGE, f"{word[:80]} goes past 16T, the end of the largest region.")
    return first, end - first


def _said(place: str, words: list[str], nodes: int) -> Iterator[Said]:
    if not words:
        raise UsageError(f"Nothing is said of {place[:80]}: the words are {', '.join(WORDS)}.")
    for word in words:
        name, equals, value = word.partition("=")
        unset = name.startswith("unset_")
        name = name.removeprefix("unset_")
        if word == "unset_all":
            for every in WORDS:
                yield from _unset(every, "", nodes)
            yield AdviceField.PREFETCHED, 0
        elif name not in WORDS:
            raise UsageError(
                f"{word[:80]!r} is not advice: the words are {', '.join(WORDS)}, each also as "
                f"unset_{WORDS[0]}, and unset_all."
            )
        elif bool(equals) != (name not in FLAGS) and not unset:
            form = "stands alone" if name in FLAGS else f"takes a value, as in {_EXAMPLES[name]}"
            raise UsageError(f"{word[:80]!r} is wrong: {name} {form}.")
        elif unset and equals and name != "accessed_by":
            raise UsageError(f"{word[:80]!r} is wrong: unset_{name} stands alone.")
        elif unset:
            yield from _unset(name, value, nodes)
        else:
            yield from _set(name, value, nodes)


_EXAMPLES = {
    "preferred_location": "preferred_location=dev0",
    "accessed_by": "accessed_by=dev0,dev1",
    "granularity": "granularity=64K",
}


def _set(name: str, value: str, nodes: int) -> Iterator[Said]:
    if name in FLAGS:
        yield FLAGS[name], 1
    elif name == "preferred_location":
        yield AdviceField.PREFERRED, 1 + _node(value, nodes)
    elif name == "accessed_by":
        for one in value.split(","):
            yield AdviceField.ACCESSED_BY, _node(one, nodes)
    else:
        size = parse_size(value)
        if size < PAGE_SIZE or size > BLOCK_BYTES or size & (size - 1):
            raise UsageError(
                f"granularity={value[:80]} is wrong. Give a power of two from 4K to 2M."
            )
        yield AdviceField.GRANULARITY, (size // PAGE_SIZE).bit_length()


def _unset(name: str, value: str, nodes: int) -> Iterator[Said]:
    if name in FLAGS:
        yield FLAGS[name], 0
    elif name == "preferred_location":
        yield AdviceField.PREFERRED, 0
    elif name == "granularity":
        yield AdviceField.GRANULARITY, 0
    elif value:
        for one in value.split(","):
            yield AdviceField.UNACCESSED_BY, _node(one, nodes)
    else:
        for node in range(nodes):
            yield AdviceField.UNACCESSED_BY, node


def _node(text: str, nodes: int) -> int:
    found = re.fullmatch(r"dev(\d{1,4})", text, re.ASCII)
    node = HOST if text == "host" else int(found[1]) + 1 if found else nodes
    if node >= nodes:
        known = ", ".join(map(node_name, range(nodes)))
        raise HmmfsError(errno.ENODEV, f"There is no node {text[:80]!r}: there are {known}.")
    return node
