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
    from hmmfs.api.device import Device
    from hmmfs.api.handle import Handle
    from hmmfs.api.machine import Machine, connect, mount
    from hmmfs.api.program import Hmadvise, Process, View
    from hmmfs.api.region import Region, reads, updates, writes
    from hmmfs.errors import HmmfsError
    from hmmfs.wire.calls import KernelError
else:  # a checker that saw this would take any name for one of ours
    _IN = {
        "HmmfsError": "errors",
        "KernelError": "wire.calls",
        "Device": "api.device",
        "Handle": "api.handle",
        "Hmadvise": "api.program",
        "Process": "api.program",
        "View": "api.program",
        "Region": "api.region",
        "reads": "api.region",
        "updates": "api.region",
        "writes": "api.region",
    }

    def __getattr__(name: str) -> object:
        """The API, imported when first asked for: the command line and pytest start without
        numpy."""
        if name not in __all__:
            raise AttributeError(f"module 'hmmfs' has no attribute {name!r}")
        module = import_module(f"hmmfs.{_IN.get(name, 'api.machine')}")
        found = globals()[name] = getattr(module, name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
