"""`python -m gencli`."""

from gencli.app import main

if __name__ == "__main__":
    main()
