"""Holds what a core did against the model: python -m tests.model.conformance FILE...

A file is what tests/native/steps.c gathers: each step that some page saw, once. Told are the steps
that the model does not allow, the first first, with what came before them; and what the model does
in the settings of its own tests and the core never did."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .projection import BITS, Allowed, Step, names
from .rules import BIT, allows

HEADER = 4096
ENTRY = struct.Struct("<QQQQII8s16x")


class Seen(NamedTuple):
    times: int
    number: int  # of the first, in order
    where: str
    before: tuple[str, ...]  # the block's steps before the first, the last first


def read(paths: Iterable[Path]) -> dict[Step, Seen]:
    found: dict[Step, Seen] = {}
    for path in paths:
        data = path.read_bytes()
        header = data[:HEADER].rstrip(b"\0").decode().split()
        assert header[-len(BITS) :] == list(BITS), "steps.c and projection.py differ"
        for key, times, number, ino, block, page, before in ENTRY.iter_unpack(data[HEADER:]):
            if not key:
                continue
            name, about = header[key >> 2 * len(BITS) + 1 & 0xFF], bool(key >> 2 * len(BITS) & 1)
            mask = (1 << len(BITS)) - 1
            step = Step(name, about, key & mask, key >> len(BITS) & mask)
            past = tuple(header[number] for number in before)
            seen = Seen(times, number, f"inode {ino:#x}, page {page} of block {block}", past)
            had = found.get(step)
            found[step] = had._replace(times=had.times + times) if had else seen
    return found


class Beside(NamedTuple):
    """A step that the model does not have, and why. `changes` are all the bits that it may change,
    and a page that it is about has none of `never` before."""

    why: str
    changes: frozenset[str]
    never: frozenset[str]


def beside(why: str, changes: str = "", never: str = "") -> Beside:
    return Beside(why, frozenset(changes.split()), frozenset(never.split()))


REMOTE = "the model has no devices that use a page where it is"
UNMODELLED = {
    "direct.admitted": beside("direct I/O leaves nothing in the page cache", never="FROZEN"),
    "direct.parked": beside("direct I/O holds no folio's lock"),
    "read.answered": beside("direct I/O", "in_flight", never="cached"),
    "full.parked": beside("the model has no capacity", "parked", never="FROZEN"),
    "copies.evicted": beside("the model has no capacity", "copy_target copy_other"),
    "copies.ended": beside("before a request is admitted, or not", "copy_target copy_other"),
    "failed": beside("the model has no errors", "FROZEN cut in_flight", never="RECALL"),
    "write.undone": beside("a WRITE that a cut met, or an error, is taken back", "in_flight"),
    "cut.part": beside("the model has no parts of pages", "copy_target copy_other cut"),
    "remote.written": beside(REMOTE, "present dirty copy_target copy_other", never="device"),
    "thawed": beside("a recall that moves nothing need not drain", "FROZEN in_flight"),
}


def is_unmodelled(step: Step) -> bool:
    if step.name == "written":  # a block is frozen then if the device uses some of it on the host
        rest = ~BIT["FROZEN"]
        return allows(step._replace(before=step.before & rest, after=step.after & rest))
    if not (rule := UNMODELLED.get(step.name)):
        return False
    before, changes = set(names(step.before)), set(names(step.before ^ step.after))
    return changes <= rule.changes and not (step.about and before & rule.never)


def wrong(seen: dict[Step, Seen]) -> list[Step]:
    """What the model does not allow, in the order in which it happened."""
    found = [step for step in seen if not allows(step) and not is_unmodelled(step)]
    return sorted(found, key=lambda step: seen[step].number)


def tell(seen: dict[Step, Seen], steps: list[Step]) -> str:
    lines = []
    for step in steps:
        first = seen[step]
        lines.append(f"{first.times} times, first {first.where}: {step}")
        lines.append(f"    after {', '.join(reversed(first.before))}")
    return "\n".join(lines)


def complaints(directory: Path, least: int) -> str:
    """Of what processes left as steps.PID in the directory: what the model does not allow. There
    are more than `least` steps that differ, or the core was not asked to tell them."""
    seen = read(directory.glob("steps.*"))
    assert len(seen) > least, "hardly anything was told"
    return tell(seen, wrong(seen))


def main(paths: list[Path]) -> int:
    from .protocol import explore
    from .test_protocol import SETTINGS, SOUND

    seen = read(paths)
    found = wrong(seen)
    print(tell(seen, found) or f"The model allows all of {len(seen)} steps.")
    modelled = Allowed()
    for setting in SETTINGS:
        explore(setting, SOUND, modelled)
    never = sorted(modelled.steps - set(seen))
    print(f"{len(never)} of {len(modelled.steps)} steps in the model's tests were never taken:")
    print("\n".join(f"    {step}" for step in never))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main([Path(word) for word in sys.argv[1:]]))
