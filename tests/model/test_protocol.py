"""The coherence protocol, explored: it holds in every interleaving, and planted bugs are found."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from .protocol import explore
from .state import HOST, Op, Protocol, Setting, Task, Worker

SOUND = Protocol()


def op(kind: str, *pages: int) -> Op:
    return Op(kind, sum(1 << page for page in pages))


def load(page: int = 0) -> Op:
    return op("load", page)


def ahead(page: int = 0) -> Op:
    return op("load_ahead", page)


def store(page: int = 0) -> Op:
    return op("store", page)


def write(*pages: int) -> Op:
    return op("write", *pages or (0,))


def read_by(node: int, *pages: int) -> Task:
    return Task("read", node, sum(1 << page for page in pages or (0,)))


def write_by(node: int, *pages: int) -> Task:
    return Task("write", node, sum(1 << page for page in pages or (0,)))


def migrate_to(node: int, *pages: int) -> Task:
    return Task("migrate", node, sum(1 << page for page in pages or (0,)))


def worker(node: int, *ops: Op) -> Worker:
    return Worker(node, ops)


RECALL = Task("recall", 1, 1)
PAIR = ((store(), load()), (load(), store()))

# Programs that touch their mapping, and devices: the main job.
MAPPED = {
    "one device": Setting(PAIR, (read_by(1), write_by(1))),
    "two devices": Setting(PAIR, (read_by(2), write_by(1)), nodes=3),
    "device's page": Setting(PAIR, (read_by(1), write_by(2)), owner=(1,), nodes=3),
    "through the service": Setting(PAIR, (read_by(1), write_by(1)), express=False),
    "eviction": Setting(PAIR, (write_by(1), migrate_to(HOST), read_by(1))),
    "eviction, no kept copies": Setting(PAIR, (write_by(1), migrate_to(HOST)), keep_clean=False),
    "kernel reclaims": Setting(PAIR, (write_by(1), read_by(1)), reclaim=True),
    "recall alone": Setting(PAIR, (RECALL, write_by(1)), cached=1),
    "three programs": Setting(
        (*PAIR, (load(),)), (read_by(1), write_by(2), migrate_to(HOST)), nodes=3
    ),
    "two pages": Setting(
        ((store(0), load(1)), (store(1), load(0))),
        (read_by(1, 0, 1), write_by(1, 0, 1)),
        owner=(HOST, HOST),
    ),
    "readahead": Setting(
        ((ahead(0), store(1)), (ahead(1), load(0))),
        (write_by(1, 0), read_by(2, 0, 1)),
        owner=(HOST, HOST),
        nodes=3,
    ),
    "readahead over two owners": Setting(
        ((ahead(0), load(1)), (store(0),)),
        (write_by(1, 0), migrate_to(HOST, 1)),
        owner=(HOST, 1),
        forgotten=1,
    ),
    "three pages by page": Setting(
        ((store(0),), (load(2),)),
        (write_by(1, 0, 1, 2),),
        owner=(HOST, 1, HOST),
        cached=5,
        rounds=0,
    ),
}

# With write(2), truncate and fallocate.
FILES = {
    "write": Setting(((write(), load()), (load(), store())), (read_by(1), write_by(1))),
    "write through the service": Setting(
        ((write(), load()), (load(),)), (write_by(1),), owner=(1,), express=False
    ),
    "write of two pages": Setting(
        ((write(0, 1), load(0)), (store(1),)), (read_by(1, 0, 1), write_by(1, 1)), owner=(HOST, 1)
    ),
    "write of two pages by page": Setting(
        ((write(0, 1),), (store(0), load(1))),
        (migrate_to(1, 0), migrate_to(2, 0, 1)),
        owner=(HOST, HOST),
        cached=3,
        nodes=3,
        rounds=0,
        reclaim=True,
    ),
    "truncate": Setting(((store(), op("truncate", 0), load()), (load(),)), (write_by(1),)),
    "truncate of one page of two": Setting(
        ((op("truncate", 0), store(0)), (store(1),)), (read_by(1, 0, 1),), owner=(HOST, HOST)
    ),
    "truncate, then write": Setting(
        ((op("truncate", 0), write(), load()),),
        (write_by(1), migrate_to(HOST)),
        keep_clean=False,
    ),
    "punch": Setting(((store(), op("punch", 0), load()), (load(),)), (write_by(1),)),
    "zero": Setting(((op("zero", 0), load()),), (write_by(1), migrate_to(HOST))),
}

ADDER = (store(), load())

# Kernels in a worker of their own, with true faults.
WORKERS = {
    "a worker": Setting(((store(), load()),), (), workers=(worker(1, *ADDER),)),
    "a worker and its evictions": Setting(
        (),
        (migrate_to(HOST), migrate_to(1), migrate_to(HOST)),
        workers=(worker(1, *ADDER, *ADDER),),
    ),
    "two threads": Setting(
        ((store(),),), (migrate_to(HOST),), workers=(worker(1, *ADDER), worker(1, *ADDER))
    ),
    "workers of two devices": Setting(
        ((load(),),), (), workers=(worker(1, *ADDER), worker(2, *ADDER)), nodes=3
    ),
    "no kept copies": Setting(
        ((store(),),), (migrate_to(HOST),), workers=(worker(1, *ADDER),), keep_clean=False
    ),
    "a worker and operations": Setting(
        (), (write_by(1), read_by(2)), workers=(worker(1, load(), store()),), nodes=3
    ),
    "two pages of a worker": Setting(
        ((store(0), load(1)),),
        (migrate_to(HOST, 0, 1),),
        workers=(worker(1, store(1), store(0)),),
        owner=(HOST, 1),
    ),
    "through the service": Setting(
        ((load(), store()),), (), workers=(worker(1, *ADDER),), owner=(1,), express=False
    ),
}

# Where files are cut below a kernel.
WORKERS_AND_FILES = {
    "write": Setting(((write(), load()),), (), workers=(worker(1, *ADDER),)),
    "truncate": Setting(((op("truncate", 0), load()),), (), workers=(worker(1, *ADDER),)),
    "punch": Setting(
        ((op("punch", 0), load()),), (migrate_to(HOST),), workers=(worker(1, *ADDER),)
    ),
    "zero": Setting(((op("zero", 0),),), (), workers=(worker(1, *ADDER),), owner=(1,)),
}


# Pages that have no bytes yet, as all of a new file.
HOLES = {
    "mapped": Setting(((store(), load()), (load(),)), (read_by(1), migrate_to(1)), holes=1),
    "cached": Setting(((store(),), (load(),)), (write_by(1),), holes=1, cached=1),
    "devices": Setting(
        ((load(),),), (write_by(1), read_by(2), migrate_to(HOST)), holes=1, nodes=3, drop_kept=True
    ),
    "two pages": Setting(
        ((store(0),), (load(1),)), (write_by(1, 0, 1),), owner=(HOST, HOST), holes=3
    ),
    "a page beside a hole": Setting(
        ((store(0), load(1)),), (migrate_to(1, 0, 1),), owner=(HOST, HOST), holes=2
    ),
    "a hole beside a device's page": Setting(
        ((load(0), store(1)),), (read_by(2, 0, 1),), owner=(1, HOST), holes=2, nodes=3
    ),
    "write of two pages": Setting(
        ((write(0, 1), load(1)), (store(1),)), (read_by(1, 1),), owner=(HOST, HOST), holes=3
    ),
    "readahead": Setting(
        ((ahead(0),), (store(1),)), (migrate_to(1, 0, 1),), owner=(HOST, HOST), holes=1
    ),
    "truncate": Setting(((store(), op("truncate", 0), load()),), (write_by(1),), holes=1),
    "zero": Setting(((op("zero", 0), store()),), (write_by(1),), holes=1),
    "a worker": Setting(
        ((load(), store()),), (migrate_to(HOST),), workers=(worker(1, load(), store()),), holes=1
    ),
    "kept copies go": Setting(
        ((load(),),), (read_by(1), migrate_to(HOST), write_by(1)), drop_kept=True
    ),
}

OPEN, CLOSE = op("open", 0), op("close", 0)
# Copies of read-mostly pages: with a file open for writing, or with none until somebody opens it.
COPIES = {
    "stores of a program": Setting(
        ((store(), load()), (store(),)), (), workers=(worker(1, load(), load()),), mostly=True
    ),
    "two readers and a writer": Setting(
        ((store(),),),
        (),
        workers=(worker(1, load(), load()), worker(2, load(), store())),
        nodes=3,
        mostly=True,
    ),
    "opened for writing": Setting(
        ((load(), OPEN, store()), (load(), load())),
        (),
        workers=(worker(1, load(), load()),),
        mostly=True,
        writers=False,
    ),
    "opened while two devices read": Setting(
        ((OPEN, store()),),
        (),
        owner=(1,),
        workers=(worker(1, load()), worker(2, load(), load())),
        nodes=3,
        mostly=True,
        writers=False,
    ),
    "opened twice at once": Setting(
        ((OPEN,), (load(), OPEN, store())),
        (),
        workers=(worker(1, load(), load()),),
        mostly=True,
        writers=False,
    ),
    "opened, closed and opened": Setting(
        ((OPEN, CLOSE), (load(), OPEN, store(), CLOSE)),
        (),
        workers=(worker(1, load(), load()),),
        mostly=True,
        writers=False,
    ),
    "opened while it migrates": Setting(
        ((OPEN, store()),),
        (migrate_to(1, 0, 1),),
        owner=(HOST, HOST),
        workers=(worker(1, load(0), load(0)),),
        mostly=True,
        writers=False,
    ),
    "write(2)": Setting(
        ((OPEN, write()), (load(),)),
        (),
        workers=(worker(1, load(), load()),),
        mostly=True,
        writers=False,
    ),
    "truncate": Setting(
        ((OPEN, op("truncate", 0)), (load(),)),
        (),
        workers=(worker(1, load()),),
        mostly=True,
        writers=False,
    ),
    "a punched hole, cached": Setting(
        ((op("punch", 0), load(), load()),),
        (),
        workers=(worker(1, load(), load()),),
        mostly=True,
        writers=False,
    ),
    "migrations": Setting(
        ((store(),),),
        (migrate_to(2), migrate_to(HOST)),
        workers=(worker(1, load(), store()),),
        nodes=3,
        mostly=True,
    ),
}


SETTINGS = [
    setting
    for group in (MAPPED, FILES, HOLES, WORKERS, WORKERS_AND_FILES, COPIES)
    for setting in group.values()
]


@pytest.mark.parametrize("name", HOLES)
def test_holes(name: str) -> None:
    found = explore(HOLES[name], SOUND)
    assert not found.violation, f"\n{found}"
    assert found.states > 100


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_read_mostly_pages(name: str) -> None:
    found = explore(COPIES[name], SOUND)
    assert not found.violation, f"\n{found}"
    assert found.states > 100


@pytest.mark.parametrize("name", WORKERS)
def test_what_a_worker_sees_is_coherent(name: str) -> None:
    found = explore(WORKERS[name], SOUND)
    assert not found.violation, f"\n{found}"
    # A page may go to and fro for ever, if nobody gets to touch it in between.
    found = explore(replace(WORKERS[name], prompt=True, tries=8), SOUND)
    assert not found.violation, f"\n{found}"
    assert found.finite


@pytest.mark.parametrize("name", WORKERS_AND_FILES)
def test_a_worker_and_file_operations(name: str) -> None:
    found = explore(WORKERS_AND_FILES[name], SOUND)
    assert not found.violation, f"\n{found}"


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_memory_is_coherent(name: str) -> None:
    found = explore(MAPPED[name], SOUND)
    assert not found.violation, f"\n{found}"
    # No run goes on for ever, except with a kernel that drops pages for ever.
    assert found.finite or MAPPED[name].reclaim
    assert found.states > 500


@pytest.mark.parametrize("name", FILES)
def test_file_operations_are_coherent(name: str) -> None:
    found = explore(FILES[name], SOUND)
    assert not found.violation, f"\n{found}"
    assert found.finite or FILES[name].reclaim


@pytest.mark.parametrize("name", ["one device", "two pages"])
def test_a_recall_ends_when_programs_get_to_their_pages(name: str) -> None:
    """In this setting a recall that gives up is a violation."""
    found = explore(replace(MAPPED[name], prompt=True, tries=8), SOUND)
    assert not found.violation, f"\n{found}"
    assert found.finite


PLANTED = {
    "no_retry": (MAPPED["one device"], "CPU still has page 0"),
    "park_in_recall": (Setting(((load(),),), (read_by(1),), forgotten=1), "Deadlock"),
    "park_readahead": (MAPPED["readahead over two owners"], "Deadlock"),
    "no_drain": (Setting(((write(),),), (write_by(1),)), "differs from device"),
    "no_generation": (
        Setting(((store(), op("truncate", 0), load()),), (read_by(1),)),
        "not present",
    ),
    "punch_first": (MAPPED["one device"], "has no bytes of it"),
    "inval_hull": (
        Setting(
            ((load(0),), (load(1),)),
            (migrate_to(2, 0, 1, 2),),
            owner=(HOST, 1, HOST),
            nodes=3,
            cached=5,
        ),
        "Deadlock",
    ),
    "keep_written": (MAPPED["eviction"], "kept host copy"),
    "wide_waits": (
        Setting(((write(0, 1),),), (migrate_to(1, 1),), owner=(1, HOST), forgotten=2),
        "Deadlock",
    ),
}

PLANTED |= {
    "no_protect": (WORKERS["a worker and its evictions"], "may store to page 0"),
    "protect_late": (WORKERS["a worker and its evictions"], "which had completed"),
    "fill_writable": (WORKERS["a worker"], "may store to page 0"),
    "wake_arrived": (WORKERS_AND_FILES["punch"], "Deadlock"),
}

PLANTED |= {
    "read_keeps_copies": (COPIES["stores of a program"], "which had completed"),
    "write_keeps_copies": (COPIES["write(2)"], "differs from the host's"),
    "open_keeps_copies": (COPIES["opened for writing"], "which had completed"),
    "copy_unrecalled": (COPIES["opened for writing"], "which had completed"),
    "copy_of_a_cut_page": (COPIES["truncate"], ""),
    "flip_keeps_copies": (COPIES["two readers and a writer"], "which had completed"),
}

ONCE_MADE = {
    "frozen_holds_write": (
        Setting(
            ((write(0, 1),), (load(1),)),
            (read_by(1, 0, 1),),
            owner=(HOST, HOST),
            cached=2,
            reclaim=True,
        ),
        "Deadlock",
    ),
    "parked_in_round": (
        Setting(
            ((write(0, 1),), (load(0),)),
            (migrate_to(1, 0), migrate_to(1, 0, 1)),
            owner=(HOST, HOST),
            cached=3,
        ),
        "Deadlock",
    ),
    "order_by_request": (
        Setting(((write(0, 1),), (store(0),)), (read_by(1, 1),), owner=(HOST, 1)),
        "page cache differs",
    ),
    "writeback_unmarked": (
        Setting(((write(),), (store(), load())), (read_by(1),)),
        "CPU still has page 0",
    ),
    "fill_past_end": (Setting(((op("truncate", 0), load()),), (write_by(1),)), "past the end"),
    "blind_store": (Setting(((op("truncate", 0), load()),), (write_by(1),)), "disagrees"),
    "thaw_early": (
        Setting(((op("truncate", 0), write(), load()),), (read_by(1),), keep_clean=False),
        "has no bytes of it",
    ),
    "blind_load": (Setting(((op("truncate", 0),),), (migrate_to(1),)), "disagrees"),
    "allocate_frozen": (FILES["zero"], "disagrees"),
    "first_open_ends": (COPIES["opened twice at once"], "which had completed"),
    "end_unnoticed": (COPIES["opened while it migrates"], "has no bytes of it"),
}


@pytest.mark.parametrize("bug", [*PLANTED, *ONCE_MADE])
def test_planted_bug_is_found(bug: str) -> None:
    setting, expected = (PLANTED | ONCE_MADE)[bug]
    found = explore(setting, replace(SOUND, **{bug: True}))
    print(f"{bug}: {found.states} states\n{found}")
    assert expected in found.violation
    assert f"{len(found.trace):3}. {found.trace[-1]}" in str(found)
    sound = explore(setting, SOUND)
    assert not sound.violation, f"\n{sound}"


def test_limit_a_recall_within_a_write() -> None:
    """What no answer of ours can prevent: see docs/coherence.md, "Not covered"."""
    setting = Setting(((write(),), (load(), load())), (read_by(1),))
    assert not explore(setting, SOUND).violation
    found = explore(replace(setting, forgive_torn=False), SOUND)
    print(found)
    assert "without {P0's write}, which had completed" in found.violation


def test_limit_a_truncate_within_a_copy() -> None:
    """A copy that had read a page before a truncate puts it where the worker can see it, until it
    looks at the generation."""
    setting = Setting(
        ((op("truncate", 0),),), (migrate_to(1),), workers=(worker(1, load()),), slow_copy=True
    )
    assert not explore(replace(setting, slow_copy=False), SOUND).violation
    found = explore(setting, SOUND)
    print(found)
    assert found.violation.startswith("W0 read")
    assert "was overwritten or cut off before" in found.violation


# ---- larger -----------------------------------------------------------------------------------


def random_setting(rng: random.Random, kinds: list[str], with_workers: bool) -> Setting:
    pages, nodes = rng.choice([1, 2, 2, 3]), rng.choice([2, 3])
    everything = (1 << pages) - 1

    def any_op() -> Op:
        kind = rng.choice(kinds)
        if kind == "write":
            return Op(kind, rng.choice([1, 2, 3, 6]) & everything or 1)
        return op(kind, rng.randrange(pages))

    def any_task() -> Task:
        kind = rng.choice(["read", "write", "migrate", "migrate", "recall"])
        lowest = HOST if kind == "migrate" else 1
        return Task(kind, rng.randrange(lowest, nodes), rng.randint(1, everything))

    owner = tuple(rng.choice([HOST, HOST, rng.randrange(nodes)]) for _ in range(pages))
    host = sum(1 << page for page, node in enumerate(owner) if node == HOST)
    cached = rng.randrange(everything + 1) & host

    def any_worker() -> Worker:
        ops = [op(rng.choice(["load", "store"]), rng.randrange(pages)) for _ in range(2)]
        return worker(rng.randrange(1, nodes), *ops)

    workers = tuple(any_worker() for _ in range(rng.randint(1, 2))) if with_workers else ()
    return Setting(
        programs=tuple(
            tuple(any_op() for _ in range(rng.randint(1, 2)))
            for _ in range(rng.randint(1, 1 if with_workers else 2))
        ),
        tasks=tuple(
            any_task() for _ in range(rng.randint(0 if with_workers else 1, 2 - len(workers) // 2))
        ),
        workers=workers,
        owner=owner,
        cached=cached,
        forgotten=rng.randrange(everything + 1) & host & ~cached,
        nodes=nodes,
        express=rng.random() < 0.7,
        keep_clean=rng.random() < 0.7,
        reclaim=rng.random() < 0.3,
        rounds=rng.randint(0, 1),
    )


def explore_random(
    seed: int, settings: int, kinds: list[str], protocol: Protocol, *, with_workers: bool = False
) -> None:
    rng = random.Random(seed)
    for _ in range(settings):
        setting = random_setting(rng, kinds, with_workers)
        found = explore(setting, protocol)
        assert not found.violation, f"\n{setting}\n{found}"
        assert found.finite or setting.reclaim or with_workers, setting


MAPPING_KINDS = ["load", "load_ahead", "store"]
ALL_KINDS = [*MAPPING_KINDS, "write", "write", "truncate", "punch", "zero"]


def test_random_settings() -> None:
    explore_random(1, 15, MAPPING_KINDS, SOUND)
    explore_random(2, 15, ALL_KINDS, SOUND)


def test_random_settings_with_workers() -> None:
    explore_random(3, 3, MAPPING_KINDS, SOUND, with_workers=True)
    explore_random(4, 3, ALL_KINDS, SOUND, with_workers=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(20))
def test_many_random_settings(seed: int) -> None:
    explore_random(100 + seed, 60, MAPPING_KINDS, SOUND)
    explore_random(200 + seed, 60, ALL_KINDS, SOUND)
    explore_random(300 + seed, 10, MAPPING_KINDS, SOUND, with_workers=True)
    explore_random(400 + seed, 10, ALL_KINDS, SOUND, with_workers=True)


LARGE = {
    "mapped": Setting(
        ((store(0), load(1)), (store(1), load(0)), (ahead(0),)),
        (read_by(1, 0, 1), write_by(2, 0), migrate_to(HOST, 0, 1)),
        owner=(HOST, HOST),
        nodes=3,
    ),
    "files": Setting(
        ((write(0, 1), op("truncate", 0), load(0)), (store(0), load(1))),
        (write_by(1, 0, 1), migrate_to(HOST, 1)),
        owner=(HOST, 1),
        cached=1,
    ),
}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", LARGE)
def test_large_settings(name: str) -> None:
    found = explore(LARGE[name], SOUND)
    assert not found.violation, f"\n{found}"
    assert found.finite
