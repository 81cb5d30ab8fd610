import sys

from nadpipe.cli import main

sys.exit(main())
