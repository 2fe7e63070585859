"""`ftjax` on a disk that is full."""

import resource
from collections.abc import Sequence

from ftjax.commands import entry as cli


def full(arguments: Sequence[str]) -> int:
    """Runs the command with a limit on the size of files, which stands for a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return cli.main(arguments)
