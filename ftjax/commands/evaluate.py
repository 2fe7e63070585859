"""`ftjax evaluate`: scores of a split."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ftjax.changes import ROWS
from ftjax.commands.command import Command, add_step, add_workdir, changes_of, print_scores


def add_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--split", default="test", help="train, validation or test")
    add_step(parser)


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax.evaluation.evaluate import evaluate, write_scores

    changes = changes_of(overrides)
    scores = evaluate(arguments.workdir, arguments.split, step=arguments.step, **changes)
    print_scores({arguments.split: scores})  # also where the folder may only be read
    file = write_scores(arguments.workdir, arguments.split, arguments.step, scores)
    print(f"scores: {file}")


HELP = "score the best checkpoint of a work folder on a split"
COMMAND = Command(HELP, add_arguments, run, ROWS, starts_jax=True)
