"""What only ModernBERT has: its classifier's pooling, optional biases, older configurations."""

import jax
import numpy as np
import pytest
import torch
import transformers

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.models import configure
from ftjax.models.layers import Options
from tests.conftest import build
from tests.models.cases import CASES

FULL = {"name": "full"}


@pytest.mark.parametrize("segments", ["unrolled", "scan"])
def test_mean_pooling_and_every_bias_equal_transformers(one_device, tmp_path, segments):
    config = CASES["modernbert"]()
    biased = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
    config.update({**dict.fromkeys(biased, True), "classifier_pooling": "mean"})
    torch.manual_seed(0)
    theirs = transformers.ModernBertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
    theirs.save_pretrained(tmp_path)
    head = {"head": "classification", "labels": 2}
    model = build(tmp_path, FULL, {"segments": segments}, head)
    params, absent = pretrained.load(tmp_path, model, one_device, jax.random.key(0))
    assert not absent
    batch = {
        "input_ids": np.random.default_rng(0).integers(4, 64, (3, 15)),
        "attention_mask": (np.arange(15) < np.array([[15], [9], [4]])).astype(np.int32),
    }
    with torch.no_grad():
        wanted = theirs(**{name: torch.tensor(value) for name, value in batch.items()}).logits
    np.testing.assert_allclose(jax.jit(model.apply)(params, batch), wanted.numpy(), atol=1e-5)


def test_older_configurations_say_the_same():
    new = transformers.ModernBertConfig(num_hidden_layers=4).to_dict()
    old = {name: new[name] for name in new if name not in ("layer_types", "rope_parameters")}
    old |= {"global_attn_every_n_layers": 3}
    old |= {"global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
    config = configure(old, Options())
    assert config == configure(new, Options())
    assert config.kinds == (0, 1, 1, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"classifier_pooling": "max"},
        {"classifier_activation": "mish"},
        {"layer_types": ["linear_attention"] * 3},
    ],
)
def test_what_is_not_implemented_is_said(change):
    (option,) = change
    with pytest.raises(UserError, match=f"modernbert: {option}"):
        build_tuned({**CASES["modernbert"]().to_dict(), **change}, methods.create(FULL))
