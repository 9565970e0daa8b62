"""The `imgclf` command, which is `python -m imgclf` too."""

import sys


def main() -> None:
    """The entry point: until the command line is loaded, an interrupt ends it as quietly as it does after that."""
    try:
        from imgclf.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
