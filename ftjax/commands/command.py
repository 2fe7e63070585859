"""What a command is, and the arguments that several have."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjax.errors import UserError

PAGE = "PAGE[:ARG]: a file, .py (see ftjax init) or .yaml, or a name (see ftjax list pages)"
# Metrics of a constant answer that are said; result.json has all.
CONSTANT = ("accuracy", "f1", "f1_micro", "f1_macro", "kappa", "exact", "mean_squared_error")


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        help: what it does, in a line.
        arguments: adds its arguments to a parser.
        run: does it, with what was given and "--config.KEY=VALUE"; returns the exit code or None.
        keys: what those of a configuration begin with that can be changed; empty: nothing.
        starts_jax: whether it runs on the devices that are there.
    """

    help: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace, Sequence[str]], int | None]
    keys: Sequence[str] = ()
    starts_jax: bool = False


def add_workdir(parser: Any, required: bool = True, text: str = "the work folder") -> None:
    parser.add_argument(
        "--workdir", type=_workdir, required=required, help=f"{text}, also gs://..."
    )


def add_step(parser: ArgumentParser) -> None:
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the best)")


def add_page(parser: ArgumentParser, method: bool = True, required: bool = True) -> None:
    """Where a configuration comes from: a file, or a task's defaults; `method`: of one method."""
    page = parser.add_mutually_exclusive_group(required=required)
    page.add_argument("--config", help=PAGE)
    page.add_argument("--task", help="its defaults, without a page; see ftjax list tasks")
    parser.add_argument("--model", help="model.path: a folder, a .gguf file, a hub id, a nickname")
    parser.add_argument("--data", help="data.path: a file, or a folder with a file for each split")
    if method:
        parser.add_argument("--method", help="method.name, see ftjax list methods")
    text = "say what keys of the configuration are, or those of a section, or all, and do no more"
    parser.add_argument("--explain", nargs="*", metavar="KEY", help=text)


def load_page(arguments: Namespace, overrides: Sequence[str]) -> Any:
    """The configuration that arguments and overrides ask for.

    Raises:
        UserError: a key or a value is wrong.
    """
    from ftjax.config import load_config

    return load_config(
        arguments.config or "", shorthands(arguments, overrides), task=arguments.task
    )


def shorthands(arguments: Namespace, overrides: Sequence[str]) -> list[str]:
    """Overrides, with those before them that have arguments of their own."""
    values = {"model.path": arguments.model, "data.path": arguments.data}
    values |= {"method.name": getattr(arguments, "method", None)}
    short = [f"--config.{key}={value!r}" for key, value in values.items() if value is not None]
    return [*short, *overrides]


def changes_of(overrides: Sequence[str]) -> dict[str, Any]:
    """Dotted keys and values of "--config.KEY=VALUE", as public functions take them."""
    from ftjax.config import parse_override

    return dict(map(parse_override, overrides))


def print_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """A line for each split; means over labels are named."""
    for split, metrics in scores.items():
        print(f"{split}: {_numbers(metrics)} ({metrics['examples']:,} examples)")
        if constant := metrics.get("baseline"):
            shown = {name: constant[name] for name in CONSTANT if name in constant}
            named = {**shown, "averages": metrics.get("averages", {})}
            print(f"{' ' * len(split)}  an answer that is always the same: {_numbers(named)}")


def _numbers(metrics: Mapping[str, Any]) -> str:
    from ftjax.tasks.base import spoken

    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    return ", ".join(f"{spoken(name, metrics)} {value:.4f}" for name, value in numbers.items())


def _workdir(text: str) -> Path:
    from ftjax.remote import located

    if not text:
        raise ArgumentTypeError("is empty: name a folder")
    try:
        return located(text)
    except UserError as error:
        raise ArgumentTypeError(str(error)) from error
