"""LoRA, DoRA and (IA)³ as AdapterHub's `adapter_config.json` has them.

Its DoRA is m/n · (x W + b + (α/r) x A B) with n the norms of W + A B: ours where there is no b and
α/r is one, which tensors are written for.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from ftjax.errors import UserError, require
from ftjax.methods.ia3 import NONE as IA3_NONE
from ftjax.paths import expand
from ftjax.tuned import Tuned

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
MATRICES = {"q": "query", "k": "key", "v": "value"}


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
    names = {name for path in matched for name in expand(path)}
    ends = {name.rsplit("/", 1)[-1] for name in names}
    for end in sorted(ends - known):
        raise UserError(f"AdapterHub does not adapt projections {end!r}, only {sorted(known)}")
    layers = [f"{layer}/" for layer in tuned.base.layers]
    out = [layer for layer in layers if not any(name.startswith(layer) for name in names)]
    for name in (name for path in tuned.base.projections() for name in expand(path)):
        inside = name.rsplit("/", 1)[-1] in ends and not name.startswith(tuple(out))
        alike = "AdapterHub adapts the same projections in every layer that it adapts"
        require(inside == (name in names), f"{alike}, unlike {name!r}")
    return {
        "attn_matrices": [short for short, name in MATRICES.items() if name in ends],
        "leave_out": [layers.index(layer) for layer in out],
        "selfattn_lora": bool(ends & set(MATRICES.values())),
        **{field: name in ends for field, name in sites.items()},
    }


def _targets(
    config: Mapping[str, Any], model_type: str, tensors: Collection[str]
) -> list[str] | str:
    """Our names of the projections that LoRA's fields select, or their pattern.

    Layers that are left out are told by the tensors' names, for an encoder-decoder's depth is not
    in the configuration.
    """
    attention = config["attn_matrices"] if config["selfattn_lora"] else []
    targets = [name for short, name in MATRICES.items() if short in attention]
    targets += [name for field, name in _sites(model_type).items() if config[field]]
    if not config["leave_out"]:
        return targets
    inside = re.compile(r".*?(?:(\w+)\.block|layer|layers|h)\.(\d+)\..*\.loras\.")
    adapted = {match.groups() for match in map(inside.match, tensors) if match}
    layers = "|".join(
        sorted(f"{stack}/layers/layer_{n}" if stack else f"layer_{n}" for stack, n in adapted)
    )
    return rf"(.*/)?({layers})/.*({'|'.join(targets)})"


def write_lora(tuned: Tuned, model_type: str) -> dict[str, Any]:
    method = tuned.method
    patterns = method.rank_pattern or method.alpha_pattern
    require(not patterns, "AdapterHub's lora has one rank and one alpha: no method.rank_pattern")
    alpha = int(method.alpha) if float(method.alpha).is_integer() else method.alpha
    config = {"r": method.rank, "alpha": alpha, "dropout": method.dropout}
    return LORA | config | _selected(tuned, model_type, method.matched(tuned.base))


def write_dora(tuned: Tuned, model_type: str) -> dict[str, Any]:
    """With α/r in B, since the library leaves it out of the norms."""
    for path in tuned.method.matched(tuned.base):
        plain = f"{path}/bias" not in tuned.base.shapes
        require(plain, f"AdapterHub's dora (use_dora) scales biases too, as that of {path!r}")
    config = write_lora(tuned, model_type)
    return config | {"alpha": config["r"], "use_dora": True}


def write_ia3(tuned: Tuned, model_type: str) -> dict[str, Any]:
    method = tuned.method
    require(
        method.feedforward in IA3_NONE,
        "AdapterHub's ia3 rescales outputs alone: set method.feedforward=none and name in "
        "method.targets, beside keys and values, the projection before",
    )
    matched = tuned.base.match(method.targets or ("key", "value"))
    return LORA | IA3 | _selected(tuned, model_type, matched)


def read_lora(
    config: Mapping[str, Any], model_type: str, tensors: Collection[str]
) -> dict[str, Any]:
    config = LORA | dict(config)
    targets = _targets(config, model_type, tensors)
    if config["composition_mode"] == "scale":
        return {"name": "ia3", "targets": targets, "feedforward": "none"}
    rank, alpha = config["r"], config["alpha"]
    if config["use_dora"]:
        same = "adapter_config.json: use_dora with alpha={} and r={}, which differ: the library"
        require(rank == alpha, f"{same.format(alpha, rank)} takes norms without alpha / r")
    alpha = rank if config["use_gating"] else alpha
    options = {"targets": targets, "dropout": config["dropout"], "rank": rank, "alpha": alpha}
    return {"name": "dora" if config["use_dora"] else "lora", **options}
