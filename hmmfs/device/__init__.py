"""Devices: the operations that they understand and how these are carried out."""

from hmmfs.device.commands import Operation, parse
from hmmfs.device.executor import Executor

__all__ = ["Executor", "Operation", "parse"]
