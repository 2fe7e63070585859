"""PEFT adapter folders, written and read: `adapter_config.json`, `adapter_model.safetensors`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ftjax.errors import UserError, nearest, require
from ftjax.formats.folder import open_weights, read_json
from ftjax.formats.guard import named
from ftjax.formats.hf import mapping
from ftjax.formats.hf.weights import arrays_of, largest_axis
from ftjax.formats.peft import prompt_tables as tables
from ftjax.formats.peft.config import agree, method_of, patterns, refuse, written
from ftjax.formats.peft.forms import FORMS, Form
from ftjax.formats.peft.pieces import (
    INSIDE,
    Piece,
    form_of,
    join,
    key_of,
    own_paths,
    pieces_of,
    prefixed,
    take,
    uncut,
)
from ftjax.formats.peft.saved_modules import changed, plain_names, refuse_resized, saved
from ftjax.methods import hyperparameters
from ftjax.names import shape_of
from ftjax.parallel.mesh import placed_like
from ftjax.paths import Flat, expand
from ftjax.tuned import Tuned

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"  # as older versions wrote it


def _adapter(tuned: Tuned) -> Tuned:
    """The model as of the method that is over a quantized base, where it is: as PEFT names it."""
    inner = getattr(tuned.method, "inner", tuned.method)
    whole = replace(tuned, method=inner)
    if inner is not tuned.method and "init_lora_weights" in form_of(whole).constants:
        name = type(inner).__name__
        raise UserError(f"PEFT starts {name} from a base that is not quantized; use --format hf")
    return whole


def to_peft(tuned: Tuned, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """An adapter as PEFT has it.

    Args:
        tuned: the model under its method.
        params: those to write, or their gradients: of the method and of the head.

    Returns:
        adapter_config.json's mapping, and tensors by name.

    Raises:
        UserError: PEFT has no such method, or the adapter has no form there.
    """
    tuned = _adapter(tuned)
    form, inside = form_of(tuned), INSIDE
    config = written(tuned, form)
    if prefixed(tuned) and tuned.names.prefix:
        inside += f"{tuned.names.prefix}."
    own = {path: np.asarray(params[path]) for path in own_paths(tuned, form) if path in params}
    held: dict[str, list[tuple[Piece, np.ndarray]]] = {}
    for path, array in own.items():
        pieces = pieces_of(tuned, form, path)
        for piece in pieces:
            if piece.module and piece.part.raw:
                raise UserError(
                    f"{piece.part.name} is a parameter of its own in transformers, not a module "
                    "that PEFT could adapt; use --format hf, or other method.targets"
                )
        layers = array.reshape(len(pieces), *array.shape[path != expand(path)[0] :])
        for piece, layer in zip(pieces, layers, strict=True):
            key = key_of(tuned, piece, inside)
            held.setdefault(key, []).append((piece, piece.leaf.store(layer)))
    tensors = {key: join(key, parts) for key, parts in held.items()}
    if form.table:
        tensors[tables.TABLE] = tables.to_table(tuned, params)
    if prefixed(tuned) and not tuned.base.of_words:
        head = {path: np.asarray(x) for path, x in params.items() if tuned.names.in_head(path)}
        head_tensors = mapping.to_tensors(head, tuned.names, True)
        tensors |= {_outside(form) + name: array for name, array in head_tensors.items()}
    return config, tensors


def write(
    folder: Path,
    source: Path,
    tuned: Tuned,
    params: Mapping[str, Any],
    text: str = "",
    base: str = "",
) -> None:
    """Writes an adapter folder that `peft` loads: with its head, without the base.

    Args:
        folder: may exist.
        source: the base model's folder.
        tuned: the model under its method.
        params: flat parameters.
        text: what README.md says besides.
        base: what others find the base model by; empty: its folder.
    """
    config, tensors = to_peft(tuned, params)
    path = changed(tuned, params, open_weights(source))
    if path:
        raise UserError(
            f"{path!r} of the base is not what {source} has, since training began from an adapter "
            "with parameters of the base: a PEFT folder would lose them; use --format hf"
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config["base_model_name_or_path"] = base or str(source)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    name = type(tuned.method).__name__
    (folder / "README.md").write_text(
        f"---\nlibrary_name: peft\n---\n\nAn adapter ({name}) trained with ftjax. {text}\n",
        encoding="utf-8",
    )


def read(folder: Path) -> dict[str, Any]:
    """The settings of the method whose adapter a folder holds, for `methods.create`.

    Its targets are the modules that the file has, whatever the configuration's pattern is.

    Raises:
        UserError: the folder is damaged, or its method is not known here.
    """
    config, tensors = read_json(folder / CONFIG), _open(folder)
    name = method_of(folder / CONFIG, config)
    form = FORMS[name]
    refuse(form, folder / CONFIG, config)
    settings = {ours: config[theirs] for ours, theirs in form.fields.items() if theirs in config}
    if form.table:
        theirs, most = form.fields["length"], largest_axis(tensors)
        problem = f"{folder / CONFIG}: {theirs}={config.get(theirs)}, and no tensor is as large"
        require(settings.get("length", 0) <= most, problem)
        return {"name": name, **settings}
    selected: dict[str, tuple[str, ...]] = {}
    for key, tensor in tensors.items():
        for leaf in form.leaves.values():
            if key.startswith(INSIDE) and leaf.fits(key, tensor.shape):
                module = key.removeprefix(INSIDE).removesuffix(f".{leaf.suffix}")
                before = selected.setdefault(leaf.selected, ())
                selected[leaf.selected] = (*before, *((module,) if module not in before else ()))
                break
    if not selected:
        raise UserError(f"{folder / WEIGHTS} has no tensor of {form.kind}")
    for leaf in form.leaves.values():
        selected.setdefault(leaf.selected, ("none",))
    if form.patterned:
        with named(folder / CONFIG):
            settings |= patterns(form, config, tensors, selected["targets"])
    known = hyperparameters(name)
    return {"name": name, **settings, **{k: v for k, v in selected.items() if k in known}}


def load_into(tuned: Tuned, params: Flat, folder: Path) -> tuple[Flat, list[str]]:
    """Parameters with an adapter's in the place of the method's, and of the head's.

    Args:
        tuned: the model under the folder's method.
        params: flat parameters, whose shardings are kept.
        folder: of the adapter.

    Returns:
        The parameters, and the paths of the head's parameters that the folder lacks.

    Raises:
        UserError: a hyperparameter, a target or a tensor of the folder is not the method's.
    """
    tuned = _adapter(tuned)
    form, config = form_of(tuned), read_json(folder / CONFIG)
    tensors = _open(folder)
    known = (tuned.names.prefix, tuned.names.usual)
    prefixes = [f"{INSIDE}{prefix}." for prefix in known if prefix] + [INSIDE]
    inside = next(p for p in prefixes if p == INSIDE or any(k.startswith(p) for k in tensors))
    with named(folder / CONFIG):
        agree(tuned, form, folder / CONFIG, config, inside.removeprefix(INSIDE))
    if form.kind == "ADALORA":
        tensors = uncut(str(folder / WEIGHTS), tensors, config.get("rank_pattern") or {})
    used, loaded, absent = set(), {}, []
    for path in own_paths(tuned, form):
        shape, layers = tuned.shapes[path].shape, []
        pieces = pieces_of(tuned, form, path)
        for piece in pieces:
            key = key_of(tuned, piece, inside)
            if key not in tensors:
                raise UserError(
                    f"{folder / WEIGHTS} lacks {key!r} of parameter {path!r}: method.targets or "
                    f"another hyperparameter differs{nearest(key, tensors)}"
                )
            used.add(key)
            inner = shape[path != expand(path)[0] :]
            layers.append(take(f"{folder / WEIGHTS}: {key!r}", tensors[key], piece, inner))
        loaded[path] = np.stack(layers).reshape(shape)
    if form.table:
        if tables.TABLE not in tensors:
            raise UserError(f"{folder / WEIGHTS} lacks {tables.TABLE!r}")
        used.add(tables.TABLE)
        loaded |= tables.from_table(tuned, tensors[tables.TABLE], str(folder / WEIGHTS))
    for path in (path for path in tuned.shapes if tuned.names.in_head(path)):
        stored = [(_outside(form) + name, part) for name, part in tuned.names.stored(path)]
        if any(key not in tensors for key, _ in stored):
            absent.append(path)
            continue
        used.update(key for key, _ in stored)
        arrays = [tensors[key] for key, _ in stored]
        needed, kind = tuned.shapes[path].shape, path.rsplit("/", 1)[1]
        if shape_of(arrays[0].shape, stored[0][1], kind) != needed:
            if tuned.base.of_words:
                refuse_resized(str(folder / WEIGHTS), stored[0][0], arrays[0].shape, needed)
            raise UserError(
                f"{folder / WEIGHTS}: {stored[0][0]!r} has shape {arrays[0].shape}, but "
                f"parameter {path!r} needs {needed} (transposed)"
            )
        value = mapping.Stored(needed, arrays, stored[0][1], kind)
        loaded[path] = value.read(tuple(slice(None) for _ in needed), np.float32)
    rest = {key: array for key, array in tensors.items() if key not in used}
    loaded |= saved(tuned, {**params, **loaded}, rest, config, inside, str(folder / WEIGHTS))
    return {**params, **{path: placed_like(x, params[path]) for path, x in loaded.items()}}, absent


def _outside(form: Form) -> str:
    """What comes before the base model's names."""
    return "base_model." if form.table else INSIDE


def _open(folder: Path) -> dict[str, np.ndarray]:
    file, pickled = folder / WEIGHTS, folder / PICKLED
    file = pickled if pickled.exists() and not file.exists() else file
    if not file.exists():
        raise UserError(f"{folder} has no {WEIGHTS}")
    with named(file):
        return plain_names(arrays_of(file))
