"""How the `ftjax` command is started in a process of its own."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def of_ftjax(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line with these arguments, and its environment.

    What lies in the current folder, as a datasets.py, is not imported in place of a package.
    """
    environment, home = dict(os.environ), str(Path(__file__).parents[1])
    current = {"", os.getcwd()}
    if home not in sys.path or home in current:  # a checkout that is not on the path of others
        paths = [*filter(None, [environment.get("PYTHONPATH")]), home]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return [sys.executable, "-P", "-m", "ftjax", *arguments], environment
