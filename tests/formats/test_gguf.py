"""GGUF files equal the models and tokenizers that they were made of."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from ftjax import models
from ftjax.errors import UserError
from ftjax.formats.folder import fingerprint, locate, open_weights, read_config
from ftjax.models.layers import Options
from tests.models.cases import CASES, DECODER, LLAMA3


def write(path: Path, architecture: str, entries: dict, tensors: dict) -> Path:
    """A file of metadata, and of tensors or pairs of raw blocks and their type."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in entries.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    for name, value in tensors.items():
        data, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def one_tensor(path: Path, data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """What is read of a tensor that needs no reordering."""
    file = write(path / "one.gguf", "qwen2", {}, {"blk.0.ffn_up.weight": (data, kind)})
    return open_weights(file)["model.layers.0.mlp.up_proj.weight"]


# The largest error of a rounded value, by the largest of its 32: a step, since the end of the
# range opposite to the largest is cut.
STEPS = {"Q4_0": 1 / 8, "Q4_1": 1 / 15, "Q5_0": 1 / 16, "Q5_1": 1 / 31, "Q8_0": 0.5 / 127}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *STEPS])
def test_plain_types_round_as_they_should(tmp_path, kind):
    values = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    number = gguf.GGMLQuantizationType[kind]
    found = one_tensor(tmp_path, gguf.quants.quantize(values, number), number)
    assert found.dtype == np.float32
    if kind in STEPS:
        largest = np.abs(values.reshape(6, 2, 32)).max(-1, keepdims=True)
        error = np.abs(found - values).reshape(6, 2, 32)
        assert (error <= 1.01 * STEPS[kind] * largest).all() and error.max() > 0
    else:
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
        np.testing.assert_array_equal(found, torch.tensor(values).to(dtype).float().numpy())


def half(block: np.ndarray, start: int) -> float:
    return float(block[start : start + 2].view(np.float16)[0])


def scale_and_least(scales: np.ndarray, j: int) -> tuple[int, int]:
    """The j-th pair of 6-bit numbers among 12 bytes."""
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    high = scales[j - 4] >> 6, scales[j] >> 6
    return scales[j + 4] & 15 | high[0] << 4, scales[j + 4] >> 4 | high[1] << 4


def q2_k(block: np.ndarray, i: int) -> float:
    b, (part, j, k) = block.astype(int), (i // 128, i % 128 // 32, i % 32)
    scale, quant = b[i // 16], b[16 + 32 * part + k] >> 2 * j & 3
    return half(block, 80) * (scale & 15) * quant - half(block, 82) * (scale >> 4)


def q3_k(block: np.ndarray, i: int) -> float:
    b, (part, j, k) = block.astype(int), (i // 128, i % 128 // 32, i % 32)
    scales, n = b[96:108], i // 16
    scale = (scales[n % 8] >> 4 * (n // 8) & 15) | (scales[8 + n % 4] >> 2 * (n // 4) & 3) << 4
    quant = (b[32 + 32 * part + k] >> 2 * j & 3) - 4 * (1 - (b[k] >> i // 32 & 1))
    return half(block, 108) * (scale - 32) * quant


def q4_k(block: np.ndarray, i: int) -> float:
    b, (j, k) = block.astype(int), (i // 32, i % 32)
    scale, least = scale_and_least(b[4:16], j)
    quant = b[16 + 32 * (j // 2) + k] >> 4 * (j % 2) & 15
    return half(block, 0) * scale * quant - half(block, 2) * least


def q5_k(block: np.ndarray, i: int) -> float:
    b, (j, k) = block.astype(int), (i // 32, i % 32)
    scale, least = scale_and_least(b[4:16], j)
    quant = (b[48 + 32 * (j // 2) + k] >> 4 * (j % 2) & 15) + 16 * (b[16 + k] >> j & 1)
    return half(block, 0) * scale * quant - half(block, 2) * least


def q6_k(block: np.ndarray, i: int) -> float:
    b, (part, j, k) = block.astype(int), (i // 128, i % 128 // 32, i % 32)
    low = b[64 * part + 32 * (j % 2) + k] >> 4 * (j // 2) & 15
    quant = low + 16 * (b[128 + 32 * part + k] >> 2 * j & 3) - 32
    return half(block, 208) * int(block[192 + i // 16].view(np.int8)) * quant


# By type: the layout of its blocks of 256, as published with llama.cpp, and where their halves lie.
K_QUANTS = {
    "Q2_K": (q2_k, (80, 82)),
    "Q3_K": (q3_k, (108,)),
    "Q4_K": (q4_k, (0, 2)),
    "Q5_K": (q5_k, (0, 2)),
    "Q6_K": (q6_k, (208,)),
}


@pytest.mark.parametrize("kind", list(K_QUANTS))
def test_k_quants_follow_their_published_layout(tmp_path, kind):
    formula, halves = K_QUANTS[kind]
    number = gguf.GGMLQuantizationType[kind]
    random = np.random.default_rng(1)
    blocks = random.integers(0, 256, (3, gguf.GGML_QUANT_SIZES[number][1]), np.uint8)
    for start in halves:  # any bytes are numbers but for infinite or absent ones
        scales = random.uniform(0.5, 2.0, (3, 1)).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8)
    wanted = [[formula(block, i) for i in range(256)] for block in blocks]
    np.testing.assert_allclose(one_tensor(tmp_path, blocks, number), wanted, rtol=1e-6)


def entries_of(architecture: str, config: transformers.PretrainedConfig) -> dict:
    """What llama.cpp's converter writes of a configuration."""
    c = config.to_dict()
    if architecture == "gpt2":
        found = {
            "context_length": c["n_positions"],
            "embedding_length": c["n_embd"],
            "feed_forward_length": 4 * c["n_embd"],
            "block_count": c["n_layer"],
            "attention.head_count": c["n_head"],
            "attention.layer_norm_epsilon": c["layer_norm_epsilon"],
        }
        return {f"gpt2.{name}": value for name, value in found.items()}
    rope = c["rope_parameters"]
    found = {
        "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"],
        "feed_forward_length": c["intermediate_size"],
        "block_count": c["num_hidden_layers"],
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": c["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
        "rope.freq_base": float(rope.get("full_attention", rope)["rope_theta"]),
    }
    if architecture in ("qwen3", "gemma", "gemma2", "gemma3"):
        found["attention.key_length"] = c["head_dim"]
    if architecture in ("gemma2", "gemma3", "phi3"):
        found["attention.sliding_window"] = c["sliding_window"]
    if architecture == "gemma2":
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            found[name] = c[name]
    return {f"{architecture}.{name}": value for name, value in found.items()}


def stored(architecture: str, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A model's tensors in llama.cpp's form, under the names of its own table."""
    config = model.config
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = array.reshape(heads, 2, -1, array.shape[-1])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        if architecture == "gpt2" and array.ndim == 2 and ".h." in name:
            array = array.T
        tensors[table.get_name(name, try_suffixes=(".weight", ".bias"))] = array
    return tensors


def llama3_divisors() -> np.ndarray:
    """What llama.cpp divides frequencies by for `LLAMA3`: transformers' plain over scaled ones."""
    make = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"]
    config = transformers.LlamaConfig(**DECODER, rope_parameters=SCALING)
    plain = SCALING["rope_theta"] ** -(np.arange(0, 8, 2) / 8)
    return (plain / make(config, "cpu")[0].numpy()).astype(np.float32)


# Of the four frequencies of a head of 8, one is kept, one divided, and two are between.
SCALING = {**LLAMA3, "rope_theta": 20.0, "original_max_position_embeddings": 40}


def tiny(name: str, turned: bool = False) -> torch.nn.Module:
    """A random model, with norms and biases that are not trivial.

    Args:
        name: of a case.
        turned: words are tied where they are not, and the other way round.
    """
    torch.manual_seed(0)
    config = CASES[name]()
    if turned:
        config.tie_word_embeddings = not config.tie_word_embeddings
    if name == "llama":
        config.rope_parameters = SCALING
    if name == "qwen2":  # a file says nothing of windows
        config.layer_types, config.sliding_window = ["full_attention"] * 3, None
    if name in ("gemma2", "gemma3"):  # nor of another scale
        config.query_pre_attn_scalar = config.head_dim
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


ARCHITECTURES = ["llama", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3", "gpt2"]
TURNED = ["qwen2", "gemma3", "gpt2"]  # words tied that are not, or not tied, where llama.cpp can


@pytest.mark.parametrize(
    ("architecture", "turned"),
    [*((name, False) for name in ARCHITECTURES), *((name, True) for name in TURNED)],
)
def test_an_architecture_is_what_its_folder_is(tmp_path, architecture, turned):
    model = tiny(architecture, turned)
    model.save_pretrained(tmp_path / "folder")
    tensors = stored(architecture, model)
    if architecture == "llama":
        tensors["rope_freqs.weight"] = llama3_divisors()
    entries = entries_of(architecture, model.config)
    file = write(tmp_path / "model.gguf", architecture, entries, tensors)
    found, wanted = read_config(file), read_config(tmp_path / "folder")
    family = models.family(wanted)
    assert models.family(found) is family
    ours, theirs = (models.configure(config, Options()) for config in (found, wanted))
    drawn = ("initializer_range", "residual_range")  # of which the file says nothing
    assert replace(ours, **{name: getattr(theirs, name) for name in drawn}) == theirs
    weights, folder = open_weights(file), open_weights(tmp_path / "folder")
    assert set(weights) == set(folder)
    for name, array in folder.items():
        np.testing.assert_allclose(weights[name], array, atol=1e-6, err_msg=name)
    assert found["architectures"] == wanted["architectures"]


def test_a_copy_of_the_table_is_tied(tmp_path):
    model = tiny("gpt2")
    tensors = stored("gpt2", model)
    entries = entries_of("gpt2", model.config)
    tensors["output.weight"] = tensors["token_embd.weight"]
    file = write(tmp_path / "model.gguf", "gpt2", entries, tensors)
    assert read_config(file)["tie_word_embeddings"]
    tensors["output.weight"] = tensors["output.weight"] + 1
    file = write(tmp_path / "other.gguf", "gpt2", entries, tensors)
    assert not read_config(file)["tie_word_embeddings"]


def test_a_scaling_that_is_not_llama_3s_is_refused(tmp_path):
    model = tiny("llama")
    tensors = stored("llama", model) | {"rope_freqs.weight": llama3_divisors()[::-1]}
    file = write(tmp_path / "model.gguf", "llama", entries_of("llama", model.config), tensors)
    with pytest.raises(UserError, match="rope_freqs"):
        read_config(file)


def test_fingerprint_is_of_the_content(tmp_path):
    file = write(tmp_path / "a.gguf", "qwen2", {}, {"token_embd.weight": np.ones((2, 2), "f")})
    first = fingerprint(file)
    write(file, "qwen2", {}, {"token_embd.weight": np.zeros((2, 2), "f")})
    assert fingerprint(file) != first
    assert (open_weights(file)["model.embed_tokens.weight"] == 0).all()


def test_what_cannot_be_read_is_said(tmp_path):
    model = tiny("llama")
    entries, tensors = entries_of("llama", model.config), stored("llama", model)
    file = write(tmp_path / "whole.gguf", "llama", entries, tensors)
    content = file.read_bytes()
    for length in (0, 3, 20, 50, 1000, len(content) // 2, len(content) - 1000):
        cut = tmp_path / f"{length}.gguf"
        cut.write_bytes(content[:length])
        with pytest.raises(UserError, match=f"{length}.gguf is not a GGUF file, or is truncated"):
            read_config(cut)
    other = tmp_path / "other.gguf"
    other.write_text("this is no model" * 100)
    with pytest.raises(UserError, match="is not a GGUF file"):
        open_weights(other)
    write(other, "mamba", {}, {"token_embd.weight": np.ones((2, 2), "f")})
    with pytest.raises(UserError, match="'mamba' is not supported .*llama"):
        read_config(other)
    write(other, "llama", {}, {"token_embd.weight": np.ones((2, 2), "f")})
    with pytest.raises(UserError, match="llama.attention.head_count is absent"):
        read_config(other)
    write(other, "llama", {}, {"blk.0.ssm_in.weight": np.ones((2, 2), "f")})
    with pytest.raises(UserError, match=r"unexpected tensor 'blk.0.ssm_in.weight'"):
        open_weights(other)
    with pytest.raises(UserError, match="neither a folder nor a .gguf file"):
        locate(str(tmp_path / "absent.gguf"))
