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
    said = predict(workdir, arguments.input, arguments.output, step=arguments.step, **changes)
    print(f"{len(said) - len(said.errors):,} predictions: {arguments.output}")
    if said.errors:
        count, every = f"{len(said.errors):,}", f"{len(said):,}"
        print(f"{count} of {every} rows could not be predicted, as {said.errors[0]}")


HELP = "label the rows of a file with the best checkpoint"
COMMAND = Command(HELP, add_arguments, run, ROWS, starts_jax=True)
