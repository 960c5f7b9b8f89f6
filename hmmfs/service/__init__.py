"""The fault service: what needs a decision is decided here, what moves is moved by native jobs."""

from hmmfs.service.doomed import Doomed, Patience
from hmmfs.service.events import Events, apart, guarded
from hmmfs.service.fault_service import FaultService
from hmmfs.service.jobs import Jobs
from hmmfs.service.reservations import Reservation, Reservations

__all__ = [
    "Doomed",
    "Events",
    "FaultService",
    "Jobs",
    "Patience",
    "Reservation",
    "Reservations",
    "apart",
    "guarded",
]
