"""Folders that are published quantized, read as the plain tensors that they stand for.

The matrices of bitsandbytes (4 and 8 bit), GPTQ and AWQ are dequantized when they are asked for, by
the formulas of the libraries that write them. Other kinds are named as what they are.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ftjax.errors import UserError, require
from ftjax.formats.hf.weights import Weights, weight_files
from ftjax.formats.jsons import check, read_json
from ftjax.options import Count, Positive, Size

TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
STATE = "quant_state.bitsandbytes__"  # then nf4 or fp4: JSON, as bytes
INTERLEAVED = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # AWQ: where in a word each of eight outputs is
PACKED = 32  # bits of a word
# What wrong sizes and numbers lead to.
DAMAGED = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)
Parts = Mapping[str, Any]  # of a matrix, by the names after its module's


def quantization(folder: Path) -> dict[str, Any]:
    """What a folder says of its quantization, with the kind as "quant_method"; empty: it is plain.

    Raises:
        UserError: a kind that is not read.
    """
    config = folder / "config.json"
    settings = (read_json(config) if config.exists() else {}).get("quantization_config") or {}
    require(isinstance(settings, dict), f"{config}: quantization_config={settings!r} is no object")
    if not settings and (folder / "quantize_config.json").exists():  # as AutoGPTQ wrote it
        config = folder / "quantize_config.json"
        settings = {"quant_method": "gptq", **read_json(config)}
    if not settings:
        return {}
    check(config, settings, Quantization)
    kind = settings.get("quant_method")
    if kind is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        kind = "bitsandbytes"
    bits = settings.get("bits", 4)
    form = str(settings.get("version", settings.get("format", "gemm"))).lower()
    packed = str(settings.get("checkpoint_format") or "gptq")
    known = {
        "bitsandbytes": True,
        "gptq": bits in (2, 4, 8) and packed.startswith("gptq"),
        "awq": bits == 4 and form == "gemm",
    }
    if not known.get(str(kind), False):
        details = {k: settings[k] for k in ("bits", "format", "fmt", "version") if k in settings}
        listed = "".join(f", {key} {value}" for key, value in details.items())
        raise UserError(
            f"{config}: the model is quantized by {kind}{listed}, which is not read; bitsandbytes, "
            "GPTQ of 2, 4 and 8 bits and AWQ of 4 bits (gemm) are. Save it dequantized, with the "
            "library that wrote it"
        )
    return {**settings, "quant_method": kind}


@dataclass(frozen=True)
class Quantization:
    """What keys may be that say how a model is quantized, with examples."""

    quant_method: str | None = "gptq"
    bits: Positive = 4
    group_size: Count = 128
    version: str | None = "gemm"
    format: str | None = "gemm"
    checkpoint_format: str | None = "gptq"
    load_in_4bit: bool = False
    load_in_8bit: bool = False


@dataclass(frozen=True)
class State:
    """The same of a matrix of bitsandbytes' in 4 bits."""

    shape: list[Size] = ()
    dtype: str = "float16"
    blocksize: Size = 64
    nested_blocksize: Size = 256
    nested_offset: float = 0.0


@dataclass(frozen=True)
class Dequantized:
    """A matrix, computed whole when it is sliced.

    Attributes:
        name: of its folder and module, for messages.
        shape: as a plain folder stores it.
        dtype: that it is rounded to.
        compute: gives it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    compute: Callable[[], np.ndarray]

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self)[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        try:
            array = self.compute()
        except DAMAGED as error:
            raise UserError(f"{self.name} is damaged: {error}") from error
        fits = array.shape == self.shape
        require(fits, f"{self.name} is of {array.shape}, not {self.shape}")
        return array.astype(self.dtype).astype(dtype or self.dtype, copy=False)


def plain_weights(folder: Path) -> dict[str, Any]:
    """Tensors of a quantized folder by the names that they have in a plain one.

    Raises:
        UserError: a part of a quantized matrix is absent.
    """
    settings, stored = quantization(folder), Weights(folder)
    files = ", ".join(map(str, weight_files(folder)))
    config = read_json(folder / "config.json")
    # What GPT-2's kernels are turned to before bitsandbytes has them.
    transposed = config.get("model_type") == "gpt2"
    open_parts = {"bitsandbytes": _bitsandbytes, "gptq": _gptq, "awq": _awq}
    opened = open_parts[settings["quant_method"]]
    ends = {"bitsandbytes": ".weight"}.get(settings["quant_method"], ".qweight")
    usual = TYPES.get(str(config.get("dtype", config.get("torch_dtype"))), np.float16)
    tensors: dict[str, Any] = {}
    used: set[str] = set()
    for name in stored:
        if not name.endswith(ends):
            continue
        module = name.removesuffix(ends)
        matrix = f"{files}, quantized as {folder / 'config.json'} says: the matrix {module!r}"
        parts = {n.removeprefix(f"{module}."): stored[n] for n in _own(stored, module)}
        try:
            plain = opened(matrix, parts, settings, np.dtype(usual), transposed)
        except KeyError as error:
            raise UserError(f"{matrix} lacks its {error}") from None
        except DAMAGED as error:
            raise UserError(f"{matrix} is damaged: {error}") from error
        if plain is not None:
            tensors[f"{module}.weight"] = plain
            used.update(f"{module}.{n}" for n in parts if n != "bias")
    return tensors | {name: stored[name] for name in stored if name not in used}


PARTS = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax")
PARTS += ("weight.nested_quant_map", f"weight.{STATE}nf4", f"weight.{STATE}fp4")
PARTS += ("SCB", "weight_format", "qweight", "qzeros", "scales", "g_idx", "bias")


def _own(stored: Mapping[str, Any], module: str) -> list[str]:
    return [f"{module}.{part}" for part in PARTS if f"{module}.{part}" in stored]


def _bitsandbytes(
    name: str, parts: Parts, settings: Mapping[str, Any], dtype: np.dtype, transposed: bool
) -> Dequantized | None:
    """A matrix of 4 or 8 bits; None for one that is plain."""
    if "SCB" in parts:
        order = int(np.asarray(parts.get("weight_format", 0)))
        require(order == 0, "its rows are in a GPU's order; save it with a newer bitsandbytes")
        shape = parts["weight"].shape
        compute = partial(_eight_bits, parts, transposed)
        return Dequantized(name, shape[::-1] if transposed else shape, dtype, compute)
    states = [part for part in parts if STATE in part]
    if not states:
        return None
    state = json.loads(bytes(np.asarray(parts[states[0]])))
    check(states[0], state, State)
    shape, blocks = tuple(state["shape"]), math.prod(parts["weight.absmax"].shape)
    size = math.prod(shape)
    whole = size <= 2 * math.prod(parts["weight"].shape) and blocks == -(
        -size // state["blocksize"]
    )
    require(len(shape) == 2 and whole, f"it has not as many numbers as the shape {shape}")
    compute = partial(_four_bits, parts, state, transposed)
    # Rounded as the library does, to the type that the matrix had.
    dtype = np.dtype(TYPES.get(state["dtype"], dtype))
    return Dequantized(name, shape[::-1] if transposed else shape, dtype, compute)


def _eight_bits(parts: Mapping[str, Any], transposed: bool) -> np.ndarray:
    """code · scale / 127, with a scale an output (Dettmers et al. 2022, LLM.int8)."""
    scales = np.asarray(parts["SCB"], np.float32)
    require(scales.shape == parts["weight"].shape[:1], f"SCB has shape {scales.shape}")
    matrix = np.asarray(parts["weight"]).astype(np.float32) * scales[:, None] / 127
    return matrix.T if transposed else matrix


def _four_bits(parts: Mapping[str, Any], state: Mapping[str, Any], transposed: bool) -> np.ndarray:
    """code[nibble] · absmax, a block of rows end to end (Dettmers et al. 2023, §3)."""
    packed = np.asarray(parts["weight"]).reshape(-1)
    codes = np.asarray(parts["weight.quant_map"], np.float32)
    absmax = np.asarray(parts["weight.absmax"])
    if "nested_blocksize" in state:
        groups = np.asarray(parts["weight.nested_absmax"], np.float32)
        levels = np.asarray(parts["weight.nested_quant_map"], np.float32)
        group = np.arange(len(absmax)) // state["nested_blocksize"]
        absmax = levels[absmax] * groups[group] + np.float32(state["nested_offset"])
    size = int(np.prod(state["shape"]))
    values = codes[np.stack([packed >> 4, packed & 15], 1).reshape(-1)[:size]]
    scales = np.repeat(absmax.astype(np.float32), state["blocksize"])[:size]
    matrix = (values * scales).reshape(state["shape"])
    return matrix.T if transposed else matrix


def _gptq(
    name: str, parts: Parts, settings: Mapping[str, Any], dtype: np.dtype, transposed: bool
) -> Dequantized:
    bits = settings.get("bits", 4)
    size, out = parts["qweight"].shape
    shape = (out, size * PACKED // bits)
    for part in ("qzeros", "scales"):
        parts[part]  # absent: said now
    compute = partial(_grouped_rows, parts, settings, bits, transposed)
    return Dequantized(name, shape[::-1] if transposed else shape, dtype, compute)


def _grouped_rows(
    parts: Mapping[str, Any], settings: Mapping[str, Any], bits: int, transposed: bool
) -> np.ndarray:
    """scale · (code − zero), of groups of inputs (Frantar et al. 2022, as AutoGPTQ packs it).

    Codes are packed along inputs, zeros along outputs. The first form of the files keeps zeros less
    one, of which those that do not fit wrap around.
    """
    codes = _unpacked(np.asarray(parts["qweight"]).T, bits).T
    zeros = _unpacked(np.asarray(parts["qzeros"]), bits)
    if settings.get("checkpoint_format", "gptq") == "gptq":
        zeros = (zeros + 1) & (2**bits - 1)
    if "g_idx" in parts:
        group = np.asarray(parts["g_idx"])
    else:
        size = settings["group_size"] if settings["group_size"] > 0 else len(codes)
        group = np.arange(len(codes)) // size
    scales = np.asarray(parts["scales"], np.float32)
    wide = scales.shape[1:] == zeros.shape[1:] == codes.shape[1:]
    require(wide, f"scales have shape {scales.shape}, and zeros {zeros.shape}")
    matrix = scales[group] * (codes - zeros[group]).astype(np.float32)
    return matrix if transposed else matrix.T


def _awq(
    name: str, parts: Parts, settings: Mapping[str, Any], dtype: np.dtype, transposed: bool
) -> Dequantized:
    size, words = parts["qweight"].shape
    for part in ("qzeros", "scales"):
        parts[part]
    return Dequantized(name, (words * 8, size), dtype, partial(_interleaved, parts))


def _interleaved(parts: Mapping[str, Any]) -> np.ndarray:
    """scale · (code − zero), of groups of inputs; both packed along outputs (Lin et al. 2023)."""

    def codes(name: str) -> np.ndarray:
        unpacked = _unpacked(np.asarray(parts[name]), 4)
        return unpacked.reshape(len(unpacked), -1, 8)[:, :, INTERLEAVED].reshape(unpacked.shape)

    scales = np.asarray(parts["scales"], np.float32)
    matrix, zeros = codes("qweight"), codes("qzeros")
    wide = scales.shape == zeros.shape and scales.shape[1:] == matrix.shape[1:]
    require(wide, f"scales have shape {scales.shape}, and zeros {zeros.shape}")
    size = len(matrix) // len(scales)
    whole = np.repeat(scales, size, 0) * (matrix - np.repeat(zeros, size, 0)).astype(np.float32)
    return whole.T


def _unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """(rows, words) of 32 bits → (rows, words · 32 / bits) codes, the lowest bits first."""
    shifts = np.arange(0, PACKED, bits, dtype=np.uint32)
    codes = np.ascontiguousarray(words, np.int32).view(np.uint32)[:, :, None] >> shifts & np.uint32(
        2**bits - 1
    )
    return codes.reshape(len(words), -1).astype(np.int32)
