"""A tuned model as a Hugging Face folder or an adapter folder."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import jax
import numpy as np
from safetensors import SafetensorError

from ftjax.errors import UserError, nearest
from ftjax.formats.adapterhub.folder import export_adapterhub
from ftjax.formats.folder import (
    load_tokenizer,
    open_weights,
    read_config,
    stored_dtype,
)
from ftjax.formats.gguf.file import is_gguf
from ftjax.formats.gguf.tokenizer import end_tokens
from ftjax.formats.hf import mapping
from ftjax.formats.hf.plain import Plain
from ftjax.formats.hf.shards import FLOATS, SHARD_BYTES
from ftjax.formats.hf.tokenizer_files import copy_files
from ftjax.formats.hf.vocabulary import sized
from ftjax.formats.jsons import read_json, write_json
from ftjax.formats.peft import folder as peft
from ftjax.formats.sentence_transformers import writing as sentences
from ftjax.formats.sentence_transformers.modules import POOLING
from ftjax.methods import name_of
from ftjax.parallel.agreement import first, raise_together
from ftjax.parallel.gather import fetched
from ftjax.paths import Flat
from ftjax.process import transformers
from ftjax.remote import DRIVERS, is_remote, uploaded
from ftjax.tuned import Tuned

GENERATION, CARD = "generation_config.json", "README.md"
LABELS = "labels.json"  # of an adapter's folder: names of its head's outputs


@dataclass(frozen=True)
class Exported:
    """What is written of a work folder.

    Attributes:
        source: the base model's folder, or its .gguf file.
        base: what others find the base model by: a hub id, or a folder.
        tuned: the model under its method.
        params: its flat parameters.
        names: of a classifier's outputs.
        problem: a classifier's `problem_type`; None for other heads.
        dtype: of a merged model's numbers, see `ftjax.formats.hf.shards.FLOATS`; None: the base's.
        shard_bytes: largest size of a file of a merged model.
    """

    source: Path
    base: str
    tuned: Tuned
    params: Flat
    names: tuple[str, ...] = ()
    problem: str | None = "single_label_classification"
    dtype: str | None = None
    shard_bytes: int = SHARD_BYTES


def export_hf(output: Path, exported: Exported, own_head: bool = False) -> str:
    """Writes the merged model, as `transformers` calls the family's model with this head.

    `transformers` has no mean-pooling BERT classifier and no embeddings of sentences, so for those
    the folder is the plain encoder, and sentence-transformers' modules add what comes after it.

    Args:
        output: the folder.
        exported: what is written.
        own_head: the folder is for another run of ours, of whatever head.

    Returns:
        What `transformers` cannot read of it; empty for nothing.

    Raises:
        UserError: the method cannot be merged.
    """
    tuned, source = exported.tuned, exported.source
    dtype = exported.dtype or stored_dtype(source)
    config = {**sized(read_config(source), tuned.config.vocab_size), "dtype": dtype}
    for other in ("torch_dtype", "auto_map"):  # code that a folder may bring is not copied
        config.pop(other, None)
    base, paths = open_weights(source), list(tuned.base.shapes)
    plain = Plain(tuned, exported.params, base)
    encoder = sentences.plain_encoder(tuned)
    if encoder:
        paths = [path for path in paths if not tuned.names.in_head(path)]
    tensors = plain.tensors(paths, prefix=not encoder)
    if encoder or own_head:
        tensors |= _left_out(tuned, base, paths, "" if encoder else tuned.names.prefix)
    head = None if encoder else tuned.config.heads.get(tuned.model.head)
    config["architectures"] = [head.architecture if head else tuned.names.model]
    if exported.names:
        config |= sentences.labels_of(exported.names)
    if exported.problem:
        config["problem_type"] = exported.problem
    padded = tuned.names.kind == "decoder" and tuned.model.head == "classification"
    if padded and config.get("pad_token_id") is None:
        config["pad_token_id"] = _pad(source)
    mapping.write_folder(output, source, config, tensors, dtype, exported.shard_bytes)
    if padded:
        _name_pad(output, config["pad_token_id"])
    if tuned.model.head in ("causal_lm", "seq2seq_lm"):
        _write_generation(output, source)
    if own_head and tuned.model.head != "classification":  # of which the pooling is its own
        copy_files(source, output, ("1_Pooling/config.json", GENERATION))
    if encoder:
        after = {path: plain.leaf(path) for path in tuned.base.shapes if tuned.names.in_head(path)}
        sentences.write_modules(output, source, tuned, after, exported.names)
    if not own_head:
        _write_card(output, exported, config["architectures"][0])
    return sentences.described(tuned) if encoder else ""


def _left_out(
    tuned: Tuned, base: Mapping[str, Any], paths: Iterable[str], prefix: str
) -> dict[str, Any]:
    """Tensors of the base that this head does without, so that nothing is missing."""
    written = {name for path in paths for name, _ in tuned.names.stored(path)}
    modules, tensors = set(tuned.base.names.values()), {}
    for name in base:
        bare = name.removeprefix(f"{tuned.names.usual}.")
        if bare.rsplit(".", 1)[0] in modules and bare not in written:
            tensors[f"{prefix}.{bare}" if prefix else bare] = base[name]
    return tensors


def _pad(source: Path) -> int:
    """What rows are padded with for a classifier of a decoder, whose base says nothing of it.

    `transformers` reads the last token that is no padding, so it is none that ends a text.
    """
    tokenizer = load_tokenizer(source)
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    last = tokenizer("a")["input_ids"][-1]
    usual = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    return next((token for token in usual if token is not None and token != last), last)


def _name_pad(output: Path, pad: int) -> None:
    """Has the tokenizer pad with what the model takes for padding, where it has no such token."""
    tokenizer, file = load_tokenizer(output), output / "tokenizer_config.json"
    if tokenizer.pad_token_id is None:
        token = tokenizer.convert_ids_to_tokens(pad)
        write_json(file, {**(read_json(file) if file.exists() else {}), "pad_token": token})


def _write_generation(output: Path, source: Path) -> None:
    """How the base's texts are generated: its own file, or as `transformers` makes it."""
    if source.is_dir() and (source / GENERATION).exists():
        shutil.copyfile(source / GENERATION, output / GENERATION)
        return
    library = transformers()
    settings = library.GenerationConfig.from_model_config(
        library.AutoConfig.from_pretrained(output)
    )
    if is_gguf(source) and (ends := end_tokens(source)):
        settings.eos_token_id = ends if len(ends) > 1 else ends[0]
    write_json(output / GENERATION, json.loads(settings.to_json_string()))


def export_peft(output: Path, exported: Exported) -> str:
    """Writes an adapter folder that `peft` loads: with its head, without the base.

    Where the folder would be the plain encoder, so is what the adapter is of, and what comes after
    it lies beside it as modules of sentence-transformers.

    Returns:
        What PEFT cannot read of it; empty for nothing.

    Raises:
        UserError: PEFT has no such method.
    """
    tuned, names = exported.tuned, exported.names
    text = f"Labels: {', '.join(names)}." if names else ""
    encoder, own = sentences.plain_encoder(tuned), _own(exported)
    text += f" {sentences.described(tuned)}" if encoder else ""
    peft.write(output, exported.source, tuned, own, text, exported.base)
    if names:  # in the order of the head's outputs, which PEFT has no place for
        write_json(output / LABELS, list(names))
    _write_beside(output, exported, own)
    return sentences.described(tuned) if encoder else ""


def _write_beside(output: Path, exported: Exported, own: Flat) -> None:
    """What an adapter's library has no place for: pooling, and the head after means."""
    tuned = exported.tuned
    if sentences.plain_encoder(tuned):
        head = {path: np.asarray(x) for path, x in own.items() if tuned.names.in_head(path)}
        sentences.write_beside(output, tuned, head, exported.names)
    elif tuned.model.head == "classification" and (exported.source / POOLING).exists():
        sentences.write_pooling(output, tuned)  # otherwise than the base's


def _write_card(output: Path, exported: Exported, architecture: str) -> None:
    """README.md of a merged model."""
    tuned, names = exported.tuned, exported.names
    encoder = sentences.plain_encoder(tuned)
    lines = ["---", f"library_name: {'sentence-transformers' if encoder else 'transformers'}"]
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", exported.base):
        lines.append(f"base_model: {exported.base}")
    method = name_of(tuned.method)
    lines += ["---", "", f"`{architecture}`, fine-tuned with ftjax ({method}).", ""]
    if names:
        lines += [f"Labels: {', '.join(names)}.", ""]
    if encoder:
        lines += [sentences.described(tuned), sentences.reading(tuned)]
    (output / CARD).write_text("\n".join(lines), encoding="utf-8")


def _own(exported: Exported) -> Flat:
    """The parameters, those that an adapter's folder may hold on this host: all but frozen ones."""
    tuned = exported.tuned

    def held(path: str, leaf: Any) -> Any:
        base = path in tuned.base.shapes and not tuned.names.in_head(path)
        return leaf if base and not tuned.partition.is_trainable(path) else fetched(leaf)

    return {path: held(path, leaf) for path, leaf in exported.params.items()}


def write_export(
    kind: str,
    output: Path,
    source: Path,
    tuned: Tuned,
    params: Flat,
    names: tuple[str, ...] = (),
    problem: str | None = "single_label_classification",
    **options: Any,
) -> str:
    """Writes `kind` ("hf", "peft" or "adapterhub") to a new folder: whole, or not at all.

    On several hosts all call it, and the leader alone writes. See `Exported` for the arguments;
    `options` are its others, of which `base` is `source` unless given.

    Returns:
        What is left out; empty where all is written.

    Raises:
        UserError: there is no such model, or method, in that form.
    """
    exported = Exported(
        source, options.pop("base", str(source)), tuned, params, names, problem, **options
    )
    writers = {"hf": export_hf, "peft": export_peft, "adapterhub": _export_adapterhub}
    if kind not in writers:
        raise UserError(f"--format {kind} is not known{nearest(str(kind), writers)}")
    if exported.dtype not in (None, *FLOATS):
        raise UserError(f"--dtype {exported.dtype} is not known{nearest(exported.dtype, FLOATS)}")
    if kind != "hf" and exported.dtype:
        raise UserError(f"--dtype is of --format hf; adapters are float32 in --format {kind}")
    if not tuned.method.trains:
        raise UserError("prompting trains nothing: there is nothing to export")
    if tuned.model.pooling == "entities":
        raise UserError(
            "task.pooling=entities: no library has a classifier that reads entities, so this model "
            "cannot be exported; task.pooling=cls and mean can"
        )
    if kind != "hf" and sized(config := read_config(source), tuned.config.vocab_size) != config:
        raise UserError(
            f"model.resize_vocabulary gave the model more words than {source} has, and an adapter "
            "folder holds none of them; export --format hf"
        )
    if str(output).partition(":/")[0] in DRIVERS:
        raise UserError(f"--output {output} must be a folder of this machine")
    output = output.resolve()
    first(partial(_require_empty, output))
    return whole(output, partial(writers[kind], exported=exported))


def _require_empty(output: Path) -> None:
    if _is_filled(output):
        raise UserError(f"--output {output} exists and is not empty")


def _export_adapterhub(output: Path, exported: Exported) -> str:
    tuned, own = exported.tuned, _own(exported)
    names, base = exported.names, exported.base
    note = export_adapterhub(output, exported.source, tuned, own, names, base=base)
    _write_beside(output, exported, own)
    return note


def whole(output: Path, write: Callable[[Path], str | None]) -> str:
    """Has a folder written under another name, and renames it when it is whole.

    On several hosts all call it, the leader alone writes, and where that fails all raise; what
    others write is thrown away. Of processes that write the same folder at once the first wins, and
    clears away what the others, or killed ones, have begun. In an object store config.json, without
    which a folder is none, comes last.

    Args:
        output: the folder, absent or empty.
        write: is called with a folder of this machine, and says what it leaves out.
    """
    note, problem, writes = "", None, jax.process_index() == 0
    beside = writes and not is_remote(output)
    with TemporaryDirectory() as elsewhere:
        unfinished = Path(elsewhere) / output.name
        if beside:
            unfinished = output.with_name(f".{output.name}.{uuid4().hex}.partial")
        try:
            note = write(unfinished) or ""
            if beside:
                unfinished.rename(output)  # which may be there, if it is empty
            elif writes:
                uploaded(unfinished, output, last="config.json")
        except UserError as error:
            problem = error
        except (OSError, SafetensorError) as error:  # the latter of a disk that is full
            late = beside and _is_filled(output)
            why = "another export was first" if late else f"could not be written: {error}"
            problem = UserError(f"{output}: {why}")
        finally:
            if beside:
                shutil.rmtree(unfinished, ignore_errors=True)
        if beside and not problem:
            for begun in output.parent.glob(f".{escape(output.name)}.*.partial"):
                shutil.rmtree(begun, ignore_errors=True)
    raise_together(problem, f"{output} is not written, as another host says")
    return note


def _is_filled(output: Path) -> bool:
    return output.exists() and (not output.is_dir() or any(output.iterdir()))
