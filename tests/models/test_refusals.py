"""Configurations that a family does not implement are refused by the option's name."""

import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.models import FAMILIES
from tests.models.random_models import config_of

YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0}
AXIAL = [[["global", "axial"], 1], [["local"], 1]]
QWEN = {"use_sliding_window": True, "sliding_window": 4}
REFUSED = [  # case, what is changed, what the message must say
    ("roberta", {"is_decoder": True}, "is_decoder"),
    ("roberta", {"hidden_act": "mish"}, "hidden_act='mish'"),
    ("albert", {"position_embedding_type": "relative_key"}, "albert.*'relative_key'"),
    ("bert", {"num_attention_heads": 5}, "num_attention_heads does not divide hidden_size"),
    ("deberta-v3", {"conv_kernel_size": 3}, "conv_kernel_size"),
    ("deberta-v2", {"embedding_size": 16}, "embedding_size"),
    ("distilbert", {"sinusoidal_pos_embds": True}, "sinusoidal_pos_embds=True"),
    ("electra", {"summary_type": "mean"}, "summary_type='mean'"),
    ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling='max'"),
    ("modernbert", {"layer_types": ["chunked_attention"] * 3}, "layer_types.*'chunked_attention'"),
    ("xlnet", {"attn_type": "uni"}, "attn_type='uni'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt_neo", {"attention_types": AXIAL, "attention_layers": None}, "attention_types.*'axial'"),
    ("llama", {"rope_parameters": YARN}, "llama: rope_type='yarn'"),
    ("mistral", {"num_key_value_heads": 3}, "mistral: num_key_value_heads does not divide"),
    (
        "qwen2",
        {"layer_types": ["chunked_attention"] * 3},
        "qwen2.*layer_types.*'chunked_attention'",
    ),
    ("qwen3", {"layer_types": ["full_attention"] * 4, **QWEN}, "layer_types name 4 layers of 3"),
    ("gemma2", {"hidden_activation": "mish"}, "gemma2.*'mish'"),
    ("gemma3", {"layer_types": ["chunked_attention"] * 7}, "gemma3_text.*'chunked_attention'"),
    (
        "t5",
        {"dense_act_fn": None, "feed_forward_proj": "gated-mish"},
        "feed_forward_proj='gated-mish'",
    ),
    ("bart", {"encoder_layerdrop": 0.1}, "bart: encoder_layerdrop=0.1"),
    ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
    ("marian", {"activation_function": "mish"}, "marian: activation_function='mish'"),
    ("llama", {"hidden_size": None}, "llama.*lacks 'hidden_size'"),
    ("t5", {"d_model": None}, "t5.*lacks 'd_model'"),
]


def refused(config: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_tuned(config, methods.create({"name": "full"}))


@pytest.mark.parametrize(("case", "change", "message"), REFUSED)
def test_an_option_that_is_not_implemented_is_named(case, change, message):
    config = config_of(case) | change
    refused(
        {name: value for name, value in config.items() if change.get(name, 0) is not None}, message
    )


def test_every_family_refuses_something():
    tried = {FAMILIES[config_of(case)["model_type"]][0] for case, _, _ in REFUSED}
    assert tried | {"bert"} == {module for module, _ in FAMILIES.values()}
