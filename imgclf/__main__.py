"""`python -m imgclf` is `imgclf`."""

from imgclf.cli import main

if __name__ == "__main__":
    main()
