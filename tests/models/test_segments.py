"""Which models are scanned when nothing is said: those of a billion parameters in their layers."""

import math

import pytest

from ftjax import methods
from ftjax.build import build_tuned, segments_of
from ftjax.models.presets import PRESETS
from ftjax.models.stack import parameters_of

OLMOE = {  # small layers of many experts
    **PRESETS["mixtral-8x7b"],
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_local_experts": 64,
}
T5 = {**PRESETS["t5-11b"], "num_heads": 16, "d_kv": 64, "d_ff": 4096}  # t5-large
BART = {  # wide, and the sides unlike
    "model_type": "bart",
    "vocab_size": 50265,
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 6,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "encoder_ffn_dim": 32768,
    "decoder_ffn_dim": 16384,
}
MODELS = {**PRESETS, "many experts": OLMOE, "t5-large": T5, "wide bart": BART}


@pytest.mark.parametrize("name", MODELS)
def test_auto_goes_by_what_the_layers_hold(name):
    config, full = MODELS[name], methods.create({"name": "full"})
    model = build_tuned(config, full, {"segments": "scan"}, {"head": None})
    layers = [x for path, x in model.shapes.items() if "layer" in path and x.ndim > 2]
    count = sum(math.prod(x.shape) for x in layers)
    found = parameters_of(model.config)
    assert abs(found - count) < 0.01 * count
    auto = segments_of(model.config, {"segments": "auto"}, full)
    assert (max(auto) > 1) == (count >= 1e9)
