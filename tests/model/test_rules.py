"""What is held against the core: it allows what the model does, and shows its mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .projection import Allowed, Step
from .protocol import explore
from .rules import allows
from .test_protocol import COPIES, FILES, HOLES, MAPPED, ONCE_MADE, PLANTED, SOUND, WORKERS

# One of each kind that is explored in a second.
EXPLORED = {
    "mapped": MAPPED["one device"],
    "by page": MAPPED["three pages by page"],
    "readahead": MAPPED["readahead over two owners"],
    "recall": MAPPED["recall alone"],
    "write": FILES["write through the service"],
    "truncate": FILES["truncate of one page of two"],
    "zero": FILES["zero"],
    "holes": HOLES["write of two pages"],
    "kept copies go": HOLES["kept copies go"],
    "worker": WORKERS["two pages of a worker"],
    "copies": COPIES["opened while two devices read"],
}


@pytest.mark.parametrize("name", EXPLORED)
def test_what_is_explored_is_allowed(name: str) -> None:
    found = Allowed()
    explore(EXPLORED[name], SOUND, found)
    assert len(found.steps) > 50
    assert [str(step) for step in found.steps if not allows(step)] == []


# The mistakes that a page sees; of others its bytes tell, or a worker. By the step that shows them.
SEEN = {
    "no_retry": "recall.frozen",
    "park_in_recall": "read.parked",
    "park_readahead": "ahead.parked",
    "no_drain": "planned",
    "no_generation": "flipped",
    "keep_written": "written",
    "wide_waits": "write.parked",
    "write_keeps_copies": "write.admitted",
    "copy_of_a_cut_page": "copy.made",
    "frozen_holds_write": "write.parked",
    "parked_in_round": "recall.round",
    "writeback_unmarked": "back.admitted",
    "thaw_early": "flipped",
    "allocate_frozen": "allocated",
}


@pytest.mark.parametrize("bug", SEEN)
def test_a_mistake_of_the_model_is_not(bug: str) -> None:
    setting, _ = (PLANTED | ONCE_MADE)[bug]
    found = Allowed()
    explore(setting, replace(SOUND, **{bug: True}), found)
    assert SEEN[bug] in {step.name for step in found.steps if not allows(step)}


def test_no_step_has_a_name_of_its_own() -> None:
    assert not allows(Step("recall.forgotten", about=True, before=0, after=0))
