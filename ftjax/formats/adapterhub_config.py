"""Methods as AdapterHub's `adapter_config.json` has them, with all of its fields."""

from collections.abc import Callable, Mapping
from typing import Any

from ftjax.errors import UserError, require
from ftjax.methods.bottleneck import AdapterDrop, Houlsby, Parallel, Pfeiffer, ScaledParallel
from ftjax.methods.compacter import Compacter, CompacterPP, Hypercomplex
from ftjax.methods.ia3 import NONE as IA3_NONE
from ftjax.methods.ia3 import Ia3
from ftjax.methods.lora import Lora
from ftjax.methods.prefix import PrefixTuning
from ftjax.tuned import Tuned

BOTTLENECK = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "learn_phm": True,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": False,
    "output_adapter": True,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "reduction_factor": 16,
    "residual_before_ln": True,
    "scaling": 1.0,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}
PHM = {"phm_dim": "n", "phm_rank": "rank", "phm_init_range": "rule_std"}
LORA = {
    "alpha": 8,
    "architecture": "lora",
    "attn_matrices": ["q", "v"],
    "composition_mode": "add",
    "dropout": 0.0,
    "dtype": None,
    "init_weights": "lora",
    "init_weights_seed": None,
    "intermediate_lora": False,
    "leave_out": [],
    "output_lora": False,
    "r": 8,
    "selfattn_lora": True,
    "use_dora": False,
    "use_gating": False,
    "vera_b": None,
    "vera_d": None,
}
IA3 = {"alpha": 1, "composition_mode": "scale", "init_weights": "ia3", "r": 1}
PREFIX = {
    "architecture": "prefix_tuning",
    "bottleneck_size": 512,
    "cross_prefix": True,
    "dropout": 0.0,
    "encoder_prefix": True,
    "flat": False,
    "init_weights_seed": None,
    "leave_out": [],
    "non_linearity": "tanh",
    "prefix_length": 30,
    "shared_gating": True,
    "use_gating": False,
}
DEFAULTS = {None: BOTTLENECK, "lora": LORA, "prefix_tuning": PREFIX}
# What says only how parameters start changes nothing that a folder holds.
STARTS = {
    "dtype",
    "hypercomplex_nonlinearity",
    "init_weights",
    "init_weights_seed",
    "phm_c_init",
    "phm_init_range",
}
MATRICES = {"q": "query", "k": "key", "v": "value"}
AFTER_FFN = {"original_ln_before": True}
BESIDE_FFN = {"init_weights": "mam_adapter", "is_parallel": True}
PLACEMENTS = {
    Houlsby: {"mh_adapter": True},
    Pfeiffer: AFTER_FFN,
    AdapterDrop: AFTER_FFN,
    Parallel: BESIDE_FFN,
    ScaledParallel: BESIDE_FFN | {"scaling": "learned"},
    Compacter: {"mh_adapter": True, "phm_layer": True},
    CompacterPP: AFTER_FFN | {"phm_layer": True},
}


def config_of(tuned: Tuned, model_type: str) -> dict[str, Any]:
    """The configuration of a tuned model's method, with AdapterHub's fields.

    Raises:
        UserError: AdapterHub has no such method, or not with these hyperparameters.
    """
    kind = type(tuned.method)
    require(kind in WRITERS, f"{kind.__name__.lower()} has no AdapterHub form; use --format hf")
    return WRITERS[kind](tuned, model_type)


def settings_of(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """`method.*` for a configuration of AdapterHub's; the inverse of `config_of`.

    Raises:
        UserError: the method is not implemented.
    """
    kind = config.get("architecture")
    require(kind in READERS, f"AdapterHub's architecture {kind!r} is not implemented")
    return READERS[kind](config, model_type)


def check_config(config: Mapping[str, Any], tuned: Tuned, model_type: str) -> None:
    """Raises UserError, naming the field, where a configuration is not that of `tuned`'s method."""
    wanted = config_of(tuned, model_type)
    defaults = DEFAULTS[wanted.get("architecture")]
    phm = wanted.get("phm_layer")
    for key in sorted({*config, *wanted} - STARTS):
        if "phm" in key and key != "phm_layer" and not phm:
            continue
        if wanted.get("flat") and key in ("bottleneck_size", "non_linearity"):
            continue
        given, ours = config.get(key, defaults.get(key)), wanted.get(key)
        require(
            given == ours,
            f"adapter_config.json has {key}={given!r}, but the method here has {ours!r}",
        )


def _bottleneck(tuned: Tuned, model_type: str) -> dict[str, Any]:
    method = tuned.method
    config = {"reduction_factor": method.reduction, "non_linearity": method.activation}
    config |= {"leave_out": sorted(method.leave_out)}
    if type(method) is Parallel:
        config |= {"scaling": float(method.scale)}
    if isinstance(method, Hypercomplex):
        config |= {field: getattr(method, ours) for field, ours in PHM.items()}
    return BOTTLENECK | PLACEMENTS[type(method)] | config


def _read_bottleneck(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    config = BOTTLENECK | dict(config)
    factor = config["reduction_factor"]
    require(
        isinstance(factor, int | float) and float(factor).is_integer(),
        f"adapter_config.json: reduction_factor={factor!r} is not implemented",
    )
    found = {"reduction": int(factor), "activation": config["non_linearity"]}
    found |= {"leave_out": sorted(config["leave_out"])}
    if config["phm_layer"]:
        found |= {ours: config[field] for field, ours in PHM.items()}
        return {"name": "compacter" if config["mh_adapter"] else "compacter_pp", **found}
    if not config["is_parallel"]:
        return {"name": "houlsby" if config["mh_adapter"] else "pfeiffer", **found}
    if config["scaling"] == "learned":
        return {"name": "scaled_parallel", **found}
    return {"name": "parallel", "scale": config["scaling"], **found}


def _prefix(tuned: Tuned, model_type: str) -> dict[str, Any]:
    method, config = tuned.method, {}
    require(not method.shift, "AdapterHub's prefixes move no positions: set method.shift=False")
    if tuned.base.two_sided:
        places = method.places or ("decoder",)
        require("decoder" in places, "AdapterHub's prefixes are always in the decoder")
        config = {f"{place}_prefix": place in places for place in ("encoder", "cross")}
    if method.projection:
        config["bottleneck_size"] = method.projection
    return PREFIX | config | {"flat": not method.projection, "prefix_length": method.length}


def _read_prefix(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    config = PREFIX | dict(config)
    places = []
    if model_type in ("t5", "mt5"):
        places = [place for place in ("encoder", "cross") if config[f"{place}_prefix"]]
        places.append("decoder")
    return {
        "name": "prefix_tuning",
        "length": config["prefix_length"],
        "projection": 0 if config["flat"] else config["bottleneck_size"],
        "shift": False,
        "places": places,
    }


def _sites(model_type: str) -> dict[str, str]:
    """Fields of LoRA's configuration that select a projection of feed-forward → ours.

    For Llama and its kin the library has the two the other way round.
    """
    names = ("down", "up") if model_type in ("llama", "mistral") else ("up", "down")
    return dict(zip(("intermediate_lora", "output_lora"), names, strict=True))


def _selected(tuned: Tuned, model_type: str, matched: Mapping[str, Any]) -> dict[str, Any]:
    """LoRA's fields that select projections.

    Raises:
        UserError: they cannot select those `matched`.
    """
    sites = _sites(model_type)
    known = {*MATRICES.values(), *sites.values()}
    ends = {path.rsplit("/", 1)[-1] for path in matched}
    for end in sorted(ends - known):
        raise UserError(f"AdapterHub does not adapt projections {end!r}, only {sorted(known)}")
    for path in tuned.base.projections():
        whole = (path.rsplit("/", 1)[-1] in ends) == (path in matched)
        require(whole, f"AdapterHub adapts projections in all layers or none, unlike {path!r}")
    return {
        "attn_matrices": [short for short, name in MATRICES.items() if name in ends],
        "selfattn_lora": bool(ends & set(MATRICES.values())),
        **{field: name in ends for field, name in sites.items()},
    }


def _targets(config: Mapping[str, Any], model_type: str) -> list[str]:
    """Our names of the projections that LoRA's fields select."""
    attention = config["attn_matrices"] if config["selfattn_lora"] else []
    targets = [name for short, name in MATRICES.items() if short in attention]
    return targets + [name for field, name in _sites(model_type).items() if config[field]]


def _lora(tuned: Tuned, model_type: str) -> dict[str, Any]:
    method = tuned.method
    alpha = int(method.alpha) if float(method.alpha).is_integer() else method.alpha
    config = {"r": method.rank, "alpha": alpha, "dropout": method.dropout}
    return LORA | config | _selected(tuned, model_type, method.matched(tuned.base))


def _ia3(tuned: Tuned, model_type: str) -> dict[str, Any]:
    method = tuned.method
    require(
        method.feedforward in IA3_NONE,
        "AdapterHub's ia3 rescales outputs alone: set method.feedforward=none and name in "
        "method.targets, beside keys and values, the projection before",
    )
    matched = tuned.base.match(method.targets or ("key", "value"))
    return LORA | IA3 | _selected(tuned, model_type, matched)


def _read_lora(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    config = LORA | dict(config)
    targets = _targets(config, model_type)
    if config["composition_mode"] == "scale":
        return {"name": "ia3", "targets": targets, "feedforward": "none"}
    values = {ours: config[theirs] for ours, theirs in (("rank", "r"), ("alpha", "alpha"))}
    return {"name": "lora", "targets": targets, "dropout": config["dropout"], **values}


WRITERS: dict[type, Callable[[Tuned, str], dict[str, Any]]] = {
    **dict.fromkeys(PLACEMENTS, _bottleneck),
    PrefixTuning: _prefix,
    Lora: _lora,
    Ia3: _ia3,
}
READERS: dict[str | None, Callable[[Mapping[str, Any], str], dict[str, Any]]] = {
    None: _read_bottleneck,
    "prefix_tuning": _read_prefix,
    "lora": _read_lora,
}
