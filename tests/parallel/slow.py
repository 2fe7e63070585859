"""`ftjax` that takes its time over every step, so that there is some in which to stop it."""

import time
from collections.abc import Sequence
from typing import Any

from ftjax.commands import entry as cli
from ftjax.training import feed


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    place = feed.place_rows

    def place_rows(*given: Any) -> Any:
        time.sleep(0.2)
        return place(*given)

    feed.place_rows = place_rows
    return cli.main(arguments)
