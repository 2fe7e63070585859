"""What only GPT-Neo has: kinds of layers by pattern, buffers in published folders."""

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from tests.conftest import build
from tests.models.cases import CASES


def test_lora_beside_a_tied_head_and_buffers_equals_transformers(one_device, tmp_path):
    torch.manual_seed(0)
    theirs = transformers.GPTNeoForCausalLM(CASES["gpt_neo"]()).eval()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for i in range(3):  # as the published folders hold them
        name = f"transformer.h.{i}.attn.attention"
        tensors[f"{name}.bias"] = np.tril(np.ones((1, 1, 64, 64), np.uint8))
        tensors[f"{name}.masked_bias"] = np.array(-1e9, np.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    model = build(tmp_path, {"name": "lora", "rank": 2}, {}, {"head": "causal_lm"})
    assert model.partition.groups == ("lora",)
    params, absent = pretrained.load(tmp_path, model, one_device, jax.random.key(0))
    assert not absent
    ids = np.random.default_rng(0).integers(4, 64, (2, 12))
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
    found = jax.jit(model.apply)(params, {"input_ids": ids})
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("types", "message"),
    [([[["global", "sparse"], 2]], "sparse"), ([[["global"], 2]], "2 layers of 3")],
)
def test_layers_it_does_not_have_are_named(types, message):
    config = {**CASES["gpt_neo"]().to_dict(), "attention_types": types}
    del config["attention_layers"]  # which are the same, layer by layer
    with pytest.raises(UserError, match=f"gpt_neo: attention_types.*{message}"):
        build_tuned(config, methods.create({"name": "full"}))
