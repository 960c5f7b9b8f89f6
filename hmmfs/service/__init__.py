"""The fault service: what needs a decision is decided here, what moves is moved by native jobs."""

from hmmfs.service.fault_service import FaultService
from hmmfs.service.guard import apart, guarded
from hmmfs.service.jobs import Jobs
from hmmfs.service.room import Room, Rooms

__all__ = ["FaultService", "Jobs", "Room", "Rooms", "apart", "guarded"]
