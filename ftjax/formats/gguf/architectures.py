"""A GGUF file's model, as Hugging Face's configuration and tensors.

llama.cpp's converter from Hugging Face changes names; the order of Llama's rows of queries and
keys, so that rotary pairs lie side by side; Gemma's norms, to which it adds their 1; and it turns
GPT-2's kernels. All of that is undone here.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.errors import UserError, require
from ftjax.formats.gguf.file import File, read
from ftjax.formats.guard import reading
from ftjax.options import Above0, Layers, Natural, NotNegative, Size

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QUERY_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp's, as Hugging Face has it.

    Attributes:
        model_type: of config.json.
        name: of the class with the language model's head.
        config: the rest of config.json.
        outer: llama.cpp's module → theirs.
        layer: the same inside a layer.
        layers: what their layers are called.
        permuted: modules whose rows are reordered, and the key that counts their heads.
        offset: what was added to norms.
        transposed: kernels of layers are stored (in, out) by Hugging Face.
        ignored: modules that are copies of others.
    """

    model_type: str
    name: str
    config: Callable[[File], dict[str, Any]]
    outer: Mapping[str, str] = field(default_factory=lambda: OUTER)
    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    layers: str = "model.layers"
    permuted: Mapping[str, str] = field(default_factory=dict)
    offset: float = 0.0
    transposed: bool = False
    ignored: tuple[str, ...] = ("rope_freqs",)


def architecture(file: File) -> Architecture:
    """How Hugging Face has the file's architecture.

    Raises:
        UserError: it is not supported.
    """
    name = file.architecture
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise UserError(
            f"{file.path}: the GGUF architecture {name!r} is not supported (supported: {known})"
        )
    return ARCHITECTURES[name]


def read_config(path: Path) -> dict[str, Any]:
    """What config.json would say.

    Raises:
        UserError: the architecture, or what it is set to, is not supported.
    """
    file = read(path)
    kind = architecture(file)
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise UserError(f"{path} lacks the tensor 'token_embd.weight'")
    return {
        "model_type": kind.model_type,
        "architectures": [kind.name],
        "vocab_size": table.shape[-1],  # innermost first
        **kind.config(file),
        **{f"{name}_token_id": file.token_id(name) for name in ("bos", "eos", "pad")},
    }


class Weights(Mapping[str, np.ndarray]):
    """Tensors by Hugging Face's names, each read and dequantized to float32 when asked for.

    Raises:
        UserError: the file holds a tensor that its architecture does not have.
    """

    def __init__(self, path: Path) -> None:
        self._file = read(path)
        self._kind = architecture(self._file)
        self._stored: dict[str, tuple[str, str]] = {}
        kind = self._kind
        for stored in self._file.tensors:
            matched = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", stored)
            number, module, leaf = matched.groups() if matched else (None, stored, "")
            if number is None and module in kind.ignored:
                continue
            name = (kind.outer if number is None else kind.layer).get(module)
            if name is None:
                raise UserError(f"{path} has an unexpected tensor {stored!r} for a {kind.name}")
            inside = "" if number is None else f"{kind.layers}.{number}."
            self._stored[f"{inside}{name}.{leaf}"] = stored, module

    def __getitem__(self, name: str) -> np.ndarray:
        from gguf.quants import dequantize

        stored, module = self._stored[name]
        file, kind, tensor = self._file, self._kind, self._file.tensors[stored]
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                array = np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)
        except NotImplementedError:
            form = tensor.tensor_type.name
            raise UserError(
                f"{file.path}: tensor {stored!r} is stored as {form}, which is not supported"
            ) from None
        if module in kind.permuted:
            heads = file.get(kind.permuted[module], Size, file.get("attention.head_count", Size))
            fits = array.ndim and len(array) % (2 * heads) == 0
            require(fits, f"{file.path}: tensor {stored!r} of {array.shape} has not {heads} heads")
            pairs = array.reshape(heads, -1, 2, *array.shape[1:])
            return pairs.swapaxes(1, 2).reshape(array.shape)
        if module.endswith("norm") and name.endswith("weight"):
            return array - kind.offset
        return array.T if kind.transposed and module in kind.layer else array

    def __contains__(self, name: object) -> bool:  # which is not to dequantize
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def _tied(file: File) -> bool:
    """Whether words are read off by their table: there is no other, or a copy of it."""
    table, head = (file.tensors.get(f"{name}.weight") for name in ("token_embd", "output"))
    return head is None or (
        head.tensor_type == table.tensor_type and np.array_equal(head.data, table.data)
    )


def stored_dtype(path: Path) -> str:
    """The floating type that most numbers have; of quantized ones what they are read as."""
    names = {"F16": "float16", "BF16": "bfloat16"}
    counts: Counter[str] = Counter()
    for tensor in read(path).tensors.values():
        counts[names.get(tensor.tensor_type.name, "float32")] += int(tensor.n_elements)
    return max(counts, key=counts.get)


def _llama(file: File) -> dict[str, Any]:
    """What the kin of Llama share."""
    if file.get("expert_count", Natural, 0):
        raise UserError(f"{file.path}: experts in GGUF files are not implemented")
    heads = file.get("attention.head_count", Size)
    size = file.get("embedding_length", Size)
    head_dim = file.get("attention.key_length", Size, max(size // heads, 1))
    return {
        "hidden_size": size,
        "intermediate_size": file.get("feed_forward_length", Size),
        "num_hidden_layers": file.get("block_count", Layers),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get("attention.head_count_kv", Size, heads),
        "head_dim": head_dim,
        "max_position_embeddings": file.get("context_length", Size),
        "rms_norm_eps": file.get("attention.layer_norm_rms_epsilon", NotNegative),
        "rope_parameters": _rope(file, head_dim),
        "tie_word_embeddings": _tied(file),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
    }


def _rope(file: File, head_dim: int) -> dict[str, Any]:
    """The rotary embedding.

    Raises:
        UserError: it is scaled in a way that is not implemented.
    """
    theta = file.get("rope.freq_base", Above0, 10_000.0)
    scaling = file.get("rope.scaling.type", str, "none")
    parameters = {"rope_type": "default", "rope_theta": theta}
    rotated = file.get("rope.dimension_count", Size, head_dim)
    if scaling not in ("none", "linear") or (rotated != head_dim and architecture(file).permuted):
        raise UserError(
            f"{file.path}: rope.scaling.type={scaling!r} over {rotated} of {head_dim} features is "
            "not implemented"
        )
    if rotated != head_dim:
        parameters["partial_rotary_factor"] = rotated / head_dim
    if scaling == "linear":
        return {
            **parameters,
            "rope_type": "linear",
            "factor": file.get("rope.scaling.factor", Above0, 1.0),
        }
    if "rope_freqs.weight" in file.tensors:
        divisors = np.asarray(file.tensors["rope_freqs.weight"].data, np.float64)
        with (
            reading(file.path, "has rope_freqs.weight that cannot be read"),
            np.errstate(divide="raise", invalid="raise"),
        ):
            return {**parameters, **_llama3(divisors, theta, file.path)}
    return parameters


def _llama3(divisors: np.ndarray, theta: float, path: Path) -> dict[str, Any]:
    """The scaling of Llama 3 that divides frequencies so.

    A frequency of c cycles a token is kept by the share (original · c - low) / (high - low), within
    0 and 1, and divided by `factor` by the rest. The shares between tell the line; low is 1, since
    scaling all three numbers changes nothing.

    Raises:
        UserError: it is no such scaling.
    """
    cycles = theta ** (-np.arange(len(divisors)) / len(divisors)) / (2 * np.pi)
    factor = round(float(divisors.max()), 4)
    share = (1 / divisors - 1 / factor) / (1 - 1 / factor) if factor > 1 else divisors * 0
    between = (share > 1e-4) & (share < 1 - 1e-4)
    if between.sum() > 1:
        slope, start = np.polyfit(cycles[between], share[between], 1)
        high, original = round(1 - 1 / start, 4), round(-slope / start)
        fitted = np.clip((original * cycles - 1) / (high - 1), 0, 1)
        if np.allclose(fitted, share, atol=1e-3):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": float(high),
                "original_max_position_embeddings": original,
            }
    raise UserError(f"{path}: rope_freqs.weight scales otherwise than Llama 3; not implemented")


def _phi3(file: File) -> dict[str, Any]:
    return {
        **_llama(file),
        "sliding_window": file.get("attention.sliding_window", Natural, 0) or None,
    }


def _gemma(file: File) -> dict[str, Any]:
    return {**_llama(file), "hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(file: File, largest: int = 46) -> dict[str, Any]:
    """Gemma 2, whose largest model, told by its depth, scales scores by √(hidden / heads)."""
    config = _gemma(file)
    if config["num_hidden_layers"] == largest:
        scalar = config["hidden_size"] // config["num_attention_heads"]
    else:
        scalar = config["head_dim"]
    return {
        **config,
        "query_pre_attn_scalar": scalar,
        "sliding_window": file.get("attention.sliding_window", Natural, 4096),
        "attn_logit_softcapping": file.get("attn_logit_softcapping", Above0, 50.0),
        "final_logit_softcapping": file.get("final_logit_softcapping", Above0, 30.0),
    }


def _gemma3(file: File) -> dict[str, Any]:
    """Gemma 3, which caps nothing; every sixth layer sees all, and is rotated otherwise."""
    config = _gemma2(file, largest=62)
    every = file.get("attention.sliding_window_pattern", Size, 6)
    numbers = range(1, config["num_hidden_layers"] + 1)
    kinds = ["sliding_attention" if n % every else "full_attention" for n in numbers]
    local = {"rope_type": "default", "rope_theta": file.get("rope.freq_base_swa", Above0, 10_000.0)}
    return {
        **config,
        "layer_types": kinds,
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": local,
        },
        "attn_logit_softcapping": None,
        "final_logit_softcapping": file.get("final_logit_softcapping", NotNegative, 0.0) or None,
    }


def _gpt2(file: File) -> dict[str, Any]:
    return {
        "n_embd": file.get("embedding_length", Size),
        "n_inner": file.get("feed_forward_length", Size),
        "n_layer": file.get("block_count", Layers),
        "n_head": file.get("attention.head_count", Size),
        "n_positions": file.get("context_length", Size),
        "layer_norm_epsilon": file.get("attention.layer_norm_epsilon", NotNegative),
        "tie_word_embeddings": _tied(file),
    }


ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        _llama,
        permuted={"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"},
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _llama),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _llama, layer={**LAYER, **QUERY_NORM}),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", _phi3, layer={**LAYER, **FUSED}),
    "gemma": Architecture("gemma", "GemmaForCausalLM", _gemma, offset=1.0),
    "gemma2": Architecture(
        "gemma2", "Gemma2ForCausalLM", _gemma2, layer={**LAYER, **POST_NORMS}, offset=1.0
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _gemma3,
        layer={**LAYER, **QUERY_NORM, **POST_NORMS},
        offset=1.0,
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        _gpt2,
        outer=GPT2_OUTER,
        layer=GPT2,
        layers="transformer.h",
        transposed=True,
    ),
}
