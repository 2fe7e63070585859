"""`python -m ftjax` is the `ftjax` command."""

import sys

from ftjax.commands.entry import console

if __name__ == "__main__":
    sys.exit(console())
