"""`ftjax generate`: texts for prompts, for a file of them, or a conversation."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftjax.changes import PLACE
from ftjax.commands.command import Command, add_step, add_workdir, changes_of
from ftjax.errors import UserError

CHOICES = {  # how tokens are chosen: option → (type, help)
    "max_new_tokens": (int, "at most so many (default 128)"),
    "min_new_tokens": (int, "at least so many"),
    "temperature": (float, "0 for the most probable token, otherwise tokens are sampled"),
    "top_k": (int, "sample among so many of the most probable"),
    "top_p": (float, "sample among the fewest whose probabilities reach it"),
    "min_p": (float, "sample among those with this share of the highest probability"),
    "repetition_penalty": (float, "above 1 makes what was there less likely"),
    "no_repeat_ngram_size": (int, "no run of so many tokens comes twice"),
    "num_beams": (int, "hypotheses of beam search"),
    "length_penalty": (float, "above 0 favours longer beams"),
    "early_stopping": (lambda text: {"true": True, "false": False}.get(text, text), "of beams"),
    "num_return_sequences": (int, "texts a prompt"),
    "prompt_lookup_num_tokens": (int, "guessed from what was written before; the text is the same"),
    "num_assistant_tokens": (int, "guessed by --draft (default 4); the text is the same"),
    "seed": (int, "of sampling (default 0)"),
}


def add_arguments(parser: ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    add_workdir(source, required=False, text="a work folder of a language model")
    source.add_argument("--model", help="a folder, a .gguf file, a nickname or a hub id")
    parser.add_argument("--adapter", type=Path, help="a PEFT folder, over --model")
    prompts = parser.add_mutually_exclusive_group()
    prompt = "a text to go on from, or to read, with nothing put before it; may be repeated"
    prompts.add_argument("--prompt", action="append", help=prompt)
    prompts.add_argument("--input", type=Path, help="a .jsonl with prompt, or messages for --chat")
    parser.add_argument("--output", type=Path, help="the .jsonl to write for --input")
    parser.add_argument("--chat", action="store_true", help="by the model's chat template")
    parser.add_argument("--stop", action="append", default=[], help="a text that ends a text")
    parser.add_argument("--batch-size", type=int, default=8, help="of --input (default 8)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of computation")
    held = "that weights are held in; bfloat16 and int8 are read faster (default float32)"
    parser.add_argument("--weights", choices=("float32", "bfloat16", "int8"), help=held)
    parser.add_argument("--draft", help="a smaller model of the same words that guesses tokens")
    kernels = "auto (default, by what it runs on), xla, cudnn, triton, gpu or splash"
    parser.add_argument("--attention", help=kernels)
    parser.add_argument("--tensor", type=int, help="devices that share each layer")
    for name, (kind, text) in CHOICES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    add_step(parser)


def run(arguments: Namespace, overrides: Sequence[str]) -> None:
    _check(arguments, overrides)
    import jax

    from ftjax.files import check_writable
    from ftjax.generation import settings
    from ftjax.generation.console import converse, print_text, with_turn
    from ftjax.generation.load import make_generator, open_model, tensor_mesh

    if arguments.output:
        check_writable(arguments.output)
    values = {name: getattr(arguments, name, None) for name in settings.SAME}
    changes = {name: value for name, value in values.items() if value is not None}
    opened = _opened(arguments, overrides)
    draft = arguments.draft and open_model(arguments.draft, tensor_mesh(arguments.tensor or 1))
    generator = make_generator(
        *opened,
        changes=changes,
        stop=arguments.stop,
        weights=arguments.weights or "float32",
        prompts=arguments.batch_size if arguments.input else 1,
        draft=draft,
    )
    if arguments.input:
        _write(generator, arguments)
    elif arguments.prompt:
        for number, prompt in enumerate(arguments.prompt):
            print_text(generator, with_turn([], prompt) if arguments.chat else prompt, number)
    else:
        if jax.process_count() > 1:
            raise UserError("a conversation is with one process; several take --prompt or --input")
        converse(generator)


def _check(arguments: Namespace, overrides: Sequence[str]) -> None:
    """Raises UserError where arguments do not go together."""
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
    if not (arguments.input or arguments.prompt or arguments.chat):
        raise UserError("generate needs --prompt, --input, or --chat for a conversation")


def _opened(arguments: Namespace, overrides: Sequence[str]) -> tuple:
    """The model, its parameters, its folder, and of a work folder what its task says of prompts."""
    from ftjax.evaluation.predictor import open_writer
    from ftjax.generation.load import open_model, tensor_mesh

    if arguments.workdir:
        values = {
            "model.dtype": arguments.dtype,
            "model.attention": arguments.attention,
            "mesh.tensor": arguments.tensor,
        }
        changes = {key: value for key, value in values.items() if value is not None}
        return open_writer(arguments.workdir, changes_of(overrides) | changes, arguments.step)
    mesh = tensor_mesh(1 if arguments.tensor is None else arguments.tensor)
    dtype, attention = arguments.dtype or "float32", arguments.attention or "auto"
    return open_model(arguments.model, mesh, dtype, arguments.adapter, attention=attention)


def _write(generator: Any, arguments: Namespace) -> None:
    from ftjax.files import write_text
    from ftjax.generation.file import generate_rows

    rows = generate_rows(generator, arguments.input, arguments.chat, arguments.batch_size)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if arguments.output is None:
        print(lines, end="")
    else:
        write_text(arguments.output, lines)
        print(f"{len(rows):,} texts: {arguments.output}")


COMMAND = Command("continue prompts, or chat", add_arguments, run, PLACE, starts_jax=True)
