"""`ftjax train`: a run in a work folder."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ftjax.changes import ALL
from ftjax.commands.command import Command, add_page, add_workdir, load_page, print_scores


def add_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    add_page(parser)
    parser.add_argument(
        "--extend",
        action="store_true",
        help="go on to more train.epochs or train.steps than the folder's run was begun with",
    )


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax.runs.train import train

    config = load_page(arguments, overrides)
    result = train(config, arguments.workdir, extend=arguments.extend)
    print_scores(result["metrics"])
    print(f"result: {arguments.workdir / 'result.json'}")


HELP = "train, or go on where an earlier run in the folder stopped"
COMMAND = Command(HELP, add_arguments, run, ALL, starts_jax=True)
