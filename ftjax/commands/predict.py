"""`ftjax predict`: what a model says of the rows of a file."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ftjax.commands.command import ROWS, Command, add_step, add_workdir


def add_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--input", type=Path, required=True, help="a .jsonl, .csv or .parquet")
    parser.add_argument("--output", type=Path, required=True, help="the .jsonl to write")
    add_step(parser)


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax.evaluation.predict import predict, write_predictions

    rows = predict(arguments.workdir, arguments.input, overrides, arguments.step)
    write_predictions(arguments.output, rows)
    print(f"{len(rows):,} predictions: {arguments.output}")


HELP = "label the rows of a file with the best checkpoint"
COMMAND = Command(HELP, add_arguments, run, ROWS, starts_jax=True)
