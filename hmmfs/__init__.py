"""hmmfs: a heterogeneous-memory machine that you can mount."""

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
        Handle,
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
    from hmmfs.process import Hmadvise, Process, View


def __getattr__(name: str) -> object:
    """The API, imported when first asked for: the command line starts without numpy."""
    if name in __all__:
        from hmmfs import api, process

        return getattr(api if hasattr(api, name) else process, name)
    raise AttributeError(f"module 'hmmfs' has no attribute {name!r}")
