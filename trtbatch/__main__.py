"""Run the command line as ``python -m trtbatch``."""

from trtbatch.cli import main

if __name__ == "__main__":
    main()
