import sys

from nadpipe.cli import main

if __name__ == "__main__":  # worker processes that are not forked import this module again
    sys.exit(main())
