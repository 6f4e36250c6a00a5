"""`python -m slimp`, for launchers that start modules."""

from slimp.cli import main

if __name__ == "__main__":
    main()
