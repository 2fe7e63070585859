"""What a model in place writes for the rows of a split."""

from collections.abc import Sequence
from typing import Any

from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.generation import decode, settings
from ftjax.generation.batches import in_batches
from ftjax.generation.text import Generator, Text
from ftjax.partition import merge
from ftjax.paths import Flat
from ftjax.setup.model import Run
from ftjax.tasks.written import Written, merged, ready


def generator_of(run: Run, params: Flat) -> Generator:
    """What writes for a `Written` task as it is scored: the most probable texts.

    It reads of prompts as many tokens as training reads of texts.

    Raises:
        UserError: the folder or the task asks for what cannot be.
    """
    tokenizer = load_tokenizer(run.folder)
    changes = {"temperature": 0.0, "num_return_sequences": 1, **ready(run.task, tokenizer)}
    options = settings.of_folder(run.folder, **changes)
    longest = run.config.data.max_length
    return Generator(run.tuned, merge(params, run.frozen), tokenizer, options, longest=longest)


def write(
    run: Run, params: Flat, prompts: Sequence[Any], generator: Generator | None = None
) -> list[Text]:
    """What is written after each prompt, or chat, without spaces around it.

    Args:
        run: the model, for a `Written` task.
        params: its trainable leaves.
        prompts: in any order.
        generator: of the same run, whose programs are used again.
    """
    if generator is None:
        generator = generator_of(run, params)
    generator = generator.with_params(merge(params, run.frozen))
    texts = in_batches(generator.likely, prompts, run.config.train.eval_batch_size)
    return [text._replace(text=text.text.strip()) for (text,) in texts]


def is_written(run: Run) -> bool:
    """Whether the task is scored by what is written."""
    return isinstance(run.task, Written) and bool(run.task.generate)


def _scored_prompts(run: Run, split: Split) -> tuple[list[Any], list[list[str]], list[list[int]]]:
    """The first `task.generate` prompts of a split that something is wanted of, what, and the
    rows that ask so."""
    every = merged(run.task.prompts(split), run.task.references(split))
    entries = [entry for entry in zip(*every, strict=True) if entry[1]]
    entries = entries if run.task.generate < 0 else entries[: run.task.generate]
    return tuple([entry[part] for entry in entries] for part in range(3))


def check_written(run: Run, split: Split) -> dict[str, Any]:
    """Checks before training that a split can be written for, and be scored: a row of the report.

    Raises:
        UserError: its prompts cannot be read, the model has no room for answers, or a metric
            cannot be had.
    """
    prompts, references, _ = _scored_prompts(run, split)
    generator = generator_of(run, run.trainable)
    try:
        decode.check(run.tuned, generator.settings, 1)
        cut = sum(is_long for _, is_long in generator.encode.tokens(prompts))
        run.task.written([accepted[0] for accepted in references[:1]], references[:1])
    except UserError as error:
        raise UserError(f"{split.file}: task.generate={run.task.generate}: {error}") from error
    counts = {"rows_in": len(split.rows), "rows_out": len(prompts), "cut": cut}
    return {"step": "prompt", **counts}


def written_scores(
    run: Run,
    params: Flat,
    split: Split,
    generator: Generator | None = None,
    texts_by_row: dict[int, Text] | None = None,
) -> dict[str, Any]:
    """Metrics of what is written for the first `task.generate` prompts that have a reference.

    Rows with one prompt are written for once, and all of them say what is wanted.

    Args:
        run: the model.
        params: its trainable leaves.
        split: with answers.
        generator: see `write`.
        texts_by_row: what is written is put here, by index of the row.
    """
    if not is_written(run):
        return {}
    prompts, references, rows = _scored_prompts(run, split)
    if not prompts:
        return {}
    texts = write(run, params, prompts, generator)
    if texts_by_row is not None:
        texts_by_row |= {
            i: text for numbers, text in zip(rows, texts, strict=True) for i in numbers
        }
    return {**run.task.written([text.text for text in texts], references), "written": len(prompts)}
