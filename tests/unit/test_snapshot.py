"""The lines of control files, as hmmfs smi and exports have them."""

from __future__ import annotations

from hmmfs.inspect.mount import snapshot


def test_queue() -> None:
    listed = "- fill running 3 8\na,b c call waiting 0 0\n-x read waiting 0 1\n"
    assert snapshot.queue(listed) == [
        {"name": None, "verb": "fill", "state": "running", "done": 3, "total": 8},
        {"name": "a,b c", "verb": "call", "state": "waiting", "done": 0, "total": 0},
        {"name": "-x", "verb": "read", "state": "waiting", "done": 0, "total": 1},
    ]
    assert snapshot.queue("") == []
