"""TOML files that people write."""

import tomllib
from typing import Any

from hmmfs.errors import UsageError


def document(path: str, what: str) -> dict[str, Any]:
    """All of a file. UsageError, in which `what` says what the file is for: it can't be read, or is
    not TOML."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UsageError(f"The {what} {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The {what} {path} is not TOML: {error}.") from None
