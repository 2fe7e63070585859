"""`ftjax predict`: what a model says of the rows of a file."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ftjax.changes import ROWS
from ftjax.commands.command import Command, add_step, add_workdir, changes_of

FORMS = ".jsonl, .json, .csv, .tsv, .parquet or .xlsx"


def add_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--input", type=Path, required=True, help="of rows, as train reads")
    parser.add_argument("--output", type=Path, required=True, help=f"to write, a {FORMS}")
    add_step(parser)


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax.evaluation.predict import predict

    workdir, changes = arguments.workdir, changes_of(overrides)
    rows, output, step = arguments.input, arguments.output, arguments.step
    predictions = predict(workdir, rows, output, step=step, **changes)
    print(f"{len(predictions) - len(predictions.errors):,} predictions: {output}")
    if predictions.errors:
        count, every = f"{len(predictions.errors):,}", f"{len(predictions):,}"
        print(f"{count} of {every} rows could not be predicted, as {predictions.errors[0]}")


HELP = "label the rows of a file with the best checkpoint"
COMMAND = Command(HELP, add_arguments, run, ROWS, starts_jax=True)
