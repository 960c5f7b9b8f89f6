"""What all policies have in common: a name, and parameters to be shown with it."""

from __future__ import annotations

import shlex
from abc import ABC
from typing import ClassVar


class Named(ABC):
    """A policy's parameters are its attributes but those that begin with an underscore."""

    name: ClassVar[str]

    def __str__(self) -> str:
        """What the policy's file in `policy/` says, and takes."""
        values = [
            f" {key}={shlex.quote(str(value))}"
            for key, value in self.__dict__.items()
            if key[0] != "_"
        ]
        return "".join([self.name, *values])
