"""The example of a new model family in docs/extending.md is one: it equals transformers."""

import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

from ftjax import methods, models, pretrained
from ftjax.build import build_tuned
from ftjax.formats.folder import Weights, read_config
from ftjax.formats.hf import mapping
from tests.models.cases import PLAIN

PAGE = Path(__file__).parents[2] / "docs/extending.md"


@pytest.fixture
def example(monkeypatch):
    """Registers the example as its two code blocks say."""
    *_, code, entry = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    module = types.ModuleType("ftjax.models.stablelm")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))
    for name, line in eval("{" + entry + "}").items():
        monkeypatch.setitem(models.FAMILIES, name, line)


@pytest.mark.parametrize(
    ("head", "reference"),
    [
        ("causal_lm", transformers.StableLmForCausalLM),
        ("classification", transformers.StableLmForSequenceClassification),
    ],
)
def test_the_new_family_equals_transformers(example, head, reference, one_device, tmp_path):
    torch.manual_seed(0)
    theirs = reference(transformers.StableLmConfig(**PLAIN, use_qkv_bias=True)).eval()
    theirs.save_pretrained(tmp_path)
    full = methods.create({"name": "full"})
    model = build_tuned(read_config(tmp_path), full, {"segments": "scan"}, {"head": head})
    params, absent = pretrained.load(tmp_path, model, one_device, jax.random.key(0))
    assert not absent
    ids = np.random.default_rng(0).integers(5, 64, (3, 11))
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids)).logits.numpy()
    found = jax.jit(model.apply)(params, {"input_ids": ids})
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    stored = Weights(tmp_path)
    tensors = mapping.to_tensors(params, model.names, prefix=True)
    assert set(tensors) == set(stored)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, np.asarray(stored[name]), err_msg=name)


def test_what_the_example_refuses(example):
    config = transformers.StableLmConfig(**PLAIN, qk_layernorm=True).to_dict()
    with pytest.raises(models.UserError, match="qk_layernorm"):
        build_tuned(config, methods.create({"name": "full"}))
