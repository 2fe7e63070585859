"""`ftjax predict`: what a model says of the rows of a file."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ftjax.changes import ROWS
from ftjax.commands.command import Command, add_step, add_workdir

FORMS = ".jsonl, .json, .csv, .tsv, .parquet or .xlsx"


def add_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--input", type=Path, required=True, help="of rows, as train reads")
    parser.add_argument("--output", type=Path, required=True, help=f"to write, a {FORMS}")
    add_step(parser)


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax.evaluation.predict import predict, write_predictions
    from ftjax.evaluation.tables import check_form
    from ftjax.workdir.folder import require_other

    check_form(arguments.output)
    require_other(arguments.output, arguments.workdir, arguments.input)
    found = predict(arguments.workdir, arguments.input, overrides, arguments.step)
    write_predictions(arguments.output, found)
    print(f"{len(found.rows) - len(found.errors):,} predictions: {arguments.output}")
    if found.errors:
        count, every = f"{len(found.errors):,}", f"{len(found.rows):,}"
        print(f"{count} of {every} rows could not be predicted, as {found.errors[0]}")


HELP = "label the rows of a file with the best checkpoint"
COMMAND = Command(HELP, add_arguments, run, ROWS, starts_jax=True)
