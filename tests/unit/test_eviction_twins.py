"""The native eviction policies against the classes that say the same in Python: random histories of
a core without a mount, and of each victim that both are asked for, who and which pages."""

from __future__ import annotations

import errno
import random
import select
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hmmfs._native import lib

from hmmfs.memory import (
    BLOCK_BYTES,
    BLOCK_PAGES,
    FIRST_REGION_INO,
    HOST,
    AdviceField,
    BlockKey,
    Core,
    EvictionKind,
    Job,
    JobFlag,
    JobKind,
    Region,
    page_set,
)
from hmmfs.memory.types import DeviceFault, page_words
from hmmfs.policy import Pages, named_eviction
from hmmfs.policy.eviction import BUILT_IN, BuiltIn

BLOCKS = 6
REGIONS = 3
NODE = 1
NAMES = [policy.name for policy in BUILT_IN]
BY_PAGE = ("lru-page", "optimal")


class Machine:
    """A core whose devices hold all that there is, so that only those leave who are told to."""

    def __init__(self, core: Core, draw: random.Random) -> None:
        self.core, self.draw = core, draw
        self.regions: dict[int, Region] = {}
        for ino in range(FIRST_REGION_INO, FIRST_REGION_INO + REGIONS):
            self.regions[ino] = core.create_region(ino, 0o644, 0, 0)
            self.regions[ino].truncate(BLOCKS * BLOCK_BYTES)
        self.cookie = 0

    def run(self, job: Job) -> int:
        self.cookie += 1
        kept = self.core.submit(job, self.cookie)
        while True:
            assert select.select([self.core.event_fd()], [], [], 10)[0], "the job does not end"
            for event in self.core.events():
                if event.cookie == self.cookie:
                    del kept
                    return event.result.result

    def run_allowed(self, job: Job) -> bool:
        """False: it wants what is pinned elsewhere."""
        result = self.run(job)
        assert result in (0, -errno.EPERM)
        return result == 0

    def key(self) -> BlockKey:
        return BlockKey(self.draw.choice(list(self.regions)), self.draw.randrange(BLOCKS))

    def some(self) -> Pages:
        pages = np.zeros(BLOCK_PAGES, dtype=np.bool_)
        first = self.draw.randrange(BLOCK_PAGES)
        pages[first : first + self.draw.choice((1, 2, 16, 200))] = True
        return pages

    def resident(self, key: BlockKey) -> Pages:
        record = self.regions[key.ino].blocks(key.block, 1)[0]
        owned = page_set(record["present"]) & (record["owner"] == NODE)
        return owned | page_set(self.regions[key.ino].labelled_or_duplicate(key.block, NODE))

    def touch(self, twin: BuiltIn, key: BlockKey) -> None:
        touched, window = self.some(), self.some()
        faults = DeviceFault(page_words(touched), page_words(touched & self.some()))
        flags = JobFlag.CHOSEN
        job = Job(
            JobKind.DEVICE_FAULT, *key, node=NODE, flags=flags, device_fault=faults, window=window
        )
        if self.run_allowed(job):
            twin.touched(key, touched, window | touched)

    def operate(self, key: BlockKey, *, fill: bool = True) -> None:
        kind = JobKind.FILL if fill else JobKind.CRC
        first = self.draw.randrange(BLOCK_PAGES)
        self.run_allowed(Job(kind, *key, node=NODE, offset=first * 4096, length=4096))

    def migrate(self, key: BlockKey, node: int) -> None:
        flags = JobFlag.CHOSEN
        job = Job(JobKind.MIGRATE, *key, node=node, flags=flags, window=self.some())
        self.run_allowed(job)

    def cut(self, key: BlockKey) -> None:
        pages = np.flatnonzero(self.some())
        at = key.block * BLOCK_BYTES + int(pages[0]) * 4096
        assert lib.hm_region_punch(self.core.handle, key.ino, at, len(pages) * 4096) == 0

    def advise(self, key: BlockKey) -> None:
        """A whole block at a time, or a part: pinned, or not any more."""
        first, count = key.block * BLOCK_PAGES, self.draw.choice((BLOCK_PAGES, 100))
        field = AdviceField.PINNED
        self.regions[key.ino].advise(first, count, field, self.draw.randrange(2))


def compare(machine: Machine, twin: BuiltIn, spared: set[BlockKey]) -> bool:
    """Ask both for a victim and have it leave. False: both say that there is none."""
    need = machine.draw.choice((1, 5, 600))
    found = machine.core.victim(NODE, need, spared)
    rows = machine.core.candidates(NODE)
    rows = rows[np.lexsort((rows["block"], rows["ino"]))]
    keys = [BlockKey(int(row["ino"]), int(row["block"])) for row in rows]
    able = [row["pages"] > 0 and key not in spared for row, key in zip(rows, keys, strict=True)]
    rows = rows[np.array(able, dtype=np.bool_)]
    if not len(rows):
        assert found is None
        return False
    row = rows[int(twin.order(rows)[0])]
    key = BlockKey(int(row["ino"]), int(row["block"]))
    assert found is not None
    assert found.key == key
    resident = machine.resident(key)
    pages = twin.pages(key, resident.copy(), need) & resident
    assert np.array_equal(found.pages, pages)
    flags = JobFlag.EVICT | JobFlag.CHOSEN
    job = Job(JobKind.MIGRATE, *key, node=HOST, flags=flags, source=NODE, window=pages)
    assert machine.run(job) == 0
    return True


def text_of(name: str, draw: random.Random, path: Path) -> str:
    if name == "random":
        return f"random seed={draw.randrange(1000)}"
    if name == "optimal":
        lines = [f"{draw.randrange(BLOCKS)} {draw.randrange(BLOCK_PAGES)}\n" for _ in range(4000)]
        path.write_text("".join(lines))
        return f"optimal trace={path}"
    return name


@pytest.fixture
def core() -> Iterator[Core]:
    with Core([1 << 16, 1 << 16, 1 << 16]) as made:
        yield made


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", NAMES)
def test_both_choose_the_same(core: Core, name: str, seed: int, tmp_path: Path) -> None:
    draw = random.Random(f"{name} {seed}")
    machine = Machine(core, draw)
    if name == "optimal":  # it knows the future of one region
        for ino in list(machine.regions)[1:]:
            del machine.regions[ino]
    twin = named_eviction(text_of(name, draw, tmp_path / "trace"))
    assert isinstance(twin, BuiltIn)
    native = twin.native()
    core.set_eviction(NODE, native.kind, seed=native.seed, trace=native.trace)
    victims = 0
    for _ in range(400):
        what = draw.randrange(12)
        if what < 4:
            machine.touch(twin, machine.key())
        elif what < 6:
            machine.operate(machine.key(), fill=draw.randrange(2) == 0)
        elif what < 8:
            machine.migrate(machine.key(), draw.randrange(3))
        elif what in (8, 9) and name == "random":
            pass  # it draws lots for those, too, that have gone or may not go
        elif what == 8 and name in BY_PAGE:
            pass  # the core forgets an empty block, and a class is told nothing of it
        elif what == 8:
            machine.cut(machine.key())
        elif what == 9:
            machine.advise(machine.key())
        else:
            spared = {machine.key() for _ in range(draw.randrange(3))}
            victims += compare(machine, twin, set() if name == "random" else spared)
    assert victims > 20


def test_a_policy_that_comes_later_knows_who_is_there(core: Core) -> None:
    draw = random.Random(1)
    machine = Machine(core, draw)
    for _ in range(30):
        machine.operate(machine.key())
    for name in ("fifo", "lru", "mru"):
        twin = named_eviction(name)
        assert isinstance(twin, BuiltIn)
        core.set_eviction(NODE, twin.kind)
        for _ in range(3):
            assert compare(machine, twin, set())


def test_a_core_that_was_told_of_no_policy_chooses_nobody(core: Core) -> None:
    machine = Machine(core, random.Random(1))
    machine.operate(machine.key())
    assert core.victim(NODE, 1, set()) is None
    core.set_eviction(NODE, EvictionKind.LRU)
    assert core.victim(NODE, 1, set()) is not None
    core.set_eviction(NODE, EvictionKind.ASK)
    assert core.victim(NODE, 1, set()) is None


def test_what_is_pinned_is_found_again_when_it_is_not(core: Core) -> None:
    machine = Machine(core, random.Random(1))
    key = machine.key()
    machine.operate(key)
    core.set_eviction(NODE, EvictionKind.LRU)
    first = key.block * BLOCK_PAGES
    machine.regions[key.ino].advise(first, BLOCK_PAGES, AdviceField.PINNED, 1)
    assert core.victim(NODE, 1, set()) is None
    assert core.victim(NODE, 1, set()) is None
    machine.regions[key.ino].advise(first, BLOCK_PAGES, AdviceField.PINNED, 0)
    found = core.victim(NODE, 1, set())
    assert found is not None
    assert found.key == key


def test_a_block_that_has_gone_is_nobody(core: Core) -> None:
    machine = Machine(core, random.Random(1))
    core.set_eviction(NODE, EvictionKind.LRU)
    for ino in list(machine.regions):
        machine.operate(BlockKey(ino, 0))
        core.destroy_region(ino)
        assert core.victim(NODE, 1, set()) is None
