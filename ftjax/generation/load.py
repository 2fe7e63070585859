"""Pretrained models to write with, also under an adapter."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ftjax import methods, pretrained, tuned
from ftjax.build import build_tuned
from ftjax.errors import UserError, require
from ftjax.formats import adapter
from ftjax.formats.folder import load_tokenizer, locate
from ftjax.formats.hf.vocabulary import with_words
from ftjax.generation import settings
from ftjax.generation.text import Generator
from ftjax.generation.weights import narrowed, plain
from ftjax.models import kind_of, read_config
from ftjax.parallel.mesh import make_mesh
from ftjax.paths import Flat
from ftjax.tasks.written import ready

GUESSED = 4  # tokens, of a draft model where nothing is said
HEADS = {"decoder": "causal_lm", "encoder-decoder": "seq2seq_lm"}


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
    model = build_tuned(
        config, methods.create(method), options, {"head": head}, jax.default_backend()
    )
    params, absent = pretrained.load(folder, model, mesh, jax.random.key(0))
    if absent:
        raise UserError(f"{folder} has no language-model head: it lacks {absent[0]!r}")
    if adapter_folder:
        params, _ = adapter.load_into(model, params, adapter_folder)
    return model, params, folder


def make_generator(
    model: tuned.Tuned,
    params: Flat,
    folder: Path,
    task: Any = None,
    rewrite: Callable[[Any], Any] | None = None,
    *,
    changes: Mapping[str, Any],
    stop: Sequence[str] = (),
    weights: str = "float32",
    prompts: int = 1,
    draft: tuple[tuned.Tuned, Flat, Path] | None = None,
) -> Generator:
    """A generator with a folder's tokenizer, and its settings, or those of the task that the model
    was trained for, under changes.

    Args:
        model: in place, as its parameters, of a folder.
        task: that it was trained for.
        rewrite: see `Generator`.
        changes: of the settings.
        stop: see `Generator`.
        weights: that it is held in, see `narrowed`; float32: as it is.
        prompts: at once, mostly: for which weights are arranged.
        draft: a smaller model of the same words that guesses tokens, as `open_model` gives it.

    Raises:
        UserError: the draft model has another tokenizer; what `narrowed` and `Generator` raise.
    """
    tokenizer = load_tokenizer(folder)
    if draft is not None:
        changes = {"num_assistant_tokens": GUESSED, **changes}
        same = load_tokenizer(draft[2]).get_vocab() == tokenizer.get_vocab()
        require(same, f"{draft[2]} has other words than {folder}: it cannot guess its tokens")
    options = settings.of_folder(folder, **{**ready(task, tokenizer), **changes})
    each = max(options.num_return_sequences, options.num_beams) * (options.ahead + 1)
    model, params = narrowed(model, params, weights, prompts * each)
    if options.ahead:
        model, params = plain(model, params)
    return Generator(
        model, params, tokenizer, options, stop, rewrite=rewrite, draft=draft and draft[:2]
    )


def tensor_mesh(tensor: int = 1) -> Mesh:
    """A mesh whose devices share each layer; on several hosts all devices, for each has a part."""
    devices = jax.devices() if jax.process_count() > 1 else jax.devices()[:tensor]
    return make_mesh(-1, 1, tensor, devices)
