"""`python -m ftjax` is the `ftjax` command."""

import sys

from ftjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
