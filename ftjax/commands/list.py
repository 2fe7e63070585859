"""`ftjax list`: what there is."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ftjax.commands.command import Command

OPTIMIZERS = {
    "adamw": "Adam with decoupled weight decay",
    "sgd": "stochastic gradient descent, with momentum if asked",
    "adafactor": "factored second moments",
    "lion": "sign of an interpolated momentum",
}
LISTS = ("methods", "models", "tasks", "optimizers", "regularizers", "preparation")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", choices=LISTS)


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax.data.preparation import STEPS
    from ftjax.methods import METHODS
    from ftjax.models import table
    from ftjax.regularization import REGULARIZERS
    from ftjax.tasks import TASKS

    tables = {
        "methods": {name: entry[-1] for name, entry in METHODS.items()},
        "models": table(),
        "tasks": {name: entry[-1] for name, entry in TASKS.items()},
        "optimizers": OPTIMIZERS,
        "regularizers": REGULARIZERS,
        "preparation": {name: entry[-1] for name, entry in STEPS.items()},
    }
    for name, text in tables[arguments.what].items():
        print(f"{name:<22}{text}")


COMMAND = Command("say what there is", add_arguments, run)
