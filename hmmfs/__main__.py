"""``python -m hmmfs`` is the ``hmmfs`` command."""

import sys

from hmmfs.cli import main

sys.exit(main())
