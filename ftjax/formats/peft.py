"""PEFT adapter folders, written and read: `adapter_config.json`, `adapter_model.safetensors`."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ftjax.errors import UserError, nearest
from ftjax.formats import hf
from ftjax.formats import peft_tables as tables
from ftjax.formats.folder import read_json
from ftjax.formats.peft_forms import FORMS, Form
from ftjax.formats.peft_places import (
    TASKS,
    Piece,
    form_of,
    join,
    own_paths,
    part_of,
    pieces_of,
    prefixed,
    take,
    uncut,
)
from ftjax.methods import hyperparameters
from ftjax.paths import Flat, expand
from ftjax.tuned import Tuned, placed

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INSIDE = "base_model.model."
# What a configuration must not ask for, since no method here computes it.
REFUSED = ("layer_replication", "target_parameters", "trainable_token_indices", "use_qalora")
REFUSED += ("lora_bias", "coft", "block_share", "alora_invocation_tokens", "megatron_config")
REFUSED += ("ensure_weight_tying",)
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # inits that change base weights
TURNING = ("LORA", "VERA", "IA3", "ADALORA")  # kinds that say whether kernels are (in, out)


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
    if prefixed(tuned) and tuned.names.prefix:
        inside += f"{tuned.names.prefix}."
    own = {path: np.asarray(params[path]) for path in own_paths(tuned, form) if path in params}
    held: dict[str, list[tuple[Piece, np.ndarray]]] = {}
    for path, array in own.items():
        pieces = pieces_of(tuned, form, path)
        layers = array.reshape(len(pieces), *array.shape[path != expand(path)[0] :])
        for piece, layer in zip(pieces, layers, strict=True):
            key = inside + piece.key if piece.module else f"base_model.{piece.key}"
            held.setdefault(key, []).append((piece, piece.leaf.store(layer)))
    tensors = {key: join(key, parts) for key, parts in held.items()}
    if form.table:
        tensors[tables.TABLE] = tables.to_table(tuned, params)
    head = {path: np.asarray(leaf) for path, leaf in params.items() if tuned.names.in_head(path)}
    if prefixed(tuned):
        found = hf.to_tensors(head, tuned.names, True)
        tensors |= {_outside(form) + name: array for name, array in found.items()}
    return _config(tuned, form), tensors


def write(
    folder: Path, source: Path, tuned: Tuned, params: Mapping[str, Any], text: str = ""
) -> None:
    """Writes an adapter folder that `peft` loads: with its head, without the base.

    Args:
        folder: may exist.
        source: the base model's folder.
        tuned: the model under its method.
        params: flat parameters.
        text: what README.md says besides.
    """
    config, tensors = to_peft(tuned, params)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config["base_model_name_or_path"] = str(source)
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
    name = _named(folder, config)
    form = FORMS[name]
    settings = {ours: config[theirs] for ours, theirs in form.fields.items() if theirs in config}
    if form.table:
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
    form, config, tensors = form_of(tuned), read_json(folder / CONFIG), _open(folder)
    _agree(tuned, form, folder, config)
    if form.kind == "ADALORA":
        tensors = uncut(str(folder / WEIGHTS), tensors, config.get("rank_pattern") or {})
    known = (tuned.names.prefix, tuned.names.usual)
    prefixes = [f"{INSIDE}{prefix}." for prefix in known if prefix] + [INSIDE]
    inside = next(p for p in prefixes if p == INSIDE or any(k.startswith(p) for k in tensors))
    used, loaded, absent = set(), {}, []
    for path in own_paths(tuned, form):
        shape, layers = tuned.shapes[path].shape, []
        pieces = pieces_of(tuned, form, path)
        for piece in pieces:
            key = inside + piece.key if piece.module else f"base_model.{piece.key}"
            if key not in tensors:
                raise UserError(
                    f"{folder / WEIGHTS} lacks {key!r} of parameter {path!r}: method.targets or "
                    f"another hyperparameter differs{nearest(key, tensors)}"
                )
            used.add(key)
            inner = shape[path != expand(path)[0] :]
            layers.append(take(f"{folder / WEIGHTS}: {key!r}", tensors[key], piece, inner))
        loaded[path] = np.stack(layers).reshape(shape)
    loaded |= _words(tuned, folder, tensors, inside, used)
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
        value = hf.Stored(tuned.shapes[path].shape, arrays, stored[0][1], path.rsplit("/", 1)[1])
        loaded[path] = value.read(tuple(slice(None) for _ in value.shape), np.float32)
        if loaded[path].shape != value.shape:
            raise UserError(
                f"{folder / WEIGHTS}: {stored[0][0]!r} has shape {arrays[0].shape}, but "
                f"parameter {path!r} needs {value.shape} (transposed)"
            )
    strange = sorted(set(tensors) - used)
    if strange:
        raise UserError(
            f"{folder / WEIGHTS} has {strange[0]!r}, which method.targets does not adapt and the "
            "head does not have"
        )
    return {**params, **{path: placed(x, params[path]) for path, x in loaded.items()}}, absent


def _words(
    tuned: Tuned, folder: Path, tensors: Mapping[str, Any], inside: str, used: set[str]
) -> Flat:
    """The base's table of words, which PEFT saves besides where it is adapted."""
    key = f"{inside}{part_of(tuned, tuned.base.words).name}.base_layer.weight"
    if key not in tensors:
        return {}
    if tensors[key].shape != tuned.base.words_shape:
        raise UserError(
            f"{folder / WEIGHTS}: {key!r} has shape {tensors[key].shape}, but the model's table of "
            f"words is {tuned.base.words_shape}"
        )
    used.add(key)
    return {f"{tuned.base.words}/embedding": tensors[key]}


def _outside(form: Form) -> str:
    """What comes before the base model's names."""
    return "base_model." if form.table else INSIDE


def _config(tuned: Tuned, form: Form) -> dict[str, Any]:
    method, classes = tuned.method, prefixed(tuned)
    chosen: dict[str, set[str]] = {}
    turned = False
    for path in own_paths(tuned, form):
        for piece in pieces_of(tuned, form, path):
            if piece.module:
                chosen.setdefault(piece.leaf.selected, set()).add(piece.part.name)
                turned |= piece.part.turned
    head = {part.name for part in map(_head_part, tuned.names.head.values())}
    config = {
        "peft_type": form.kind,
        "task_type": TASKS[tuned.model.head] if classes else "FEATURE_EXTRACTION",
        "inference_mode": True,
        "target_modules": _targets(tuned, set().union(*chosen.values())),
        "modules_to_save": sorted({name.split(".")[0] for name in head}) if classes else None,
        **{theirs: getattr(method, ours) for ours, theirs in form.fields.items()},
        **form.constants,
    }
    if "feedforward" in {leaf.selected for leaf in form.leaves.values()}:
        config["feedforward_modules"] = _targets(tuned, chosen.get("feedforward", set()))
    if form.table:
        del config["target_modules"]
        config |= tables.sizes_of(tuned)
    if turned and form.kind in TURNING:
        config["fan_in_fan_out"] = True
    ranks = {
        piece.part.name: len(piece.mates)
        for path in own_paths(tuned, form)
        for piece in pieces_of(tuned, form, path)
        if piece.leaf.fused == "rank" and piece.part.sizes
    }
    if ranks:  # stacked along the rank, under the same scale
        config["rank_pattern"] = {name: n * method.rank for name, n in ranks.items()}
        root = 0.5 if config.get("use_rslora") else 1.0
        config["alpha_pattern"] = {name: n**root * method.alpha for name, n in ranks.items()}
    return config


def _head_part(part: str | hf.Part) -> hf.Part:
    return hf.Part(part) if isinstance(part, str) else part


def _targets(tuned: Tuned, names: set[str]) -> list[str]:
    """Last parts of the modules' names, or whole names where those would select more."""
    short = {name.rsplit(".", 1)[-1] for name in names}
    others = {part.name for part in map(_head_part, tuned.names.head.values())}
    others |= {part_of(tuned, module).name for module in tuned.names.base}
    chosen = {name for name in others if name.rsplit(".", 1)[-1] in short}
    return sorted(short if chosen == names else names)


def _open(folder: Path) -> dict[str, np.ndarray]:
    file = folder / WEIGHTS
    if not file.exists():
        pickled = (folder / "adapter_model.bin").exists()
        raise UserError(
            f"{folder} has no {WEIGHTS}"
            + (": adapter_model.bin is pickled, and reading it can run code" if pickled else "")
        )
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is corrupt or truncated: {error}") from error


def _named(folder: Path, config: Mapping[str, Any]) -> str:
    """The method of a configuration."""
    kind = config.get("peft_type")
    for name, form in FORMS.items():
        same = (_same(config.get(key), value) for key, value in form.constants.items())
        if kind in (form.kind, *form.also) and all(same):
            return name
    known = sorted({kind for form in FORMS.values() for kind in (form.kind, *form.also)})
    raise UserError(
        f"{folder / CONFIG}: peft_type={kind!r} is not known{nearest(str(kind), known)}"
    )


def _same(found: Any, wanted: Any) -> bool:
    """Whether a configuration says what a form does: a word, or that something is on."""
    return found == wanted if isinstance(wanted, str) else bool(found) == bool(wanted)


def _agree(tuned: Tuned, form: Form, folder: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError where a configuration is of another adapter than the model's method."""
    file = folder / CONFIG
    if config.get("peft_type") not in (form.kind, *form.also):
        name = type(tuned.method).__name__.lower()
        raise UserError(
            f"{file} has peft_type={config.get('peft_type')!r}, and method.name={name} is stored "
            f"as {form.kind}"
        )
    for key, value in form.constants.items():
        if not _same(config.get(key, value), value):
            raise UserError(f"{file} has {key}={config.get(key)!r}, and the method {value!r}")
    for ours, theirs in form.fields.items():
        value = getattr(tuned.method, ours)
        if ours not in form.free and theirs in config and config[theirs] != value:
            raise UserError(
                f"method.{ours}={value!r} differs from {theirs}={config[theirs]!r} of {file}"
            )
    for key in REFUSED:
        if config.get(key):
            raise UserError(f"{file}: {key}={config[key]!r} is not implemented")
    if config.get("bias", "none") != "none":
        raise UserError(f"{file}: bias={config['bias']!r} is not implemented; only 'none' is")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(CHANGED_BASE) and "init_lora_weights" not in form.constants:
        raise UserError(
            f"{file}: init_lora_weights={start!r} changes the base's weights, which the folder "
            "does not hold; convert it to plain LoRA with peft"
        )
    fused = {part.name for part in tuned.names.base.values() if isinstance(part, hf.Part)}
    for key in ("rank_pattern", "alpha_pattern")[form.kind == "ADALORA" :]:
        for name in config.get(key) or {}:
            if not any(theirs.endswith(name) for theirs in fused):
                raise UserError(f"{file}: {key} of {name!r} is not implemented: one rank for all")
