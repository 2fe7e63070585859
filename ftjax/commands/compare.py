"""`ftjax compare`: runs by several methods, and a report."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ftjax.changes import ALL
from ftjax.commands.command import Command, add_page, add_workdir, changes_of, shorthands


def add_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    add_page(parser, method=False)
    parser.add_argument("--methods", default="", help="names, with commas between (the file's)")
    parser.add_argument("--seeds", type=int, default=1, help="runs a method (default 1)")
    text = "cross-validation: runs a method and seed, each validated on another part of the rows"
    parser.add_argument("--folds", type=int, default=0, help=text)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default 1)")


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax.comparison.study import compare

    study = compare(
        arguments.config or "",
        arguments.methods,
        arguments.workdir,
        seeds=arguments.seeds,
        jobs=arguments.jobs,
        folds=arguments.folds,
        task=arguments.task or "",
        **changes_of(shorthands(arguments, overrides)),
    )
    print(f"\n{study}\n")
    for name in ("report.html", "report.md", "results.json"):
        print(study.workdir / name)


COMMAND = Command("train by several methods and report", add_arguments, run, ALL)
