"""`adapter_config.json` of PEFT: written, and compared with a method."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from ftjax.errors import UserError, nearest, require
from ftjax.formats.jsons import check
from ftjax.formats.peft import prompt_tables as tables
from ftjax.formats.peft.forms import FORMS, Form
from ftjax.formats.peft.pieces import INSIDE, TASKS, Piece, own_paths, part_of, pieces_of, prefixed
from ftjax.names import Part
from ftjax.options import Count, Layers, Natural, Share, Size
from ftjax.patterns import ends_match, require_pattern
from ftjax.tuned import Tuned

# Keys that are read, or that change nothing of what a saved adapter computes, besides those of
# `peft_forms`. What another asks for, no method here computes.
KEYS = (
    "peft_type task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "target_modules exclude_modules feedforward_modules layers_to_transform layers_pattern "
    "modules_to_save trainable_token_indices ensure_weight_tying rank_pattern alpha_pattern bias "
    "fan_in_fan_out init_lora_weights init_weights init_ia3_weights loftq_config eva_config "
    "corda_config lora_ga_config velora_config megatron_core qalora_group_size rank_dropout "
    "module_dropout rank_dropout_scale use_effective_conv2d eps r tinit tfinal deltaT beta1 beta2 "
    "orth_reg_weight total_step token_dim num_transformer_submodules num_attention_heads "
    "num_layers prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path "
    "tokenizer_kwargs prefix_projection encoder_hidden_size encoder_num_layers encoder_dropout "
    "encoder_reparameterization_type"
)
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # inits that change base weights
TURNING = ("LORA", "VERA", "IA3", "ADALORA")  # kinds that say whether kernels are (in, out)
Token = Annotated[int, "[0, 1000000000]"]
MERGE = "merge it into its base with peft (merge_and_unload) and load that as model.path"


@dataclass(frozen=True)
class AdapterConfig:
    """What keys of `adapter_config.json` may be that are read, with examples."""

    peft_type: str = "LORA"
    r: Natural = 8
    init_r: Natural = 12
    target_r: Natural = 8
    lora_alpha: float = 16
    alpha: float = 8
    lora_dropout: Share = 0.1
    vera_dropout: Share = 0.0
    d_initial: float = 0.1
    projection_prng_key: Natural = 0
    save_projection: bool = True
    decompose_factor: Count = -1
    decompose_both: bool = False
    oft_block_size: Natural = 32
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: Natural = 5
    num_virtual_tokens: Size = 20
    num_layers: Layers | None = 12
    total_step: Natural | None = 1
    use_rslora: bool = False
    use_dora: bool = False
    ensure_weight_tying: bool = False
    target_modules: str | list[str] | None = ("query", "value")
    feedforward_modules: str | list[str] | None = ("down",)
    modules_to_save: list[str] | None = ("classifier",)
    trainable_token_indices: list[Token] | dict[str, list[Token]] | None = (0, 1)


def value_at(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """What PEFT takes from a pattern for a module: its first key that matches."""
    for key, value in (pattern or {}).items():
        if ends_match(key, module):
            return value
    return default


def method_of(file: Path, config: Mapping[str, Any]) -> str:
    """The method of a configuration.

    Raises:
        UserError: it is not known here.
    """
    kind, differs = config.get("peft_type"), ""
    for name, form in FORMS.items():
        if kind in (form.kind, *form.also):
            same = {key: _same(config.get(key), value) for key, value in form.constants.items()}
            if all(same.values()):
                return name
            differs = next(key for key in same if not same[key])
    if differs:
        setting = f"{differs}={config.get(differs)!r}"
        raise UserError(f"{file}: {setting} is not implemented for {kind}: {MERGE}")
    known = sorted({kind for form in FORMS.values() for kind in (form.kind, *form.also)})
    raise UserError(f"{file}: peft_type={kind!r} is not known{nearest(str(kind), known)}")


def _same(theirs: Any, ours: Any) -> bool:
    """Whether a configuration says what a form does: a word, or that something is on."""
    return theirs == ours if isinstance(ours, str) else bool(theirs) == bool(ours)


def written(tuned: Tuned, form: Form) -> dict[str, Any]:
    """The configuration of a model's method.

    Raises:
        UserError: parts of one module of PEFT's have ranks or α of their own.
    """
    method, classes = tuned.method, prefixed(tuned)
    trained = classes and not tuned.base.of_words
    chosen: dict[str, set[str]] = {}
    transposed = False
    for piece in _pieces(tuned, form):
        chosen.setdefault(piece.leaf.selected, set()).add(piece.part.name)
        transposed |= piece.part.transposed
    head = {_part(part).name for part in tuned.names.head.values()}
    config = {
        "peft_type": form.kind,
        "task_type": TASKS[tuned.model.head] if classes else "FEATURE_EXTRACTION",
        "inference_mode": True,
        "target_modules": _targets(tuned, set().union(*chosen.values())),
        "modules_to_save": sorted({name.split(".")[0] for name in head}) if trained else None,
        **{theirs: getattr(method, ours) for ours, theirs in form.fields.items()},
        **form.constants,
    }
    if "feedforward" in {leaf.selected for leaf in form.leaves.values()}:
        inputs = chosen.get("feedforward", set())
        config["feedforward_modules"] = _targets(tuned, inputs)
        if not {*config["feedforward_modules"]} <= {*config["target_modules"]}:  # as PEFT wants
            config |= {
                "target_modules": sorted(set().union(*chosen.values())),
                "feedforward_modules": sorted(inputs),
            }
    if form.table:
        del config["target_modules"]
        config |= tables.sizes_of(tuned)
    if transposed and form.kind in TURNING:
        config["fan_in_fan_out"] = True
    if form.patterned:
        config |= _patterns(tuned, form)
    return config


def _patterns(tuned: Tuned, form: Form) -> dict[str, dict[str, Any]]:
    """r and α of the modules whose own differ from the method's."""
    factors: dict[str, tuple[int, float]] = {}
    for piece in _pieces(tuned, form):
        both = own_factors(tuned, form, piece)
        if factors.setdefault(piece.part.name, both) != both:
            raise UserError(
                f"PEFT adapts {piece.part.name!r} as one projection, and here its parts have ranks "
                "or alphas of their own; use --format hf"
            )
    method = tuned.method
    own = {
        "rank_pattern": {name: rank for name, (rank, _) in factors.items() if rank != method.rank},
        "alpha_pattern": {name: a for name, (_, a) in factors.items() if a != method.alpha},
    }
    return {key: pattern for key, pattern in own.items() if pattern}


def own_factors(tuned: Tuned, form: Form, piece: Piece, apart: bool = False) -> tuple[int, float]:
    """r and α of PEFT's module that holds a piece.

    Args:
        tuned: the model under its method.
        form: of the method.
        piece: of one of its parameters.
        apart: PEFT's module holds it as it is, not beside those of the other parts along the rank.
    """
    method = tuned.method.of(tuned.base, piece.module)
    if apart or form.kind != "LORA" or not piece.part.sizes:
        return method.rank, method.alpha
    rank = len(piece.mates) * method.rank
    return rank, method.alpha * (method.scale / replace(method, rank=rank).scale)


def refuse(form: Form, file: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError where a configuration is damaged, or asks for what no method computes."""
    check(file, config, AdapterConfig)
    kinds = list if form.kind == "ADALORA" else int | float
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        sound = isinstance(pattern, Mapping) and all(isinstance(v, kinds) for v in pattern.values())
        require(sound, f"{file}: {key}={pattern!r} must be of modules and numbers")
        for module in pattern:
            require_pattern(f"{file}: {key}", module)
    known = {*KEYS.split(), *form.constants, *form.fields.values()}
    for key in sorted(config.keys() - known):
        if config[key]:
            raise UserError(f"{file}: {key}={config[key]!r} is not implemented: {MERGE}")


def agree(tuned: Tuned, form: Form, file: Path, config: Mapping[str, Any], inside: str) -> None:
    """Whether a configuration is of the model's method.

    Args:
        tuned: the model under its method.
        form: of the method.
        file: that has the configuration.
        config: its mapping.
        inside: what comes before the base model's names, of which patterns see all.

    Raises:
        UserError: it is of another method, or of one with other hyperparameters.
    """
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
        value, apart = getattr(tuned.method, ours), form.patterned and ours in ("rank", "alpha")
        if ours not in form.free and not apart and theirs in config and config[theirs] != value:
            raise UserError(
                f"method.{ours}={value!r} differs from {theirs}={config[theirs]!r} of {file}"
            )
    refuse(form, file, config)
    adapted = any(f"{table}/lora_a" in tuned.shapes for table in tuned.base.tables)
    if config.get("ensure_weight_tying") and adapted:
        raise UserError(
            f"{file}: ensure_weight_tying adapts the head by the adapter of the table of words, "
            f"which is not implemented: {MERGE}"
        )
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(CHANGED_BASE) and "init_lora_weights" not in form.constants:
        raise UserError(
            f"{file}: init_lora_weights={start!r} changes the base's weights, which the folder "
            "does not hold; convert it to plain LoRA with peft"
        )
    if form.patterned:
        for piece in _pieces(tuned, form):
            _agree_in(tuned, form, file, config, piece, inside)


def _agree_in(
    tuned: Tuned, form: Form, file: Path, config: Mapping[str, Any], piece: Piece, inside: str
) -> None:
    """Raises UserError where a module's r or α is another than the method's."""
    module = f"{inside}{piece.part.name}"
    stated = []
    for ours in ("rank", "alpha"):
        theirs, pattern = form.fields[ours], config.get(f"{ours}_pattern")
        default = config.get(theirs, getattr(tuned.method, ours))
        stated.append((theirs, value_at(pattern, module, default)))
    (_, rank), (_, alpha) = stated
    choices = [own_factors(tuned, form, piece, apart) for apart in (True, False)]
    factors = next((it for it in choices if it[0] == rank), choices[0])
    if rank == factors[0] and isinstance(alpha, int | float) and math.isclose(alpha, factors[1]):
        return
    ours = "alpha" if rank == factors[0] else "rank"
    theirs, value = stated[ours == "alpha"]
    where = f", at {module!r}" if config.get(f"{ours}_pattern") else ""
    own = factors[ours == "alpha"]
    raise UserError(f"method.{ours}={own!r} differs from {theirs}={value!r} of {file}{where}")


def _pieces(tuned: Tuned, form: Form) -> list[Piece]:
    """Where parameters of modules lie."""
    pieces = (piece for path in own_paths(tuned, form) for piece in pieces_of(tuned, form, path))
    return [piece for piece in pieces if piece.module]


def _part(part: str | Part) -> Part:
    return Part(part) if isinstance(part, str) else part


def _targets(tuned: Tuned, names: set[str]) -> list[str]:
    """Last parts of the modules' names, or whole names where those would select more."""
    short = {name.rsplit(".", 1)[-1] for name in names}
    others = {_part(part).name for part in tuned.names.head.values()}
    others |= {part_of(tuned, module).name for module in tuned.names.base}
    chosen = {name for name in others if name.rsplit(".", 1)[-1] in short}
    return sorted(short if chosen == names else names)


def patterns(
    form: Form, config: Mapping[str, Any], tensors: Mapping[str, Any], modules: tuple[str, ...]
) -> dict[str, tuple[tuple[str, Any], ...]]:
    """`rank_pattern` and `alpha_pattern` of a method, from a configuration's.

    Keys of modules that are not adapted are left out. Parts that are held side by side along the
    rank, as this project writes them, have each a share of it.

    Args:
        form: of the method.
        config: adapter_config.json's mapping.
        tensors: by name.
        modules: names of those adapted.
    """
    shares = {name: _side_by_side(tensors, name) for name in modules}
    root = 0.5 if config.get("use_rslora") else 1.0
    own: dict[str, tuple[tuple[str, Any], ...]] = {}
    for ours, power in (("rank", 1.0), ("alpha", root)):
        pattern = config.get(f"{ours}_pattern") or {}
        default = config.get(form.fields[ours])
        used = {
            next((key for key in pattern if value_at({key: True}, name, False)), None)
            for name, share in shares.items()
            if share == 1
        }
        rest = {key: value for key, value in pattern.items() if key in used}
        apart = {}
        for name, share in shares.items():
            value = value_at(pattern, name, default)
            if share > 1 and isinstance(value, int | float):
                part = value / share**power
                part = round(part) if ours == "rank" or math.isclose(part, round(part)) else part
                if part != value_at(rest, name, default):
                    apart[name] = part
        own[f"{ours}_pattern"] = (*apart.items(), *rest.items())
    return own


def _side_by_side(tensors: Mapping[str, Any], module: str) -> int:
    """Of how many parts, in turn, lora_B (out, n r) gives each output by r of its own."""
    b = tensors.get(f"{INSIDE}{module}.lora_B.weight")
    for count in (3, 2):
        if b is None or b.ndim != 2 or b.shape[1] % count:
            continue
        parts = b.reshape(len(b), count, -1).any(-1)  # (out, n)
        owners = parts.argmax(1)[parts.any(1)]
        if (parts.sum(1) <= 1).all() and parts.any(0).all() and (np.diff(owners) >= 0).all():
            return count
    return 1
