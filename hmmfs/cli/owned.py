"""A mount that ends with the program that asked for it: what `hmmfs.mount` runs.

Standard input is one JSON object: the path, the options as pairs of name and text, and whether the
directory is temporary. The argument is the number of a pidfd of the owner. Standard output is JSON,
too: where mounting fails an object, as `daemonize.report` makes it; else a warning, or null.
"""

from __future__ import annotations

import json
import sys

from hmmfs.cli import main as cli
from hmmfs.errors import HmmfsError
from hmmfs.mounting import computer
from hmmfs.mounting.config import Config
from hmmfs.mounting.daemonize import Owner, open_standard_files, report


def main() -> int:
    """Returns once the mount answers: 0, or 1 if it could not be made."""
    open_standard_files()
    request = json.load(sys.stdin)
    owner = Owner(int(sys.argv[1]), request["temporary"])
    try:
        config = Config.from_pairs([(name, text) for name, text in request["options"]])
        status = cli._serve(request["path"], config, False, False, owner)
        json.dump(computer.complaint(config.memory), sys.stdout)
        return status
    except (HmmfsError, OSError) as error:
        json.dump(report(error), sys.stdout)
        return 1


if __name__ == "__main__":
    sys.exit(main())
