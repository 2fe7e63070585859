"""Folders that are published quantized, against the libraries that write them, or their formulas."""

import json
import shutil

import bitsandbytes
import numpy as np
import pytest
import torch
import transformers
from bitsandbytes import functional
from safetensors.torch import load_file, save_file

from ftjax import pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.folder import open_weights, read_config, stored_dtype
from ftjax.formats.hf.dequantize import STATE
from tests.models.cases import CASES
from tests.models.random_models import quick


def make(folder, case="llama", dtype=torch.bfloat16):
    """A small model's folder; its tensors."""
    torch.manual_seed(0)
    auto, config = transformers.AutoModelForCausalLM, CASES[case]()
    # bitsandbytes' own code for CPUs takes rows for whole numbers of blocks.
    config.hidden_size, config.head_dim = 64, 16
    auto.from_config(config, dtype=dtype).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def rewrite(folder, tensors, settings):
    save_file({n: x.contiguous() for n, x in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))


def projections(tensors):
    return [name for name in tensors if "proj" in name]


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bitsandbytes_of_4_bits(tmp_path, quant_type, nested, dtype):
    tensors, wanted = make(tmp_path, dtype=dtype), {}
    for name in projections(tensors):
        packed, state = functional.quantize_4bit(
            tensors[name], blocksize=64, quant_type=quant_type, compress_statistics=nested
        )
        wanted[name] = functional.dequantize_4bit(packed, state).float().numpy()
        tensors[name] = packed
        tensors |= {f"{name}.{key}": x for key, x in state.as_dict(packed=True).items()}
    rewrite(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    found = open_weights(tmp_path)
    assert "quantization_config" not in read_config(tmp_path)
    assert {n for n in found if "proj" in n} == set(wanted)
    for name, matrix in wanted.items():
        ours = np.asarray(found[name]).astype(np.float32)
        np.testing.assert_array_equal(ours, matrix, err_msg=name)
        np.testing.assert_array_equal(found[name][1:3, 2:].astype(np.float32), matrix[1:3, 2:])
    assert stored_dtype(tmp_path) == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_bitsandbytes_of_8_bits(tmp_path, case):
    tensors, wanted = make(tmp_path, case), {}
    names = projections(tensors) if case == "llama" else [n for n in tensors if ".c_" in n]
    for name in (n for n in names if n.endswith("weight")):
        matrix = tensors[name].half()
        matrix = matrix.T.contiguous() if case == "gpt2" else matrix  # as transformers turns them
        codes, scales, _ = functional.int8_vectorwise_quant(matrix)
        plain = functional.int8_vectorwise_dequant(codes, scales)
        wanted[name] = (plain.T if case == "gpt2" else plain).bfloat16().float().numpy()
        tensors[name] = codes
        tensors[name.replace("weight", "SCB")] = scales
        tensors[name.replace("weight", "weight_format")] = torch.tensor(0, dtype=torch.uint8)
    rewrite(tmp_path, tensors, {"load_in_8bit": True})  # as older versions wrote it, without a name
    found = open_weights(tmp_path)
    assert not any("SCB" in name or "format" in name for name in found)
    for name, matrix in wanted.items():
        ours = np.asarray(found[name]).astype(np.float32)
        np.testing.assert_allclose(ours, matrix, rtol=2**-7, err_msg=name)
        assert ours.shape == matrix.shape and np.mean(ours == matrix) > 0.99


def packed(codes, bits, order=None):
    """(rows, columns) codes as words of 32 bits, along columns."""
    each = 32 // bits
    words = torch.zeros(codes.shape[0], codes.shape[1] // each, dtype=torch.int64)
    for place in range(each):
        column = order[place] if order else place
        words |= codes[:, column::each].long() << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def grouped(matrix, bits, size, groups):
    """Codes (in, out), zeros and scales (groups, out) of a matrix (out, in), and what they say."""
    transposed = matrix.float().T
    count = int(groups.max()) + 1
    scales, zeros = torch.empty(count, len(matrix)), torch.empty(count, len(matrix))
    for group in range(count):
        rows = transposed[groups == group]
        low, high = rows.amin(0).clamp(max=0), rows.amax(0).clamp(min=0)
        scales[group] = ((high - low) / (2**bits - 1)).half().float()
        zeros[group] = torch.round(-low / scales[group]).clamp(1, 2**bits - 1)
    codes = torch.round(transposed / scales[groups] + zeros[groups]).clamp(0, 2**bits - 1)
    return codes, zeros, scales, (scales[groups] * (codes - zeros[groups])).T


@pytest.mark.parametrize(
    ("bits", "order", "form"),
    [
        (4, False, "gptq"),
        (4, True, "gptq"),
        (4, False, "gptq_v2"),
        (2, False, "gptq"),
        (8, False, "gptq"),
    ],
)
def test_gptq(tmp_path, bits, order, form):
    tensors, wanted = make(tmp_path, dtype=torch.float16), {}
    for name in projections(tensors):
        matrix, module = tensors.pop(name), name.removesuffix("weight")
        inputs = matrix.shape[1]
        groups = torch.arange(inputs) // 16
        if order:  # of inputs by their importance
            groups = groups[torch.randperm(inputs)]
        codes, zeros, scales, wanted[name] = grouped(matrix, bits, 16, groups)
        tensors[f"{module}qweight"] = packed(codes.T, bits).T
        tensors[f"{module}qzeros"] = packed(zeros - int(form == "gptq"), bits)
        tensors[f"{module}scales"] = scales.half()
        tensors[f"{module}g_idx"] = groups.int()
    settings = {"bits": bits, "group_size": 16, "desc_act": order, "checkpoint_format": form}
    rewrite(tmp_path, tensors, {"quant_method": "gptq", **settings})
    found = open_weights(tmp_path)
    assert {n for n in found if "proj" in n} == set(wanted)
    for name, matrix in wanted.items():
        assert found[name].shape == tuple(matrix.shape)
        ours = np.asarray(found[name]).astype(np.float32)
        np.testing.assert_array_equal(ours, matrix.half().float().numpy(), err_msg=name)


def test_awq(tmp_path):
    tensors, wanted = make(tmp_path, dtype=torch.float16), {}
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # which output each nibble of a word is of
    for name in projections(tensors):
        matrix, module = tensors.pop(name), name.removesuffix("weight")
        groups = torch.arange(matrix.shape[1]) // 16
        codes, zeros, scales, wanted[name] = grouped(matrix, 4, 16, groups)
        tensors[f"{module}qweight"] = packed(codes, 4, order)
        tensors[f"{module}qzeros"] = packed(zeros, 4, order)
        tensors[f"{module}scales"] = scales.half()
    settings = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
    rewrite(tmp_path, tensors, settings)
    found = open_weights(tmp_path)
    for name, matrix in wanted.items():
        ours = np.asarray(found[name]).astype(np.float32)
        np.testing.assert_array_equal(ours, matrix.half().float().numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "gptq", "bits": 3}, "gptq, bits 3"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "gptq"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq.* version gemv"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_others_are_named(tiny, tmp_path, settings, said):
    folder = tmp_path / "folder"
    shutil.copytree(tiny, folder)
    rewrite(folder, load_file(tiny / "model.safetensors"), settings)
    for read in (read_config, open_weights):
        with pytest.raises(UserError, match=f"is quantized by {said}.* which is not read"):
            read(folder)


NF4 = {"blocksize": 64, "dtype": "float16", "shape": [8, 8]}


def bytes_of(state) -> torch.Tensor:
    return torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("gptq", {"g_idx": torch.full((8,), 9)}, "'x' is damaged: index 9"),
        ("gptq", {"g_idx": None}, "'x' is damaged: 'group_size'"),
        ("gptq", {"qweight": torch.zeros(1)}, "'x' is damaged: not enough values"),
        ("awq", {"scales": torch.ones(3, 8)}, "'x' is damaged"),
        ("bitsandbytes", {"SCB": torch.ones(3)}, "'x' is damaged"),
        ("bitsandbytes", {"SCB": torch.ones(8), "weight_format": torch.tensor(2)}, "GPU's order"),
        ("bitsandbytes", {f"weight.{STATE}nf4": bytes_of([1])}, "'x' is damaged"),
        ("bitsandbytes", {f"weight.{STATE}nf4": bytes_of(NF4)}, "'x' lacks its 'weight.absmax'"),
    ],
)
def test_damaged_matrices_are_named(kind, change, message, tmp_path):
    words = {"qweight": torch.zeros(1, 8), "qzeros": torch.zeros(1, 1), "scales": torch.ones(1, 8)}
    words = {"qweight": torch.zeros(8, 1), "scales": torch.ones(1, 8)} if kind == "awq" else words
    parts = {"qzeros": torch.zeros(1, 1), **words, "g_idx": torch.zeros(8)}
    parts = {"weight": torch.zeros(8, 8)} if kind == "bitsandbytes" else parts
    parts = {name: tensor for name, tensor in {**parts, **change}.items() if tensor is not None}
    tensors = {
        f"x.{name}": tensor if tensor.dtype == torch.uint8 or name in ("scales", "SCB")
        else tensor.to(torch.int8 if name == "weight" else torch.int32)
        for name, tensor in parts.items()
    }  # fmt: skip
    (tmp_path / "config.json").write_text("{}")
    rewrite(tmp_path, tensors, {"quant_method": kind, "bits": 4, "load_in_8bit": True})
    with pytest.raises(UserError, match=message):
        np.asarray(open_weights(tmp_path)["x.weight"])


def test_a_quantized_model_is_trained_and_exported_plain(tmp_path, one_device):
    import jax

    from ftjax import methods
    from ftjax.formats.export import write_export

    tensors = make(tmp_path / "base")
    for name in projections(tensors):
        layer = bitsandbytes.nn.Params4bit(tensors[name], quant_type="nf4", requires_grad=False)
        layer = layer.to("cpu")
        tensors[name] = layer.data
        parts = layer.quant_state.as_dict(packed=True)
        tensors |= {f"{name}.{key}": x for key, x in parts.items()}
    rewrite(tmp_path / "base", tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    model = build_tuned(
        read_config(tmp_path / "base"),
        methods.create({"name": "lora"}),
        {},
        {"head": "causal_lm"},
    )
    params, absent = pretrained.load(tmp_path / "base", model, one_device, jax.random.key(0))
    assert not absent
    write_export("hf", tmp_path / "out", tmp_path / "base", model, params, problem=None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    ids = np.arange(12).reshape(2, 6) + 4
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
    ours = quick(model.apply)(params, {"input_ids": ids})
    np.testing.assert_allclose(ours, wanted, atol=0.02 * np.abs(wanted).max())
    assert theirs.config.dtype in ("bfloat16", torch.bfloat16, torch.float32)
    assert stored_dtype(tmp_path / "out") == "bfloat16"
