"""What AdapterHub calls the parameters that methods add, and how it lays them out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftjax.errors import UserError, nearest, require
from ftjax.formats.hf import Part
from ftjax.paths import Flat, expand
from ftjax.tuned import Tuned


@dataclass(frozen=True)
class Family:
    """What AdapterHub calls the parts of a family.

    Attributes:
        model_class: with flexible heads.
        prefix: of the base model's tensors in it.
        attention, output: the modules within a layer that hold its bottleneck adapters; empty
            where that is the module that holds the norm.
    """

    model_class: str
    prefix: str
    attention: str = ""
    output: str = ""


_APART = {"attention": ".attention_adapters", "output": ".output_adapters"}
FAMILIES = {
    "bert": Family("BertAdapterModel", "bert"),
    "roberta": Family("RobertaAdapterModel", "roberta"),
    "xlm-roberta": Family("XLMRobertaAdapterModel", "roberta"),
    "gpt2": Family("GPT2AdapterModel", "transformer", **_APART),
    "llama": Family("LlamaAdapterModel", "model", **_APART),
    "mistral": Family("MistralAdapterModel", "model", **_APART),
    "t5": Family("T5AdapterModel", "transformer"),
    "mt5": Family("MT5AdapterModel", "transformer"),
}
# Our leaf → theirs, and its `Piece.form`: of a projection, and of a place for bottleneck adapters.
PROJECTION = {
    "lora_a": ("lora_A", "turned"),
    "lora_b": ("lora_B", "turned"),
    "ia3_out": ("lora_B", "column"),
}
BLOCK = {
    "adapter/down_kernel": ("adapter_down.0.weight", "turned"),
    "adapter/down_bias": ("adapter_down.0.bias", "plain"),
    "adapter/up_kernel": ("adapter_up.weight", "turned"),
    "adapter/up_bias": ("adapter_up.bias", "plain"),
    "adapter_scale": ("scaling", "plain"),
}
BLOCK |= {
    f"adapter/{ours}_{side}": (f"adapter_{theirs}.W_{side}", "plain")
    for ours, theirs in (("down", "down.0"), ("up", "up"))
    for side in ("left", "right")
}
# The same of prefixes: of the model, after the place, and of an attention core, after key or value.
PREFIX = {
    "_embedding": ("wte.weight", "plain"),
    "_kernel": ("control_trans.0.weight", "turned"),
    "_bias": ("control_trans.0.bias", "plain"),
}
CORE = {
    "": ("control_trans", "flat"),
    "_kernel": ("control_trans.2.weight", "turned"),
    "_bias": ("control_trans.2.bias", "plain"),
}
LOCATIONS = {"encoder": "encoder_prefix", "decoder": "self_prefix", "cross": "cross_prefix"}


@dataclass(frozen=True)
class Piece:
    """Where a layer's parameter lies: rows of a tensor.

    Attributes:
        tensor: its name, without the model's prefix.
        form: "plain"; "turned", as kernels, which are stored (out, in); "column", of a vector;
            "flat", where all rows are turned back once they are together, and stored as one axis.
        index: of these rows among those of the parameters that share the tensor.
    """

    tensor: str
    form: str
    index: int = 0

    def rows(self, ours: np.ndarray) -> np.ndarray:
        """Ours as rows of theirs."""
        return {"plain": ours, "column": ours[..., None]}.get(self.form, ours.T)

    def ours(self, rows: np.ndarray) -> np.ndarray:
        """The inverse."""
        return {"plain": rows, "column": rows.reshape(-1)}.get(self.form, rows.T)


def family_of(model_type: str) -> Family:
    """The family of config.json's `model_type`.

    Raises:
        UserError: it is not implemented.
    """
    require(
        model_type in FAMILIES,
        f"AdapterHub folders of {model_type!r} are not implemented{nearest(model_type, FAMILIES)}",
    )
    return FAMILIES[model_type]


def _piece(tuned: Tuned, family: Family, name: str, path: str) -> Piece:
    """Where the parameter at an unrolled path lies.

    Raises:
        UserError: AdapterHub has none like it.
    """
    module, _, leaf = path.rpartition("/")
    if leaf in PROJECTION:
        part, (theirs, form) = tuned.names.base[module], PROJECTION[leaf]
        part = Part(part) if isinstance(part, str) else part
        return Piece(f"{part.name}.loras.{name}.{theirs}", form, part.index)
    if path == "phm_rule":
        return Piece(f"shared_parameters.{name}.phm_rule", "plain")
    if leaf.startswith("prefix_"):
        return _prefix_piece(tuned, name, module, leaf)
    match = re.fullmatch(r"(.*layer_\d+)(/attention|/ffn|/ffn_norm|)/(adapter\W?\w+)", path)
    if not match or match[3] not in BLOCK:
        raise UserError(f"AdapterHub has no parameter like {path!r}")
    layer, site, (theirs, form) = match[1], match[2], BLOCK[match[3]]
    if "phm_rule" in tuned.shapes:  # hypercomplex projections call their bias otherwise
        theirs = re.sub("bias$", "b", theirs)
    norm, inside = f"{layer}/ffn_norm", family.output
    if site == "/attention":
        norm, inside = f"{layer}/attention_norm", family.attention
    block = tuned.names.plain()[norm].rpartition(".")[0]
    return Piece(f"{block}{inside}.adapters.{name}.{theirs}", form)


def _prefix_piece(tuned: Tuned, name: str, module: str, leaf: str) -> Piece:
    """Of prefix tuning: what a place's layers share, or what a layer's attention core has."""
    kind, end = re.fullmatch(r"prefix_([^_]*)(.*)", leaf).groups()
    place, index, (theirs, form) = kind, 0, (CORE if module else PREFIX)[end]
    if module:
        place = "cross" if module.endswith("/cross/core") else module.split("/")[0]
        index = 2 * int(re.search(r"layer_(\d+)/", module)[1]) + ("key", "value").index(kind)
    location = LOCATIONS[place] if tuned.base.two_sided else LOCATIONS["decoder"]
    return Piece(f"prefix_tuning.prefix_tunings.{name}.{location}.{theirs}", form, index)


def _pieces(tuned: Tuned, family: Family, name: str) -> dict[str, list[Piece]]:
    """Path of every parameter that the method adds → where its layers lie."""
    return {
        path: [_piece(tuned, family, name, unrolled) for unrolled in expand(path)]
        for path in tuned.shapes
        if path not in tuned.base.shapes
    }


def to_tensors(
    tuned: Tuned, params: Mapping[str, Any], model_type: str, name: str
) -> dict[str, np.ndarray]:
    """The tensors of the adapter `name` by AdapterHub's names, from its parameters."""
    family, rows, flat = family_of(model_type), {}, set()
    for path, pieces in _pieces(tuned, family, name).items():
        array = np.asarray(params[path], np.float32)
        layers = array[None] if expand(path) == [path] else array
        for piece, layer in zip(pieces, layers, strict=True):
            tensor = f"{family.prefix}.{piece.tensor}"
            rows.setdefault(tensor, {})[piece.index] = piece.rows(layer)
            if piece.form == "flat":
                flat.add(tensor)
    joined = {t: np.concatenate([parts[i] for i in sorted(parts)]) for t, parts in rows.items()}
    return {t: np.ascontiguousarray(x.T.ravel() if t in flat else x) for t, x in joined.items()}


def from_tensors(
    tuned: Tuned, tensors: Mapping[str, np.ndarray], model_type: str, name: str
) -> Flat:
    """The inverse of `to_tensors`; where the adapter was of a plain model, names have no prefix.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    family = family_of(model_type)
    bare = {
        tensor.removeprefix(f"{family.prefix}."): array
        for tensor, array in tensors.items()
        if ".pool." not in tensor  # where the library holds prefixes once more
    }
    found, shared = _pieces(tuned, family, name), {}
    for piece in (piece for pieces in found.values() for piece in pieces):
        shared.setdefault(piece.tensor, set()).add(piece.index)
    for tensor in shared:
        require(tensor in bare, f"the adapter lacks tensor {tensor!r}{nearest(tensor, bare)}")
    for tensor in bare:
        require(tensor in shared, f"the adapter has an unexpected tensor {tensor!r}")

    def layer(piece: Piece, shape: tuple[int, ...]) -> np.ndarray:
        indices, array = sorted(shared[piece.tensor]), bare[piece.tensor]
        fits = array.size == len(indices) * np.prod(shape)
        if fits and piece.form == "flat":
            array = array.reshape(shape[0], -1).T
        rows = len(array) // len(indices)
        start = rows * indices.index(piece.index)
        part = piece.ours(array[start : start + rows])
        fits = fits and part.shape == shape
        require(fits, f"tensor {piece.tensor!r} has shape {array.shape}: the model wants {shape}")
        return np.ascontiguousarray(part, np.float32)

    params = {}
    for path, pieces in found.items():
        shape = tuned.shapes[path].shape
        single = expand(path) == [path]
        layers = [layer(piece, shape if single else shape[1:]) for piece in pieces]
        params[path] = layers[0] if single else np.stack(layers)
    return params
