"""``python -m chemscale``: the command line."""

from chemscale.cli import main

if __name__ == "__main__":
    main()
