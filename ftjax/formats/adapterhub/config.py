"""Methods as AdapterHub's `adapter_config.json` has them, with all of its fields."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ftjax.errors import require
from ftjax.formats.adapterhub.lora import LORA, read_lora, write_dora, write_ia3, write_lora
from ftjax.methods.bottleneck import AdapterDrop, Houlsby, Parallel, Pfeiffer, ScaledParallel
from ftjax.methods.combination import Combination
from ftjax.methods.compacter import Compacter, CompacterPP, Hypercomplex
from ftjax.methods.dora import Dora
from ftjax.methods.fusion import AdapterFusion
from ftjax.methods.ia3 import Ia3
from ftjax.methods.lora import Lora
from ftjax.methods.mam import Mam
from ftjax.methods.prefix import PrefixTuning
from ftjax.methods.reft import Reft
from ftjax.methods.unipelt import Unipelt
from ftjax.options import Above0, Natural, NotNegative, Positive, Share, Size
from ftjax.tuned import Tuned


@dataclass(frozen=True)
class About:
    """What the files of adapters and of heads say besides, with examples."""

    config: dict | None = None
    name: str | None = "ftjax"
    model_type: str = "bert"
    model_class: str = "BertAdapterModel"
    label2id: dict[str, int] | None = None


@dataclass(frozen=True)
class HubConfig:
    """What fields of an adapter's configuration may be that are read, with examples."""

    architecture: str | None = "lora"
    configs: list[dict] = ()
    leave_out: list[Natural] = ()
    reduction_factor: Above0 | dict[str, Above0] = 16
    non_linearity: str | None = "relu"
    scaling: float | str = 1.0
    phm_dim: Positive = 4
    phm_rank: Positive = 1
    phm_init_range: NotNegative = 0.0001
    phm_layer: bool = False
    is_parallel: bool = False
    mh_adapter: bool = False
    use_gating: bool = False
    r: Positive = 8
    alpha: float = 8
    dropout: Share = 0.0
    attn_matrices: list[str] = ("q", "v")
    composition_mode: str = "add"
    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    use_dora: bool = False
    prefix_length: Size = 30
    bottleneck_size: Size = 512
    flat: bool = False
    encoder_prefix: bool = True
    cross_prefix: bool = True
    layers: Literal["all"] | list[Natural] = "all"
    prefix_positions: Natural = 3
    suffix_positions: Natural = 0
    tied_weights: bool = False
    orthogonality: bool = True


@dataclass(frozen=True)
class HeadConfig:
    """The same of a head's configuration."""

    activation_function: str | None = "tanh"
    bias: bool = True
    head_type: str = "classification"
    layers: Positive = 2
    num_labels: Positive = 2
    use_pooler: bool = False
    label2id: dict[str, int] | None = None


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
REFT = {
    "architecture": "reft",
    "dropout": 0.05,
    "dtype": None,
    "init_weights_seed": None,
    "layers": "all",
    "non_linearity": None,
    "orthogonality": True,
    "output_reft": True,
    "prefix_positions": 3,
    "r": 1,
    "suffix_positions": 0,
    "tied_weights": False,
}
FUSION = {
    "dropout_prob": None,
    "key": True,
    "query": True,
    "query_before_ln": False,
    "regularization": True,
    "residual_before": False,
    "temperature": False,
    "value": True,
    "value_before_softmax": True,
    "value_initialized": True,
}
FIELDS = {  # of ReFT, theirs → ours
    "dropout": "dropout",
    "prefix_positions": "first",
    "r": "rank",
    "suffix_positions": "last",
    "tied_weights": "tied",
}
DEFAULTS = {None: BOTTLENECK, "lora": LORA, "prefix_tuning": PREFIX, "reft": REFT}
UNION = {"architecture": "union"}
# What says only how parameters start, or train, changes nothing that a folder holds.
STARTS = {
    "dtype",
    "hypercomplex_nonlinearity",
    "init_weights",
    "init_weights_seed",
    "phm_c_init",
    "phm_init_range",
    "regularization",
    "value_initialized",
}
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


def settings_of(
    config: Mapping[str, Any], model_type: str, tensors: Collection[str]
) -> dict[str, Any]:
    """`method.*` for a configuration of AdapterHub's; the inverse of `config_of`.

    Args:
        config: of the adapter.
        model_type: of the base model.
        tensors: names of the adapter's, which tell what layers it is in.

    Raises:
        UserError: the method is not implemented.
    """
    kind = config.get("architecture")
    require(kind in READERS, f"AdapterHub's architecture {kind!r} is not implemented")
    return READERS[kind](config, model_type, tensors)


def check_config(config: Mapping[str, Any], tuned: Tuned, model_type: str) -> None:
    """Raises UserError, naming the field, where a configuration is not that of `tuned`'s method."""
    _check(config, config_of(tuned, model_type))


def _check(config: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    kind, ignored = expected.get("architecture"), set(STARTS)
    differs = "adapter_config.json has {}={!r}, but the method here has {!r}"
    theirs = config.get("architecture")
    require(theirs == kind, differs.format("architecture", theirs, kind))
    if kind == UNION["architecture"]:
        parts = config["configs"], expected["configs"]
        numbers = [len(configs) for configs in parts]
        require(len(set(numbers)) == 1, differs.format("a number of configs", *numbers))
        for part, ours in zip(*parts, strict=True):
            _check(part, ours)
        return
    if not expected.get("phm_layer"):
        ignored |= {key for key in config if "phm" in key and key != "phm_layer"}
    if expected.get("flat"):
        ignored |= {"bottleneck_size", "non_linearity"}
    if kind == "lora" and config.get("use_gating"):
        ignored |= {"alpha"}  # which the library then leaves out
    for key in sorted({*config, *expected} - ignored):
        theirs, ours = config.get(key, DEFAULTS.get(kind, {}).get(key)), expected.get(key)
        same = (sorted(theirs) if key == "leave_out" else theirs) == ours
        require(same, differs.format(key, theirs, ours))


def _bottleneck(tuned: Tuned, model_type: str) -> dict[str, Any]:
    method = tuned.method
    config = {"reduction_factor": method.reduction, "non_linearity": method.activation}
    config |= {"leave_out": sorted(method.leave_out)}
    if type(method) is Parallel:
        config |= {"scaling": float(method.scale)}
    if isinstance(method, Hypercomplex):
        config |= {field: getattr(method, ours) for field, ours in PHM.items()}
    return BOTTLENECK | PLACEMENTS[type(method)] | config


def _read_bottleneck(config: Mapping[str, Any], *_: Any) -> dict[str, Any]:
    config = BOTTLENECK | dict(config)
    factor = config["reduction_factor"]
    require(
        isinstance(factor, int | float) and float(factor).is_integer(),
        f"adapter_config.json: reduction_factor={factor!r} is not implemented",
    )
    options = {"reduction": int(factor), "activation": config["non_linearity"]}
    options |= {"leave_out": sorted(config["leave_out"])}
    if config["phm_layer"]:
        options |= {ours: config[field] for field, ours in PHM.items()}
        return {"name": "compacter" if config["mh_adapter"] else "compacter_pp", **options}
    if not config["is_parallel"]:
        return {"name": "houlsby" if config["mh_adapter"] else "pfeiffer", **options}
    if config["scaling"] == "learned":
        return {"name": "scaled_parallel", **options}
    return {"name": "parallel", "scale": config["scaling"], **options}


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


def _read_prefix(config: Mapping[str, Any], model_type: str, *_: Any) -> dict[str, Any]:
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


def _reft(tuned: Tuned, model_type: str) -> dict[str, Any]:
    method = tuned.method
    is_written = method.kind != "direft"
    require(
        is_written, "AdapterHub's folders cannot say method.kind=direft: they are read as noreft"
    )
    config = {theirs: getattr(method, ours) for theirs, ours in FIELDS.items()}
    config |= {"layers": list(method.layers) or "all", "orthogonality": method.kind == "loreft"}
    return REFT | config


def _read_reft(config: Mapping[str, Any], *_: Any) -> dict[str, Any]:
    config = REFT | dict(config)
    options = {ours: config[theirs] for theirs, ours in FIELDS.items()}
    layers = () if config["layers"] == "all" else tuple(config["layers"])
    kind = "loreft" if config["orthogonality"] else "noreft"
    return {"name": "reft", "kind": kind, "layers": layers, **options}


def _fusion(tuned: Tuned, model_type: str) -> dict[str, Any]:
    """Of the fusion alone; λ itself is not in it."""
    return FUSION | {"regularization": tuned.method.regularization > 0}


def _union(tuned: Tuned, model_type: str) -> dict[str, Any]:
    """Of methods in different places within layers, in which their order makes no difference."""
    configs = []
    for part in tuned.method.parts:
        require(type(part) in UNITED, f"AdapterHub's unions have no {type(part).__name__.lower()}")
        configs.append(config_of(replace(tuned, method=part), model_type))
    kinds = [config.get("architecture") for config in configs]
    apart = len(set(kinds)) == len(kinds)
    require(apart, f"AdapterHub's unions have one part of an architecture: {tuned.method.names}")
    if isinstance(tuned.method, Unipelt):
        gated = {"use_gating": True}
        configs = [c | gated | ({"alpha": c["r"]} if "alpha" in c else {}) for c in configs]
    return UNION | {"configs": configs}


def _read_union(
    config: Mapping[str, Any], model_type: str, tensors: Collection[str]
) -> dict[str, Any]:
    parts = [settings_of(part, model_type, tensors) for part in config["configs"]]
    gated = {bool(part.get("use_gating")) for part in config["configs"]}
    require(len(gated) == 1, "adapter_config.json: use_gating is of all parts or of none")
    mam = [part["name"] for part in parts] == ["prefix_tuning", "parallel"]
    return {"name": "unipelt" if True in gated else "mam" if mam else "combination", "parts": parts}


UNITED = (*PLACEMENTS, PrefixTuning, Lora, Dora, Ia3)
WRITERS: dict[type, Callable[[Tuned, str], dict[str, Any]]] = {
    **dict.fromkeys(PLACEMENTS, _bottleneck),
    **dict.fromkeys((Combination, Mam, Unipelt), _union),
    PrefixTuning: _prefix,
    Lora: write_lora,
    Dora: write_dora,
    Ia3: write_ia3,
    Reft: _reft,
    AdapterFusion: _fusion,
}
READERS: dict[str | None, Callable[[Mapping[str, Any], str, Collection[str]], dict[str, Any]]] = {
    None: _read_bottleneck,
    "prefix_tuning": _read_prefix,
    "lora": read_lora,
    "reft": _read_reft,
    "union": _read_union,
}
