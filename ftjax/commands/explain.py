"""`--explain`, of the commands that take a configuration: what its keys are."""

from argparse import ArgumentParser
from collections.abc import Sequence

from ftjax.changes import ALL
from ftjax.commands.command import add_page, load_page
from ftjax.errors import UserError


def print_explanations(argv: Sequence[str]) -> int:
    """Says what keys are; whatever else the command needs is not asked for.

    Args:
        argv: of the command line, with "--explain".
    """
    from ftjax.commands import COMMANDS
    from ftjax.config.describe import explain

    having = [name for name, command in COMMANDS.items() if command.keys == ALL]
    if argv[0] not in having:
        raise UserError(f"--explain is of {', '.join(having)}")
    parser = ArgumentParser(prog=f"ftjax {argv[0]}")
    add_page(parser, required=False)
    arguments, rest = parser.parse_known_args(argv[1:])
    if not arguments.config:
        arguments.task = arguments.task or "classification"
    config = load_page(arguments, [item for item in rest if item.startswith("--config.")])
    for key in arguments.explain or [""]:
        print(explain(key, config))
    return 0
