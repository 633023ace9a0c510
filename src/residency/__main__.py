"""`python -m residency`."""

from residency.cli.main import main

if __name__ == "__main__":
    main()
