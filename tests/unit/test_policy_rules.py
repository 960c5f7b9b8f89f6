"""What the policies choose, and that the native core chooses the same."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import trio
from hmmfs._native import ffi, lib
from hypothesis import given
from hypothesis import strategies as st

from hmmfs.errors import UsageError
from hmmfs.memory import BLOCK_PAGES, CANDIDATE_DTYPE, HOST, BlockKey, Core
from hmmfs.memory.types import page_words
from hmmfs.policy import EvictionPolicy, Fault, Pages, Policies, named_eviction, named_prefetch
from hmmfs.policy.asking import Asking, PolicyFailedError
from hmmfs.policy.placement import AccessCounter, FirstTouch, Never, Preferred
from hmmfs.policy.prefetch import BUILT_IN

KEY = BlockKey(1 << 32, 0)
NOTHING = np.zeros(BLOCK_PAGES, dtype=np.bool_)
ALL = ~NOTHING


def pages(*ranges: tuple[int, int]) -> Pages:
    """Ranges (first, count)."""
    chosen = NOTHING.copy()
    for first, count in ranges:
        chosen[first : first + count] = True
    return chosen


def fault(touched: Pages, faults: int = 0, resident: Pages = NOTHING, inside: Pages = ALL) -> Fault:
    return Fault(KEY, touched, resident, resident, inside, faults)


# ---- prefetch


@pytest.mark.parametrize(
    ("text", "touched", "faults", "wanted"),
    [
        ("none", (37, 1), 0, (37, 1)),
        ("none", (37, 5), 8, (37, 5)),
        ("grow", (37, 1), 0, (32, 16)),
        ("grow", (37, 1), 1, (0, 64)),
        ("grow", (37, 1), 2, (0, 512)),
        ("grow", (37, 1), 199, (0, 512)),
        ("grow", (15, 2), 0, (0, 32)),
        ("grow", (511, 1), 0, (496, 16)),
        ("block", (37, 1), 0, (0, 512)),
        ("next", (37, 1), 0, (37, 16)),
        ("next count=3", (37, 2), 0, (37, 5)),
        ("next count=3", (510, 1), 0, (510, 2)),
        ("density", (37, 1), 0, (32, 16)),
        ("density threshold=1", (37, 1), 0, (0, 512)),
        ("density threshold=100", (37, 1), 0, (37, 1)),
    ],
)
def test_windows(text: str, touched: tuple[int, int], faults: int, wanted: tuple[int, int]) -> None:
    chosen = named_prefetch(text).pages(fault(pages(touched), faults))
    assert np.array_equal(chosen, pages(wanted))


def served(text: str, order: list[int]) -> list[int]:
    """The pages that each fault brings to an empty block, touched page by page."""
    policy, resident, moved = named_prefetch(text), NOTHING.copy(), []
    for page in order:
        if not resident[page]:
            coming = policy.pages(fault(pages((page, 1)), len(moved), resident)) & ~resident
            resident = resident | coming
            moved.append(int(coming.sum()))
    return moved


LEAVES = [int(f"{leaf:05b}"[::-1], 2) for leaf in range(32)]


@pytest.mark.parametrize(
    ("text", "order", "kib"),
    [
        ("density", list(range(512)), [64, 64, 128, 256, 512, 1024]),
        ("density", list(range(511, -1, -1)), [64, 64, 128, 256, 512, 1024]),
        ("density", list(range(0, 512, 16)), [64, 64, 128, 256, 512, 1024]),
        ("density", list(range(0, 512, 32)), [64] * 16),
        ("density", list(range(0, 512, 64)), [64] * 8),
        (
            "density",
            [16 * leaf for leaf in (*range(0, 32, 2), *range(1, 32, 2))],
            [64] * 16 + [1024],
        ),
        ("density", [16 * leaf for leaf in LEAVES], [64] * 16 + [1024]),
        ("density threshold=25", list(range(512)), [128, 384, 1536]),
        ("density threshold=1", list(range(512)), [2048]),
        ("density threshold=100", list(range(512)), [4] * 512),
        ("sequential count=7", list(range(0, 64)), [4, 4] + [32] * 8),
        ("sequential count=3", list(range(60, -1, -4)), [4, 4, 16, 16, 16, 8]),
        ("sequential", [7, 300, 20, 411], [4, 4, 4, 4]),
    ],
)
def test_faults_of_an_order_of_touches(text: str, order: list[int], kib: list[int]) -> None:
    """Those of density are what the UVM driver's rule gives, recomputed independently."""
    assert [4 * n for n in served(text, order)] == kib


def test_density_of_random_touches() -> None:
    counts = [
        len(served("density", np.random.default_rng(seed).permutation(512).tolist()))
        for seed in range(100)
    ]
    assert min(counts) >= 6
    assert max(counts) <= 17
    assert 13.2 < np.mean(counts) < 14.2  # 13.72 over 2000 orders


def test_density_at_the_end_of_a_region() -> None:
    """Ranges are cut there, so 10 of 11 pages are more than half of them."""
    inside = pages((0, 75))
    chosen = named_prefetch("density").pages(fault(pages((70, 1)), inside=inside))
    assert np.array_equal(chosen, pages((64, 11)))


BITMAP = st.builds(
    lambda ranges: pages(*ranges),
    st.lists(st.tuples(st.integers(0, 511), st.integers(1, 200)), max_size=6),
)
TEXTS = [policy.name for policy in BUILT_IN]
TEXTS += ["next count=200", "sequential count=40", "density threshold=80", "density threshold=7"]


@given(
    st.sampled_from(TEXTS),
    st.lists(st.tuples(BITMAP, st.lists(st.integers(0, 511), min_size=1, max_size=3)), max_size=6),
    st.integers(1, 512),
)
def test_the_native_core_chooses_the_same(
    text: str, faults: list[tuple[Pages, list[int]]], end: int
) -> None:
    policy, inside = named_prefetch(text), pages((0, end))
    native = policy.native()
    assert native is not None
    spec = ffi.new("struct hm_prefetch *", {"kind": native[0], "argument": list(native[1])})
    stride, out = ffi.new("struct hm_stride *"), ffi.new("uint64_t[8]")
    for number, (resident, touched) in enumerate(faults):
        chosen = pages(*((page, 1) for page in touched)) & inside
        if not chosen.any():
            continue
        there = resident & inside & ~chosen
        words = [
            ffi.from_buffer("uint64_t[8]", page_words(mask)) for mask in (there, chosen, inside)
        ]
        assert lib.hm_prefetch_hint(spec, *words, number, stride, out) == 0
        wanted = policy.pages(fault(chosen, number, there, inside)) & inside
        assert bytes(ffi.buffer(out)) == page_words(wanted)


# ---- eviction


def candidates(*rows: dict[str, int]) -> np.ndarray:
    found = np.zeros(len(rows), dtype=CANDIDATE_DTYPE)
    for block, (row, values) in enumerate(zip(found, rows, strict=True)):
        row["ino"], row["block"], row["pages"] = KEY.ino, block, 512
        for name, value in values.items():
            row[name] = value
    return found


USED = candidates(
    {"last_device": 30, "last_migrated": 3, "arrived": 3, "uses": 9},
    {"last_device": 10, "last_migrated": 9, "arrived": 1, "uses": 2},
    {"last_device": 20, "last_migrated": 1, "arrived": 2, "uses": 4},
)


@pytest.mark.parametrize(
    ("text", "first"),
    [("lru", 1), ("lrm", 2), ("fifo", 1), ("mru", 0), ("lfu", 1), ("tree", 1)],
)
def test_the_first_to_go(text: str, first: int) -> None:
    assert named_eviction(text).order(USED)[0] == first


def test_lru_keeps_what_was_fetched_and_not_used_yet() -> None:
    found = candidates({"last_device": 10, "last_migrated": 1}, {"last_migrated": 40})
    assert list(named_eviction("lru").order(found)) == [0, 1]


def test_clock_passes_once_over_what_was_used() -> None:
    clock = named_eviction("clock")
    rows = [{"arrived": n + 1, "uses": uses} for n, uses in enumerate((5, 1, 5))]
    assert clock.order(candidates(*rows))[0] == 1
    rows[1] |= {"arrived": 9, "uses": 5}
    assert clock.order(candidates(*rows))[0] == 0, "its chance is used up"


def test_random_is_the_same_with_the_same_seed() -> None:
    def drawn(seed: int) -> list[int]:
        policy = named_eviction(f"random seed={seed}")
        return [int(policy.order(USED)[0]) for _ in range(50)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert set(drawn(1)) == {0, 1, 2}


def test_tree_evicts_what_density_would_group() -> None:
    tree = named_eviction("tree")
    assert np.array_equal(tree.pages(KEY, ALL, 1), pages((0, 16)))
    assert np.array_equal(tree.pages(KEY, pages((16, 16)), 1), pages((16, 16)))
    left = pages((16, 8), (32, 32), (256, 256))
    assert np.array_equal(tree.pages(KEY, left, 1), pages((16, 8), (32, 32)))
    assert np.array_equal(tree.pages(KEY, ~pages((0, 20)), 1), pages((20, 12)))
    assert np.array_equal(tree.pages(KEY, pages((16, 8), (40, 8)), 1), pages((16, 8), (40, 8)))


def misses(text: str, order: list[int], capacity: int) -> int:
    """Of single pages of one block, without prefetching."""
    policy, there, missed = named_eviction(text), NOTHING.copy(), 0
    for page in order:
        if there[page]:
            continue
        missed += 1
        policy.touched(KEY, pages((page, 1)), pages((page, 1)))
        if there.sum() == capacity:
            there &= ~policy.pages(KEY, there, 1)
        there[page] = True
    return missed


def test_a_path_with_blanks_takes_quotes(tmp_path: Path) -> None:
    trace = tmp_path / "a trace's"
    trace.write_text("0 1\n")
    policy = named_eviction(f"optimal trace={shlex.quote(str(trace))}")
    assert policy.__dict__["trace"] == str(trace)
    assert named_eviction(str(policy)).__dict__["trace"] == str(trace), "what it says it takes"


def test_optimal_and_lru_of_pages(tmp_path: Path) -> None:
    """The reference string of the textbooks, with 3 and 4 frames: LRU on faults alone is FIFO, as
    hits are not seen, and has Belady's anomaly; optimal has not."""
    order = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
    trace = tmp_path / "trace"
    trace.write_text("".join(f"0 {page}\n" for page in order))
    assert [misses("lru-page", order, pages) for pages in (3, 4)] == [9, 10]
    assert [misses(f"optimal trace={trace}", order, pages) for pages in (3, 4)] == [7, 6]


def test_optimal_lets_all_go_that_came_without_a_fault(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text("0 1\n")
    policy = named_eviction(f"optimal trace={trace}")
    assert np.array_equal(policy.pages(KEY, pages((0, 2), (9, 1)), 1), pages((0, 2), (9, 1)))
    policy.touched(KEY, pages((1, 1)), pages((1, 1)))
    assert np.array_equal(policy.pages(KEY, pages((1, 1)), 1), pages((1, 1)))


# ---- placement


def test_counters_bring_a_group_at_their_threshold() -> None:
    """Each group of 64 KiB counts a fault once, however many of its pages are touched."""
    policy = AccessCounter(threshold=3)
    there = pages((0, 64))
    other = replace(fault(pages((40, 1)), resident=there), key=BlockKey(KEY.ino, 1))
    for count in range(1, 5):
        found = policy.brings(
            fault(pages((17, 3), (63, 1)) if count == 2 else pages((17, 3)), resident=there)
        )
        ripe = pages((16, 16)) if count >= 3 else NOTHING
        assert np.array_equal(found, ~there | ripe), count
        assert np.array_equal(
            policy.brings(other), ~there | (pages((32, 16)) if count >= 3 else NOTHING)
        )


def test_placement_of_what_is_nowhere_yet() -> None:
    there = pages((0, 64))
    touched = fault(pages((60, 8)), resident=there)
    assert np.array_equal(FirstTouch().brings(touched), ALL)
    assert np.array_equal(Preferred().brings(touched), ~there)
    assert np.array_equal(Never().brings(touched), NOTHING)


# ---- by name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("psychic", "use none, grow, block, next, sequential, density, FILE.py:CLASS"),
        ("", "There is no prefetch policy"),
        ("density threshold=101", "threshold=101 is wrong. Give a number from 1 to 100"),
        ("density threshold=x", "Give a number from 1 to 100"),
        ("density limit=3", "has no parameter limit: it has threshold"),
        ("grow 3", "Write PARAMETER=VALUE"),
        ("grow x=3", "it has none"),
        ("mine.py:Mine", "not a whole path"),
        ("density 'threshold=51", 'A quote in "density \'threshold=51" does not end'),
        ("/nowhere/mine.py:Mine", "can't be loaded: FileNotFoundError"),
        (shlex.quote(f"{__file__}:KEY"), "not a subclass of hmmfs.policy.PrefetchPolicy"),
    ],
)
def test_refused_names(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        named_prefetch(text)
    assert says in caught.value.sentence


def test_refused_evictions() -> None:
    for text in ("psychic", "optimal", "optimal trace=/nowhere", "random seed=-1"):
        with pytest.raises(UsageError):
            named_eviction(text)


@pytest.mark.parametrize("text", [*TEXTS])
def test_names_are_taken_as_they_are_shown(text: str) -> None:
    shown = str(named_prefetch(text))
    assert shown.split()[0] == text.split()[0]
    assert str(named_prefetch(shown)) == shown


# ---- policies that fail


@pytest.fixture
def core() -> Iterator[Core]:
    with Core([1024, 1024]) as made:
        yield made


@pytest.mark.parametrize(
    "answer", ["1 / 0", "None", "NOTHING[:5]", "[True] * 3", "np.ones(512)", "fault"]
)
def test_a_prefetch_policy_that_fails_is_replaced(core: Core, answer: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import numpy as np\n"
        "from hmmfs.policy import PrefetchPolicy\n"
        "NOTHING = np.zeros(512, dtype=bool)\n"
        "class Bad(PrefetchPolicy):\n"
        "    def pages(self, fault):\n"
        f"        return {answer}\n"
    )
    policies = Policies(core)
    said: list[tuple[int, str]] = []
    policies.on_failure = lambda node, sentence: said.append((node, sentence))
    trio.run(policies.set_prefetch, 1, f"{tmp_path}/bad.py:Bad")
    assert policies.asks(1)
    assert not policies.asks(0)
    assert policies.names(1)["prefetch"] == f"{tmp_path}/bad.py:Bad"
    chosen = trio.run(policies.bring, 1, fault(pages((20, 1))))
    assert np.array_equal(chosen, pages((16, 16)))
    assert policies.names(1)["prefetch"] == "grow"
    assert not policies.asks(1)
    assert said[0][0] == 1
    assert "replaced by grow" in said[0][1]


class Bad(EvictionPolicy):
    name = "bad"
    observes = True

    def __init__(self, how: str = "order") -> None:
        self.how = how

    def order(self, found: np.ndarray) -> np.ndarray:
        return np.array([] if self.how == "order" else [len(found) if self.how == "far" else 0])

    def pages(self, key: BlockKey, resident: Pages, need: int) -> Pages:
        return ~resident if self.how == "pages" else resident

    def touched(self, key: BlockKey, touched: Pages, coming: Pages) -> None:
        if self.how == "touched":
            raise RuntimeError("no")


class Paged(Bad):
    name = "paged"
    by_page = True


def test_pages_of_the_block_that_reserves_leave_only_by_page(core: Core) -> None:
    block = BlockKey(7, 3)
    for name, spared in (("lru", {block}), ("lru-page", set()), (f"{__file__}:Paged", set())):
        policies = Policies(core, eviction=name)
        assert policies.spares(1, block) == spared, name
        assert policies.spares(HOST, block) == {block}


@pytest.mark.parametrize("how", ["order", "far", "pages", "touched"])
def test_an_eviction_policy_that_fails_is_replaced(core: Core, how: str) -> None:
    policies = Policies(core, prefetch="density", eviction=f"{__file__}:Bad how={how}")
    said: list[str] = []
    policies.on_failure = lambda node, sentence: said.append(sentence)
    assert policies.asks(1)
    trio.run(policies.bring, 1, fault(pages((20, 1))))
    row = trio.run(policies.victim, 1, USED)
    assert int(row["block"]) in (0, 1)
    assert trio.run(policies.leaving, 1, KEY, ALL, 1).all()
    assert policies.names(1)["eviction"] == "lru"
    assert not policies.asks(1), "density is native, and lru wants to see no faults"
    assert len(said) == 1


class Slow(Bad):
    """Answers when it is told to, which is too late."""

    name = "slow"
    released: ClassVar[threading.Event] = threading.Event()
    asked: ClassVar[list[int]] = []

    def order(self, found: np.ndarray) -> np.ndarray:
        self.asked.append(threading.get_ident())
        self.released.wait()
        return np.array([1])


def test_a_policy_that_does_not_answer_is_replaced(core: Core) -> None:
    """Nobody waits for it: other tasks run, others who would ask it don't."""
    policies = Policies(core, eviction=f"{__file__}:Slow", limit_s=0.1)
    slow = type(policies._eviction[1])  # of a module of its own
    said: list[str] = []
    policies.on_failure = lambda node, sentence: said.append(sentence)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.005)
            ticks += 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            async with trio.open_nursery() as asking:
                for _ in range(3):
                    asking.start_soon(policies.victim, 1, USED)
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
        assert len(slow.asked) == 1  # type: ignore[attr-defined]
    finally:
        slow.released.set()  # type: ignore[attr-defined]
    assert slow.asked[0] != threading.get_ident()  # type: ignore[attr-defined]
    assert ticks >= 5
    assert len(said) == 1
    assert re.search(
        r"Slow failed and is replaced by lru: TimeoutError: no answer within 0.1 s", said[0]
    )
    assert re.search(r"\((\S+threading|\S+test_policy_rules)\.py:\d+\)\.$", said[0])
    assert policies.names(1)["eviction"] == "lru"


def test_more_policies_may_hang_than_there_are_threads_for_others(core: Core) -> None:
    asking = Asking(0.01)
    released = threading.Event()

    async def main() -> int:
        for _ in range(60):  # trio's own limit is 40
            with pytest.raises(PolicyFailedError):
                await asking.ask(released.wait)
        assert await asking.ask(lambda: 1) == 1
        return await trio.to_thread.run_sync(lambda: 2)

    try:
        assert trio.run(main) == 2
    finally:
        released.set()


def test_what_a_policy_raises_reaches_nobody_else(core: Core) -> None:
    for error in (SystemExit, KeyboardInterrupt, GeneratorExit, trio.Cancelled._create()):

        def fails(error: BaseException = error) -> None:  # type: ignore[assignment]
            raise error

        with pytest.raises(PolicyFailedError):
            trio.run(Asking(1).ask, fails)


@pytest.mark.parametrize("name", ["lru", "lrm", "fifo", "mru", "lfu", "clock", "random", "tree"])
def test_the_order_of_candidates_decides_nothing(core: Core, name: str) -> None:
    """It depends on when regions before were removed, and two runs are to evict the same."""
    alike = np.repeat(USED[:1], 6)  # ties
    alike["block"] = np.arange(6)
    chosen = {
        int(
            trio.run(
                Policies(core, eviction=name).victim,
                1,
                np.random.default_rng(n).permutation(alike),
            )["block"]
        )
        for n in range(8)
    }
    assert len(chosen) == 1
