"""`ftjax list`: what there is, and the options of each."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ftjax.commands.command import Command
from ftjax.errors import UserError, nearest

if TYPE_CHECKING:
    from ftjax.registry import Registry

EVERY = ("name", "learning_rate", "schedule", "warmup", "weight_decay", "clip_norm")
BALL = ("adversarial", "epsilon")
KEYS = {  # regularizer → the keys that it reads
    "fgm": ("regularization", *BALL),
    "pgd": ("regularization", *BALL, "step_size", "steps"),
    "freelb": ("regularization", *BALL, "step_size", "steps"),
    "l2_sp": ("regularization", "l2_sp", "l2_sp_new"),
    "swa": ("train", "swa_start", "swa_every"),
}
LISTS = ("methods", "models", "tasks", "optimizers", "regularizers", "preparation", "rates")
LISTS += ("pages",)
WIDTH = 22  # of names


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", choices=LISTS)
    parser.add_argument("name", nargs="?", help="one of them, with its options")


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    what, name = arguments.what, arguments.name
    if what == "rates":
        print(_heading())
    if name is not None:
        print(f"{name}: {_text(what, name)}")
        print(_options(what, name), end="")
        return
    for entry, text in _table(what).items():
        print(f"{entry:<{WIDTH}}{text}")
        if what == "preparation":
            print(_brief(entry), end="")


def _registry(what: str) -> "Registry | None":
    """Of what has options of its own."""
    from ftjax import methods, optimizers, tasks
    from ftjax.data import preparation

    rooms = {"methods": methods, "tasks": tasks, "optimizers": optimizers}
    rooms |= {"preparation": preparation}
    return rooms[what].REGISTRY if what in rooms else None


def _table(what: str) -> Mapping[str, str]:
    """Name → what it is."""
    from ftjax import models
    from ftjax.config import pages
    from ftjax.methods import rates
    from ftjax.regularization import REGULARIZERS

    if registry := _registry(what):
        return registry.entries()
    if what in ("pages", "regularizers"):
        return pages() if what == "pages" else REGULARIZERS
    return (models if what == "models" else rates).table()


def _text(what: str, name: str) -> str:
    """What one of them is.

    Raises:
        UserError: there is none of that name; the nearest is named.
    """
    if registry := _registry(what):
        return registry.text(name)
    entries = _table(what)
    if name not in entries:
        raise UserError(f"ftjax list {what}: {name!r} is not known{nearest(name, entries)}")
    return entries[name]


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

    try:
        known = defaults(find(step))
    except UserError:
        return ""  # which what it is says
    options = [f"{name}={value!r}" for name, value in known.items()]
    return f"{'':<{WIDTH}}{', '.join(options)}\n" if options else ""


def _options(what: str, name: str) -> str:
    """The options of an entry, each with its default, meaning and range."""
    from ftjax.config.describe import describe
    from ftjax.config.sections import SECTIONS
    from ftjax.options import options

    if what in ("models", "rates", "pages"):
        return ""
    registry, values = _registry(what), {}
    own = options(registry.find(name)) if registry else {}
    section = {"methods": "method", "tasks": "task", "optimizers": "optimizer"}.get(what, "")
    if what == "optimizers":
        own = {**own, **options(SECTIONS[section])}
        own = {key: own[key] for key in (*EVERY, *options(registry.find(name)))}
        values["name"] = name  # what makes a run use it
    elif what == "regularizers":
        section, *keys = KEYS.get(name, ("regularization", name))
        own = {key: options(SECTIONS[section])[key] for key in keys}
        values["name"] = name
    prefix = f"{section}." if section else ""
    lines = [describe(prefix + key, own[key], values.get(key)) for key in own]
    return "".join(f"{line}\n" for line in lines) or "no options\n"


COMMAND = Command("say what there is, and the options of each", add_arguments, run)
