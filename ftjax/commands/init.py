"""`ftjax init`: a page of configuration to begin from."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ftjax.commands.command import Command
from ftjax.errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="the page to write, such as reviews.py")
    parser.add_argument("--task", default="classification", help="see ftjax list tasks")
    parser.add_argument("--method", default="lora", help="see ftjax list methods (default lora)")
    parser.add_argument("--model", default="", help="a folder, a .gguf file, a hub id, a nickname")
    parser.add_argument("--data", default="", help="a file, or a folder with a file for each split")


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    from ftjax.config.page import page
    from ftjax.remote import create

    file = arguments.file
    if file.suffix != ".py":
        raise UserError(f"{file}: a page is Python and ends in .py")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent} does not exist")
    text = page(str(file), arguments.task, arguments.method, arguments.model, arguments.data)
    if not create(file, text):
        raise UserError(f"{file} is there already")
    print(f"written: {file}; then: ftjax train --config {file} --workdir runs/{file.stem}")


COMMAND = Command("write a page of configuration to begin from", add_arguments, run)
