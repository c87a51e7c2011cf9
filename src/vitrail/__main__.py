"""`python -m vitrail`, which torchrun needs."""

from vitrail.cli import main

if __name__ == "__main__":
    main()
