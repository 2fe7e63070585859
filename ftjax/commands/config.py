"""`ftjax config`: a configuration as a run would have it, and what its keys are."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ftjax.changes import ALL
from ftjax.commands.command import Command, add_page, load_page


def add_arguments(parser: ArgumentParser) -> None:
    add_page(parser, required=False)
    form = "of all keys yaml (default) or json, or a page of Python that sets what differs"
    parser.add_argument("--format", choices=("yaml", "json", "py"), default="yaml", help=form)
    text = "write the JSON Schema of pages in YAML, by which editors complete keys, and no more"
    parser.add_argument("--schema", type=Path, metavar="FILE", help=text)


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    if arguments.schema:
        from ftjax.config.schema import schema
        from ftjax.files import write_json

        write_json(arguments.schema, schema())
        print(f"schema: {arguments.schema}")
        return
    from ftjax.config import check
    from ftjax.config.page import page_of
    from ftjax.config.saved import to_json
    from ftjax.config.yaml import to_yaml

    if not arguments.config:
        arguments.task = arguments.task or "classification"
    config = check(load_page(arguments, overrides))
    texts = {"yaml": to_yaml, "json": to_json, "py": page_of}
    print(texts[arguments.format](config), end="")


HELP = "print a configuration, say what its keys are (--explain), or write their schema"
COMMAND = Command(HELP, add_arguments, run, ALL)
