"""What AdapterHub calls the parameters that methods add, and how it lays them out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftjax.errors import UserError, nearest, require
from ftjax.formats.adapterhub import reft as adapterhub_reft
from ftjax.methods.dora import Dora
from ftjax.methods.example_tokens import ENDS
from ftjax.methods.lora import Lora
from ftjax.methods.method import Method
from ftjax.methods.reft import Reft
from ftjax.methods.unipelt import Unipelt
from ftjax.names import Part
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
    "lora_a": ("lora_A", "transposed"),
    "lora_b": ("lora_B", "transposed"),
    "lora_m": ("m.weight", "column"),
    "ia3_out": ("lora_B", "column"),
    "gate_lora_kernel": ("gate.weight", "transposed"),
    "gate_lora_bias": ("gate.bias", "plain"),
}
BLOCK = {
    f"adapter/{ours}": (f"adapters.{{}}.adapter_{theirs}", form)
    for ours, theirs, form in (
        ("down_kernel", "down.0.weight", "transposed"),
        ("down_bias", "down.0.bias", "plain"),
        ("down_left", "down.0.W_left", "plain"),
        ("down_right", "down.0.W_right", "plain"),
        ("up_kernel", "up.weight", "transposed"),
        ("up_bias", "up.bias", "plain"),
        ("up_left", "up.W_left", "plain"),
        ("up_right", "up.W_right", "plain"),
    )
}
BLOCK |= {
    "adapter_scale": ("adapters.{}.scaling", "plain"),
    "gate_adapter_kernel": ("adapters.{}.gate.weight", "transposed"),
    "gate_adapter_bias": ("adapters.{}.gate.bias", "plain"),
    "fusion/query_kernel": ("adapter_fusion_layer.{}.query.weight", "transposed"),
    "fusion/query_bias": ("adapter_fusion_layer.{}.query.bias", "plain"),
    "fusion/key_kernel": ("adapter_fusion_layer.{}.key.weight", "transposed"),
    "fusion/key_bias": ("adapter_fusion_layer.{}.key.bias", "plain"),
    "fusion/value_kernel": ("adapter_fusion_layer.{}.value.weight", "transposed"),
}
OF_BASE = "/lora_n0"  # which DoRA computes of the base's weights
# The same of prefixes: of the model, after the place, and of an attention core, after key or value.
PREFIX = {
    "_embedding": ("wte.weight", "plain"),
    "_kernel": ("control_trans.0.weight", "transposed"),
    "_bias": ("control_trans.0.bias", "plain"),
}
CORE = {
    "": ("control_trans", "flat"),
    "_kernel": ("control_trans.2.weight", "transposed"),
    "_bias": ("control_trans.2.bias", "plain"),
}
GATE = {"kernel": ("weight", "transposed"), "bias": ("bias", "plain")}  # of an attention's prefix
REFT = {
    "kernel": ("learned_source.weight", "transposed"),
    "bias": ("learned_source.bias", "plain"),
    "rotation": ("projection.weight", "transposed"),
}
LOCATIONS = {"encoder": "encoder_prefix", "decoder": "self_prefix", "cross": "cross_prefix"}


@dataclass(frozen=True)
class Piece:
    """Where a layer's parameter lies: rows of a tensor.

    Attributes:
        tensor: its name, without the model's prefix.
        form: "plain"; "transposed", as kernels, which are stored (out, in); "column", of a vector;
            "flat", where all rows are turned back once they are together, and stored as one axis.
        index: of these rows among those of the parameters that share the tensor.
        factor: of theirs to ours.
    """

    tensor: str
    form: str
    index: int = 0
    factor: float = 1.0

    def rows(self, ours: np.ndarray) -> np.ndarray:
        """Ours as rows of theirs."""
        ours = ours * np.float32(self.factor)
        return {"plain": ours, "column": ours[..., None]}.get(self.form, ours.T)

    def ours(self, rows: np.ndarray) -> np.ndarray:
        """The inverse."""
        rows = rows / np.float32(self.factor)
        return {"plain": rows, "column": rows.reshape(-1)}.get(self.form, rows.T)


def family_of(model_type: str) -> Family:
    """The family of config.json's `model_type`.

    Raises:
        UserError: it is not implemented.
    """
    if model_type not in FAMILIES:
        near = nearest(model_type, FAMILIES)
        raise UserError(f"AdapterHub folders of {model_type!r} are not implemented{near}")
    return FAMILIES[model_type]


def _piece(tuned: Tuned, family: Family, name: str, path: str) -> Piece:
    """Where the parameter at an unrolled path lies.

    Raises:
        UserError: AdapterHub has none like it.
    """
    module, _, leaf = path.rpartition("/")
    names = tuned.names.plain()
    if leaf in PROJECTION:
        part, (theirs, form) = tuned.names.base[module], PROJECTION[leaf]
        index = part.index if isinstance(part, Part) else 0
        factor = _scale_left_out(tuned.method) if leaf == "lora_b" else 1.0
        return Piece(f"{names[module]}.loras.{name}.{theirs}", form, index, factor)
    if path == "phm_rule":
        return Piece(f"shared_parameters.{name}.phm_rule", "plain")
    if leaf.startswith("prefix_"):
        return _prefix_piece(tuned, name, module, leaf)
    if leaf.startswith("gate_prefix_"):
        attention = names[f"{module}/query"].rpartition(".")[0]
        theirs, form = GATE[leaf.removeprefix("gate_prefix_")]
        return Piece(f"{attention}.prefix_tuning.prefix_gates.{name}.{theirs}", form)
    if leaf.startswith("reft_"):
        layer = re.match(r".*?\.\d+", names[f"{module}/ffn_norm"])[0]
        _, end, kind = leaf.split("_")
        theirs, form = REFT[kind]
        return Piece(f"{layer}.reft_layer.refts.{name}.units.{ENDS[end] - 1}.{theirs}", form)
    match = re.fullmatch(r"(.*layer_\d+)(?:/(attention|ffn|ffn_norm))?/(\w+(?:/\w+)?)", path)
    if not match or match[3] not in BLOCK:
        raise UserError(f"AdapterHub has no parameter like {path!r}")
    layer, site, (theirs, form) = match[1], match[2], BLOCK[match[3]]
    if "phm_rule" in tuned.shapes:  # hypercomplex projections call their bias otherwise
        theirs = re.sub("bias$", "b", theirs)
    norm, inside = "ffn_norm", family.output
    if site == "attention":
        norm, inside = "attention_norm", family.attention
    block = names[f"{layer}/{norm}"].rpartition(".")[0]
    return Piece(f"{block}{inside}.{theirs.format(name)}", form)


def _scale_left_out(method: Method) -> float:
    """α/r where the library leaves it out: of DoRA's norms, and under gates."""
    parts = getattr(method, "parts", (method,))
    lora = next(part for part in parts if isinstance(part, Lora))
    return lora.scale if isinstance(lora, Dora) or isinstance(method, Unipelt) else 1.0


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
    """Path of every parameter that the method adds to the base → where its layers lie."""
    return {
        path: [_piece(tuned, family, name, unrolled) for unrolled in expand(path)]
        for path in tuned.shapes
        if path not in tuned.base.shapes and not path.endswith(OF_BASE)
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
    tensors = {t: x.T.ravel() if t in flat else x for t, x in joined.items()}
    if isinstance(tuned.method, Reft):
        tensors = adapterhub_reft.written(tensors, tuned.method)
    return {tensor: np.ascontiguousarray(x) for tensor, x in tensors.items()}


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
    if isinstance(tuned.method, Reft):
        bare = adapterhub_reft.read(bare, tuned.method)
    by_path, shared = _pieces(tuned, family, name), {}
    for piece in (piece for pieces in by_path.values() for piece in pieces):
        shared.setdefault(piece.tensor, set()).add(piece.index)
    for tensor in shared.keys() - bare.keys():
        raise UserError(f"the adapter lacks tensor {tensor!r}{nearest(tensor, bare)}")
    for tensor in bare:
        require(tensor in shared, f"the adapter has an unexpected tensor {tensor!r}")

    def layer(piece: Piece, shape: tuple[int, ...]) -> np.ndarray:
        indices, array = sorted(shared[piece.tensor]), np.atleast_1d(bare[piece.tensor])
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
    for path, pieces in by_path.items():
        shape = tuned.shapes[path].shape
        single = expand(path) == [path]
        layers = [layer(piece, shape if single else shape[1:]) for piece in pieces]
        params[path] = layers[0] if single else np.stack(layers)
    return params
