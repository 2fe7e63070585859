"""The shapes of a run's batches, kept in its work folder: what reads it needs no other programs."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ftjax.data.encode import Examples
from ftjax.data.loading import Vary
from ftjax.data.planning import Layout
from ftjax.errors import UserError
from ftjax.files import write_json
from ftjax.formats.jsons import read_json
from ftjax.options import Option, Positive, options
from ftjax.parallel.agreement import first

NAME, SIZE = "layout.json", "batch_size"


def keep_layout(workdir: Path, layout: Layout, batch_size: int) -> None:
    """Notes the shapes of batches of `batch_size` examples."""
    write_json(workdir / NAME, {SIZE: batch_size, **asdict(layout)})


def kept_layout(
    workdir: Path, examples: Examples, batch_size: int, ways: int, vary: Vary | None = None
) -> Layout | None:
    """The shapes of a run's batches; None where they are not known, or examples do not fit.

    Args:
        workdir: of the run.
        examples: before `vary`.
        batch_size: that is wanted.
        ways: that packed rows must divide into.
        vary: what makes those that are run.
    """
    layout = first(partial(_saved, workdir / NAME, batch_size))
    layout = None if layout is None else _layout_of(layout)
    variants = [examples] if vary is None else [examples, vary.shaped(examples)]
    if layout is None or (layout.rows and layout.multiple % ways):
        return None
    return layout if all(_fits(layout, variant) for variant in variants) else None


def _saved(file: Path, batch_size: int) -> dict | None:
    """What a file says, of batches of another size; None where it is absent or damaged."""
    try:
        saved = read_json(file) if file.exists() else {}
        layout = _layout_of({name: saved[name] for name in options(Layout)})
        size = Option(Positive, 1, "").read(SIZE, saved[SIZE])
    except (UserError, LookupError, TypeError):
        return None
    return asdict(layout.scaled(batch_size / size))


def _layout_of(saved: dict) -> Layout:
    return Layout(
        **{name: option.read(name, saved[name]) for name, option in options(Layout).items()}
    )


def _fits(layout: Layout, examples: Examples) -> bool:
    written = None if examples.decoder is None else examples.decoder.lengths
    return _within(layout.lengths, examples.lengths) and (
        written is None or _within(layout.written, written)
    )


def _within(most: Sequence[int], lengths: Sequence[int]) -> bool:
    return bool(most) and max(lengths) <= max(most)
