"""`python -m ftjax` is the `ftjax` command."""

import sys

from ftjax.commands.entry import main

if __name__ == "__main__":
    sys.exit(main())
