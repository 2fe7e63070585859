"""`ftjax compare`: runs by several methods, and a report."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ftjax.commands.command import ALL, Command, add_workdir


def add_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--config", required=True, help="FILE, a file with get_config([method])")
    parser.add_argument("--methods", default="", help="names, with commas between (the file's)")
    parser.add_argument("--seeds", type=int, default=1, help="runs a method (default 1)")
    text = "cross-validation: runs a method and seed, each validated on another part of the rows"
    parser.add_argument("--folds", type=int, default=0, help=text)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default 1)")


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax.comparison.study import compare

    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    folder, jobs = arguments.workdir, arguments.jobs
    seeds, folds = arguments.seeds, arguments.folds
    compare(arguments.config, methods, seeds, folder, overrides, jobs, folds)


COMMAND = Command("train by several methods and report", add_arguments, run, ALL)
