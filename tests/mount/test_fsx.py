"""Random programs and devices against a shadow; a failure shrinks to the shortest list of steps."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import fsx
import pytest
from conftest import Mount, MountFactory
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st

import hmmfs

STEP = st.tuples(
    st.sampled_from(fsx.STEPS),
    st.integers(0, 3),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 255),
)
Mode = dict[str, str]
MODES: list[Mode] = [
    {},
    {"express": "off"},
    {"keep_clean": "off", "prefetch": "none"},
    {"type": "coherent", "vram": "16M"},
    {"type": "dax", "vram": "16M"},
    {"prefetch": "density", "eviction": "tree"},
    {"prefetch": "sequential", "eviction": "lru-page"},
    {"type": "coherent+private", "visible": "1M"},
    {"placement": "never", "thrashing": "uvm"},
]
CHOICES: dict[str, list[str]] = {
    "type": [
        "private",
        "coherent",
        "coherent recall",
        "coherent+private",
        "private+coherent",
        "dax",
    ],
    "prefetch": ["none", "grow", "block", "next", "sequential", "density"],
    "eviction": ["lru", "lrm", "fifo", "mru", "lfu", "clock", "random", "tree", "lru-page"],
    "placement": ["first-touch", "preferred", "never", "access-counter threshold=2"],
    "thrashing": ["off", "uvm"],
    "express": ["on", "off"],
    "keep_clean": ["on", "off"],
}


def pairs(row: Mode) -> set[tuple[tuple[str, str], ...]]:
    return set(itertools.combinations(row.items(), 2))


def pairwise(choices: dict[str, list[str]]) -> list[Mode]:
    """Combinations in which every two values of different names meet: of random ones that have one
    missing pair, the best, again and again. Always the same."""
    chance, rows = random.Random(0), []
    missing = {
        ((a, x), (b, y))
        for a, b in itertools.combinations(choices, 2)
        for x, y in itertools.product(choices[a], choices[b])
    }
    while missing:
        first = dict(min(missing))
        tries = [
            {name: first.get(name) or chance.choice(values) for name, values in choices.items()}
            for _ in range(50)
        ]
        rows.append(max(tries, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return rows


def options(mode: Mode) -> Mode:
    """Of a combination, as the mount takes them."""
    kind = mode["type"]
    vram = "16M" if kind in ("coherent", "dax") else "4M"
    more = {"visible": "1M"} if "+" in kind else {}
    if kind == "coherent recall":
        kind, more = "coherent", {"passthrough": "off"}
    return mode | {"type": kind, "vram": vram} | more


def name(mode: Mode) -> str:
    return ",".join(value.replace(" ", "_") for value in mode.values()) or "default"


SMALL = {"vram": "4M", "devices": "2", "host": "32M"}
_number = itertools.count()


def run_steps(mount: Mount, peer: fsx.Peer, steps: list[fsx.Step]) -> None:
    test = fsx.Fsx(mount, f"r{next(_number)}", peer)
    try:
        for step in steps:
            test.do(step)
        test.check()
    finally:
        test.close()


@pytest.fixture
def peer() -> Iterator[fsx.Peer]:
    made = fsx.Peer()
    yield made
    made.end()


def small(mount_factory: MountFactory, mode: Mode) -> Mount:
    return mount_factory(**SMALL | mode)


@pytest.mark.parametrize("mode", MODES, ids=name)
def test_steps(mount_factory: MountFactory, peer: fsx.Peer, mode: Mode) -> None:
    explore_steps(small(mount_factory, mode), peer, 60)


@pytest.mark.parametrize("mode", pairwise(CHOICES), ids=name)
def test_every_two_choices_together(
    mount_factory: MountFactory, peer: fsx.Peer, mode: Mode
) -> None:
    explore_steps(small(mount_factory, options(mode)), peer, 8)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_all_choices_together(peer: fsx.Peer, tmp_path: Path) -> None:
    """Of each combination some steps: 10 368 mounts, for as long as there is time."""
    end = time.monotonic() + float(os.environ.get("HMMFS_LONG_SECONDS", "36000"))
    combinations = list(itertools.product(*CHOICES.values()))
    random.Random(int(time.time())).shuffle(combinations)
    for values in combinations:
        if time.monotonic() > end:
            break
        mode = options(dict(zip(CHOICES, values, strict=True)))
        print(name(mode))
        log = tmp_path / "log"
        with hmmfs.mount(**SMALL | mode, log=log) as machine:
            explore_steps(Mount(machine.path, log), peer, 2)
            assert machine.audit() == "ok"


def explore_steps(mount: Mount, peer: fsx.Peer, examples: int) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(st.lists(STEP, min_size=5, max_size=60))
    @example([("store", 0, 0.1, 0.9, 1), ("migrate", 0, 0.0, 1.0, 1), ("load", 1, 0.1, 0.9, 0)])
    def explore(steps: list[fsx.Step]) -> None:
        run_steps(mount, peer, steps)

    explore()


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("mode", MODES, ids=name)
def test_steps_for_long(mount_factory: MountFactory, peer: fsx.Peer, mode: Mode) -> None:
    seconds = float(os.environ.get("HMMFS_LONG_SECONDS", "3600")) / len(MODES)
    end = time.monotonic() + seconds
    mount = small(mount_factory, mode)
    for number in itertools.count(int(time.time())):
        if time.monotonic() > end:
            break
        print("seed", number)

        @seed(number)
        @settings(
            max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(st.lists(STEP, min_size=20, max_size=200))
        def explore(steps: list[fsx.Step]) -> None:
            run_steps(mount, peer, steps)

        explore()
