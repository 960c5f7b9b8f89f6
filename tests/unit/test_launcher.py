"""What the daemon takes for the answer of a worker, whose process runs its user's code."""

from __future__ import annotations

from typing import Any

import pytest

from hmmfs.device.launcher import Worker
from hmmfs.errors import HmmfsError


def test_the_end_of_a_launch() -> None:
    assert Worker._ended((("done", b"7"), [2]), [1, 2]) == (("done", b"7"), {2})
    assert Worker._ended((("raised", "a", "b"), []), []) == (("raised", "a", "b"), set())


@pytest.mark.parametrize(
    "answer",
    [
        None,
        7,
        "done",
        (),
        ("done", b"", []),
        (("done",), []),
        (("done", "text"), []),
        (("done", b""), 5),
        (("done", b""), [3]),
        (("done", b""), [True]),
        (("done", b""), [[1]]),
        (("done", b"", b""), []),
        (("raised", 1, None), []),
        (("raised", "a"), []),
        (("other", b""), []),
        {"done": b""},
    ],
)
def test_what_is_no_answer(answer: Any) -> None:
    with pytest.raises(HmmfsError, match="new worker"):
        Worker._ended(answer, [1, 2])
