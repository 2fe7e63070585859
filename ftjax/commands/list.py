"""`ftjax list`: what there is, and the options of each."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence

from ftjax.commands.command import Command
from ftjax.errors import UserError, nearest

OPTIMIZERS = {
    "adamw": "Adam with decoupled weight decay",
    "sgd": "stochastic gradient descent, with momentum if asked",
    "adafactor": "factored second moments",
    "lion": "sign of an interpolated momentum",
}
EVERY = ("name", "learning_rate", "schedule", "warmup", "weight_decay", "clip_norm")
BALL = ("adversarial", "epsilon")
KEYS = {  # optimizer or regularizer → the keys that it reads
    **{name: ("optimizer", *EVERY) for name in OPTIMIZERS},
    "adamw": ("optimizer", *EVERY, "beta1", "beta2", "epsilon"),
    "sgd": ("optimizer", *EVERY, "momentum"),
    "fgm": ("regularization", *BALL),
    "pgd": ("regularization", *BALL, "step_size", "steps"),
    "freelb": ("regularization", *BALL, "step_size", "steps"),
    "l2_sp": ("regularization", "l2_sp", "l2_sp_new"),
    "swa": ("train", "swa_start", "swa_every"),
}
LISTS = ("methods", "models", "tasks", "optimizers", "regularizers", "preparation", "rates")
WIDTH = 22  # of names


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", choices=LISTS)
    parser.add_argument("name", nargs="?", help="one of them, with its options")


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    what, name = arguments.what, arguments.name
    entries = _table(what)
    if what == "rates":
        print(_heading())
    if name is None:
        for entry, text in entries.items():
            print(f"{entry:<{WIDTH}}{text}")
            if what == "preparation":
                print(_brief(entry), end="")
    elif name not in entries:
        raise UserError(f"ftjax list {what}: {name!r} is not known{nearest(name, entries)}")
    else:
        print(f"{name}: {entries[name]}")
        print(_options(what, name), end="")


def _table(what: str) -> Mapping[str, str]:
    """Name → what it is."""
    from ftjax import models
    from ftjax.data.preparation import STEPS
    from ftjax.methods import METHODS, rates
    from ftjax.regularization import REGULARIZERS
    from ftjax.tasks import TASKS

    if what in ("models", "rates"):
        return (models if what == "models" else rates).table()
    if what in ("optimizers", "regularizers"):
        return OPTIMIZERS if what == "optimizers" else REGULARIZERS
    entries = {"methods": METHODS, "tasks": TASKS, "preparation": STEPS}[what]
    return {name: entry[-1] for name, entry in entries.items()}


def _heading() -> str:
    """What the columns of `rates` are of."""
    from ftjax.methods.rates import SIZES

    small, *others = [f"{s / 1e9:g}B" if s >= 1e9 else f"{s / 1e6:g}M" for s in SIZES]
    columns = f"{small} (measured here), {', '.join(others)} (not)"
    return f"{'':<{WIDTH}}for {columns} parameters, by AdamW; between them by logarithms"


def _brief(step: str) -> str:
    """The options of a preparation step with their defaults, below it."""
    from ftjax.data.preparation import find
    from ftjax.options import defaults

    given = [f"{name}={value!r}" for name, value in defaults(find(step)).items()]
    return f"{'':<{WIDTH}}{', '.join(given)}\n" if given else ""


def _options(what: str, name: str) -> str:
    """The options of an entry, each with its default, meaning and range."""
    from ftjax import methods, tasks
    from ftjax.config.describe import describe
    from ftjax.config.sections import SECTIONS
    from ftjax.data import preparation
    from ftjax.options import options

    values: dict[str, str] = {}  # what makes a run use it
    if what in ("models", "rates"):
        return ""
    if what in ("optimizers", "regularizers"):
        section, *keys = KEYS.get(name, ("regularization", name))
        every, prefix = options(SECTIONS[section]), f"{section}."
        known = {key: every[key] for key in keys}
        values["name"] = name
    else:
        finders = {"methods": methods, "tasks": tasks, "preparation": preparation}
        prefix = {"methods": "method.", "tasks": "task.", "preparation": ""}[what]
        known = options(finders[what].find(name))
    lines = [describe(prefix + key, known[key], values.get(key)) for key in known]
    return "".join(f"{line}\n" for line in lines) or "no options\n"


COMMAND = Command("say what there is, and the options of each", add_arguments, run)
