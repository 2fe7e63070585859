"""How the `ftjax` command is started in a process of its own, and what it imports there."""

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

COMMAND = "FTJAX_COMMAND"  # set in the environment of a command's process


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


def transformers() -> ModuleType:
    """The package `transformers`: in a command without torch, whose import takes seconds."""
    with unused("torch"):  # which only configurations import at once
        importlib.import_module("transformers.configuration_utils")
    return sys.modules["transformers"]


@contextmanager
def unused(*packages: str) -> Iterator[None]:
    """In a command, what is imported within finds none of these packages, unless they are imported.

    For what takes seconds to import and is not used. A program that imports `ftjax` may use it.
    """
    hidden = [name for name in packages if name not in sys.modules and COMMAND in os.environ]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
