"""What `ftjax generate` does: texts for prompts, for a file of them, or a conversation."""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ftjax import methods, pretrained, tuned
from ftjax.data.readers import READERS
from ftjax.errors import UserError
from ftjax.formats import adapter
from ftjax.formats.folder import load_tokenizer, locate
from ftjax.formats.vocabulary import with_words
from ftjax.generation import settings
from ftjax.generation.text import Generator
from ftjax.models import kind_of, read_config
from ftjax.parallel.agreement import require_same
from ftjax.parallel.mesh import make_mesh
from ftjax.paths import Flat
from ftjax.tasks.written import ready
from ftjax.training.records import write_text

HEADS = {"decoder": "causal_lm", "encoder-decoder": "seq2seq_lm"}


def run(arguments: Namespace, overrides: Sequence[str] = ()) -> None:
    """Runs the command.

    Args:
        arguments: of the command line.
        overrides: "--config.KEY=VALUE", of a work folder's configuration.

    Raises:
        UserError: the model has no language-model head, or the input is bad.
    """
    if arguments.output and not arguments.input:
        raise UserError("--output is where the texts for --input go: give --input")
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size must be positive, got {arguments.batch_size}")
    if arguments.step is not None and not arguments.workdir:
        raise UserError("--step is of a work folder: give --workdir")
    if arguments.adapter and not arguments.model:
        raise UserError("--adapter goes over a pretrained model: give --model")
    if overrides and not arguments.workdir:
        raise UserError(f"{overrides[0]} changes a run's configuration: give --workdir")
    if arguments.workdir:
        asked = {
            "model.dtype": arguments.dtype,
            "model.attention": arguments.attention,
            "mesh.tensor": arguments.tensor,
        }
        changes = [f"--config.{key}={value}" for key, value in asked.items() if value is not None]
        opened = open_workdir(arguments.workdir, [*overrides, *changes], arguments.step)
    else:
        tensor = 1 if arguments.tensor is None else arguments.tensor
        # On several hosts all devices, since each of them has to have a part.
        devices = jax.devices() if jax.process_count() > 1 else jax.devices()[:tensor]
        mesh = make_mesh(-1, 1, tensor, devices)
        dtype, attention = arguments.dtype or "float32", arguments.attention or "auto"
        opened = open_model(arguments.model, mesh, dtype, arguments.adapter, attention=attention)
    given = {name: getattr(arguments, name, None) for name in settings.SAME}
    changes = {name: value for name, value in given.items() if value is not None}
    generator = make_generator(*opened, changes=changes, stop=arguments.stop)
    if arguments.input:
        _write(generator, arguments)
    elif arguments.prompt:
        for number, prompt in enumerate(arguments.prompt):
            _print(generator, _said([], prompt) if arguments.chat else prompt, number)
    elif arguments.chat:
        if jax.process_count() > 1:
            raise UserError("a conversation is with one process; several take --prompt or --input")
        _converse(generator)
    else:
        raise UserError("generate needs --prompt, --input, or --chat for a conversation")


def open_model(
    name: str,
    mesh: Mesh,
    dtype: str = "float32",
    adapter_folder: Path | None = None,
    head: str = "",
    attention: str = "auto",
) -> tuple[tuned.Tuned, Flat, Path]:
    """A pretrained model, all of it frozen, in the compute dtype; or one under an adapter.

    Args:
        name: a folder, a .gguf file, a nickname or a hub id.
        mesh: where its parameters lie.
        dtype: of computation.
        adapter_folder: of PEFT.
        head: of a language model; empty: the one that generates.
        attention: `model.attention` of a configuration.

    Raises:
        UserError: it has no such head.
    """
    folder = locate(name)
    config = with_words(folder, read_config(folder))
    head = head or HEADS.get(kind_of(config), "")
    if not head:
        raise UserError(f"{name}: {config['model_type']} does not generate")
    method = adapter.read_method(adapter_folder) if adapter_folder else {"name": "prompting"}
    options = {"dtype": dtype, "attention": attention}
    model = tuned.build(
        config, methods.create(method), options, {"head": head}, jax.default_backend()
    )
    params, absent = pretrained.load(folder, model, mesh, jax.random.key(0))
    if absent:
        raise UserError(f"{folder} has no language-model head: it lacks {absent[0]!r}")
    if adapter_folder:
        params, _ = adapter.load_into(model, params, adapter_folder)
    return model, params, folder


def open_workdir(
    workdir: Path, overrides: Sequence[str] = (), step: int | None = None
) -> tuple[tuned.Tuned, Flat, Path, Any]:
    """The best model of a work folder, or that of another step, and its task.

    See `ftjax.training.reading`.
    """
    from ftjax.training.predictor import open_predictor  # with what training needs
    from ftjax.training.reading import read_config

    predictor = open_predictor(workdir, read_config(workdir, overrides), step)
    return predictor.run.tuned, predictor.params, predictor.run.folder, predictor.run.task


def make_generator(
    model: tuned.Tuned,
    params: Flat,
    folder: Path,
    task: Any = None,
    *,
    changes: Mapping[str, Any],
    stop: Sequence[str] = (),
) -> Generator:
    """A generator with a folder's tokenizer, and its settings, or those of the task that the model
    was trained for, under changes."""
    tokenizer = load_tokenizer(folder)
    asked = settings.of_folder(folder, **{**ready(task, tokenizer), **changes})
    return Generator(model, params, tokenizer, asked, stop)


def _said(before: Sequence[dict[str, str]], text: str) -> list[dict[str, str]]:
    return [*before, {"role": "user", "content": text}]


def _print(generator: Generator, prompt: Any, number: int = 0) -> str:
    """Prints a text while it comes, or several when they are there; returns the first."""
    shown, texts = "", [""]
    alone = generator.settings.num_return_sequences == 1
    for texts in generator.stream([prompt], 1 if alone else 16, number):
        if alone:
            print(texts[0][len(shown) :], end="", flush=True)
            shown = texts[0]
    if not alone:
        print("\n---\n".join(texts), end="")
    print(flush=True)
    return texts[0]


def _converse(generator: Generator) -> None:
    """A chat with whoever writes to standard input, until it ends."""
    messages: list[dict[str, str]] = []
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            messages = _said(messages, line.strip())
            messages.append({"role": "assistant", "content": _print(generator, messages)})


def _write(generator: Generator, arguments: Namespace) -> None:
    """Continues the prompts of a file, in batches."""
    rows = _read(arguments.input, "messages" if arguments.chat else "prompt")
    require_same(f"what is read of {arguments.input}", rows)
    size, lines = arguments.batch_size, []
    for start in range(0, len(rows), size):
        several = rows[start : start + size]
        prompts = [_chat(row) if arguments.chat else row["prompt"] for row in several]
        for row, texts in zip(several, generator(prompts, start), strict=True):
            text = texts[0] if generator.settings.num_return_sequences == 1 else texts
            lines.append(json.dumps({**row, "text": text}, ensure_ascii=False) + "\n")
    if arguments.output is None:
        print("".join(lines), end="")
    else:
        write_text(arguments.output, "".join(lines))
        print(f"{len(rows):,} texts: {arguments.output}")


def _chat(row: Mapping[str, Any]) -> Any:
    """A row's messages, and tools where it has any."""
    asked = {"messages": row["messages"], "tools": row.get("tools")}
    return asked if asked["tools"] else row["messages"]


def _read(file: Path, field: str) -> list[dict[str, Any]]:
    """The rows of a .jsonl file.

    Raises:
        UserError: a row is not an object with the field; file and row are named.
    """
    rows = []
    for number, row in READERS["json"][1](file, {}):
        if isinstance(row, UserError):
            raise row
        wanted = list if field == "messages" else str
        if not isinstance(row, dict) or not isinstance(row.get(field), wanted):
            raise UserError(f"{file}, row {number}: needs {field!r}, a {wanted.__name__}")
        for message in row[field] if field == "messages" else ():
            said = {"content", "tool_calls"} & {*message} if isinstance(message, dict) else ()
            if not said or "role" not in message:
                raise UserError(f"{file}, row {number}: a message needs 'role' and 'content'")
        rows.append(row)
    if not rows:
        raise UserError(f"{file} has no rows")
    return rows
