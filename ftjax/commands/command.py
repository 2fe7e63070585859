"""What a command is, and the arguments that several have."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftjax.errors import UserError

ALL = "any configuration key can be given as --config.KEY=VALUE"
PLACE = "mesh.*, model.dtype and model.attention can be given as --config.KEY=VALUE"
ROWS = f"data.* and train.eval_batch_size, {PLACE}"


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        help: what it does, in a line.
        arguments: adds its arguments to a parser.
        run: does it, with what was given and "--config.KEY=VALUE"; returns the exit code or None.
        keys: what of a configuration can be changed; empty: nothing.
        starts_jax: whether it runs on the devices that are there.
    """

    help: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace, Sequence[str]], int | None]
    keys: str = ""
    starts_jax: bool = False


def add_workdir(parser: Any, required: bool = True, text: str = "the work folder") -> None:
    parser.add_argument(
        "--workdir", type=_workdir, required=required, help=f"{text}, also gs://..."
    )


def add_step(parser: ArgumentParser) -> None:
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the best)")


def print_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """A line for each split."""
    for split, metrics in scores.items():
        numbers = [f"{k} {v:.4f}" for k, v in metrics.items() if isinstance(v, float)]
        print(f"{split}: {', '.join(numbers)} ({metrics['examples']:,} examples)")


def _workdir(text: str) -> Path:
    from ftjax.remote import located

    try:
        return located(text)
    except UserError as error:
        raise ArgumentTypeError(str(error)) from error
