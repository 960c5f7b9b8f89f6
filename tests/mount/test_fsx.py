"""Random programs and devices against a shadow; a failure shrinks to the shortest list of steps."""

from __future__ import annotations

import itertools
import os
import time

import fsx
import pytest
from conftest import Mount, MountFactory
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st

STEP = st.tuples(
    st.sampled_from(fsx.STEPS),
    st.integers(0, 3),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 255),
)
MODES: list[dict[str, str]] = [
    {},
    {"express": "off"},
    {"keep_clean": "off", "prefetch": "none"},
    {"type": "coherent", "vram": "16M"},
    {"type": "dax", "vram": "16M"},
    {"prefetch": "density", "eviction": "tree"},
    {"prefetch": "sequential", "eviction": "lru-page"},
]
_number = itertools.count()


def run_steps(mount: Mount, steps: list[fsx.Step]) -> None:
    test = fsx.Fsx(mount, f"r{next(_number)}")
    try:
        for step in steps:
            test.do(step)
        test.check()
    finally:
        test.close()


def small(mount_factory: MountFactory, mode: dict[str, str]) -> Mount:
    return mount_factory(**{"vram": "4M", "devices": 2, "host": "32M"} | mode)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: ",".join(mode.values()) or "default")
def test_steps(mount_factory: MountFactory, mode: dict[str, str]) -> None:
    mount = small(mount_factory, mode)

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )
    @given(st.lists(STEP, min_size=5, max_size=60))
    @example([("store", 0, 0.1, 0.9, 1), ("migrate", 0, 0.0, 1.0, 1), ("load", 1, 0.1, 0.9, 0)])
    def explore(steps: list[fsx.Step]) -> None:
        run_steps(mount, steps)

    explore()


@pytest.mark.long
@pytest.mark.timeout(0)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: ",".join(mode.values()) or "default")
def test_steps_for_long(mount_factory: MountFactory, mode: dict[str, str]) -> None:
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
            run_steps(mount, steps)

        explore()
