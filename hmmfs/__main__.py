"""The ``hmmfs`` command, also as ``python -m hmmfs``."""

import sys


def main() -> int:
    """As `hmmfs.cli.main.main`, which takes 50 ms to import; a plain ``hmmfs run`` does without."""
    words = sys.argv[1:]
    if words[:1] == ["run"] and len(words) > 3 and words[2] == "--" and words[1][:1] != "-":
        from hmmfs.cli.preload import run
        from hmmfs.errors import HmmfsError

        try:
            return run(words[1], None, words[3:])
        except HmmfsError as error:
            print(f"hmmfs: {error}", file=sys.stderr)
            return 1
    from hmmfs.cli import main as cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
