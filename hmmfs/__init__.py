"""hmmfs: a heterogeneous-memory machine that you can mount."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Device",
    "Handle",
    "Hmadvise",
    "HmmfsError",
    "KernelError",
    "Machine",
    "Process",
    "Region",
    "View",
    "connect",
    "mount",
    "reads",
    "updates",
    "writes",
]

if TYPE_CHECKING:
    from hmmfs.api import (
        Device,
        KernelError,
        Machine,
        Region,
        connect,
        mount,
        reads,
        updates,
        writes,
    )
    from hmmfs.errors import HmmfsError
    from hmmfs.handle import Handle
    from hmmfs.process import Hmadvise, Process, View
else:  # a checker that saw this would take any name for one of ours
    _ELSEWHERE = {
        "HmmfsError": "errors",
        "Handle": "handle",
        "Hmadvise": "process",
        "Process": "process",
        "View": "process",
    }

    def __getattr__(name: str) -> object:
        """The API, imported when first asked for: the command line and pytest start without
        numpy."""
        if name not in __all__:
            raise AttributeError(f"module 'hmmfs' has no attribute {name!r}")
        module = import_module(f"hmmfs.{_ELSEWHERE.get(name, 'api')}")
        found = globals()[name] = getattr(module, name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
