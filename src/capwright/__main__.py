"""`python -m capwright` is the command `capwright`."""

from capwright.cli import main

if __name__ == "__main__":
    main()
