"""`ftjax export`: a model in another format."""

import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path

from ftjax.changes import PLACE
from ftjax.commands.command import Command, add_step, add_workdir, changes_of


def add_arguments(parser: ArgumentParser) -> None:
    add_workdir(parser)
    parser.add_argument("--format", required=True, choices=("hf", "peft", "adapterhub"))
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    floats = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=floats, help="of --format hf (default: the base's)")
    size = "largest size of a file of --format hf, such as 500MB (default 5GB)"
    parser.add_argument("--max-shard-size", type=_bytes, default="5GB", help=size)
    add_step(parser)


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax.runs.export import export

    step, note = export(
        arguments.workdir,
        arguments.format,
        arguments.output,
        step=arguments.step,
        dtype=arguments.dtype,
        shard_bytes=arguments.max_shard_size,
        **changes_of(overrides),
    )
    print(f"step {step} exported as {arguments.format}: {arguments.output}")
    if note:
        print(note)


def _bytes(text: str) -> int:
    """A size such as 500MB, in bytes."""
    matched = re.fullmatch(r"(\d+)(B|KB|MB|GB)", text.strip().upper())
    if not matched or not int(matched[1]):
        raise ArgumentTypeError(f"{text!r} is no size such as 500MB or 5GB")
    return int(matched[1]) * 1000 ** ("B", "KB", "MB", "GB").index(matched[2])


HELP = "write the best checkpoint in another format"
COMMAND = Command(HELP, add_arguments, run, PLACE, starts_jax=True)
