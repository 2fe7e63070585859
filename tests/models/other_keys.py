"""Another sensible value of every key of config.json that a family reads."""

import json
from typing import Any

from ftjax.models import family
from ftjax.models.config_keys import Keys
from tests.models.cases import CASES, LLAMA3

# Names of sizes, by family.
SIZES = {
    "vocab_size": 72,
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 1),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head", "num_heads"), 6),
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 6,
    "num_key_value_heads": 3,
    **dict.fromkeys(("head_dim", "d_kv"), 12),
    "d_head": 8,
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_inner", "n_inner", "d_ff"), 40),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 40),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 48),
    "type_vocab_size": 3,
    "embedding_size": 24,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "num_local_experts": 3,
    "num_experts_per_tok": 3,
    "decoder_vocab_size": 72,
    "attention_head_size": 8,
    "pooler_hidden_size": 48,
}
ACTIVATIONS = {
    name: "relu"
    for name in (
        "hidden_act",
        "activation",
        "ff_activation",
        "hidden_activation",
        "activation_function",
        "classifier_activation",
        "summary_activation",
        "pooler_hidden_act",
    )
}
EPSILONS = dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_eps"), 0.03)
DROPOUTS = {
    name: round(0.011 * number, 3)
    for number, name in enumerate(
        [
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "classifier_dropout_prob",
            "dropout",
            "attention_dropout",
            "seq_classif_dropout",
            "qa_dropout",
            "summary_first_dropout",
            "summary_last_dropout",
            "cls_dropout",
            "pooler_dropout",
            "activation_dropout",
            "embd_pdrop",
            "attn_pdrop",
            "resid_pdrop",
            "embed_dropout",
            "resid_dropout",
            "dropout_rate",
            "embedding_dropout",
            "mlp_dropout",
            "hidden_dropout",
        ],
        start=1,
    )
}
OTHERS: dict[str, Any] = {
    **dict.fromkeys(("initializer_range", "init_std", "initializer_factor"), 0.4),
    "initializer_cutoff_factor": 1.5,
    "tie_word_embeddings": "turned",  # the other of the two
    "position_biased_input": False,
    "relative_attention": True,
    "pos_att_type": ["c2p"],
    "max_relative_positions": 14,
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "legacy": False,
    "pad_token_id": 3,
    "clamp_len": 3,
    "norm_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    "classifier_bias": True,
    "decoder_bias": False,
    "classifier_pooling": "mean",
    "local_attention": 4,
    "global_attn_every_n_layers": 2,
    "scale_attn_weights": False,
    "attention_types": [[["local", "global"], 1]],
    "attention_layers": ["local", "global"],
    "window_size": 3,
    "rope_parameters": LLAMA3,
    "rope_theta": 50.0,
    "rope_scaling": {"rope_type": "linear", "factor": 3.0},
    "global_rope_theta": 50.0,
    "local_rope_theta": 30.0,
    "rope_local_base_freq": 30.0,
    "partial_rotary_factor": 0.5,
    "sliding_window": 3,
    "use_sliding_window": "turned",
    "max_window_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 9,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "use_bidirectional_attention": True,
    "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "relu",
    "is_gated_act": True,
    "relative_attention_num_buckets": 6,
    "relative_attention_max_distance": 9,
    "scale_decoder_outputs": False,
    "decoder_start_token_id": 5,
    "eos_token_id": 7,
    "scale_embedding": "turned",
}
VALUES = {**SIZES, **ACTIVATIONS, **EPSILONS, **DROPOUTS, **OTHERS}
NESTED = {  # of families whose kinds of layers have their own
    "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
# What differs for a family: another value, or None for keys that follow from others there, and
# for one that transformers' T5 does not heed.
FAMILY: dict[str, dict[str, Any]] = {
    "modernbert": {"rope_parameters": NESTED, "head_dim": None, "attention_bias": True},
    "gemma3_text": {"rope_parameters": NESTED},
    "phi3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 50.0,
            "partial_rotary_factor": 0.5,
        },
        "rope_scaling": None,
    },
    "deberta-v2": {"embedding_size": None, "attention_head_size": None},
    "qwen2": {"use_sliding_window": True},
    "qwen3": {"max_window_layers": None},
    "t5": {"dense_act_fn": None, "pad_token_id": None, "tie_word_embeddings": None},
}
FAMILY["mt5"] = FAMILY["t5"]
# Older names of what a key of today says.
OLDER = {
    "rope_theta",
    "rope_scaling",
    "global_rope_theta",
    "local_rope_theta",
    "rope_local_base_freq",
    "partial_rotary_factor",
    "global_attn_every_n_layers",
    "sliding_window_pattern",
    "attention_types",
    "hidden_dropout",
    "max_window_layers",
    "feed_forward_proj",
}


def table_of(kind: str) -> Keys:
    """A model type's table of keys."""
    return family({"model_type": kind}).KEYS[kind]


def base_of(case: str) -> dict[str, Any]:
    """config.json of a case."""
    return json.loads(CASES[case]().to_json_string())


def other(kind: str, base: dict[str, Any], name: str) -> Any:
    """Another value of a key; None where it follows from others."""
    value = {**VALUES, **FAMILY.get(kind, {})}[name]
    return not base.get(name, name == "tie_word_embeddings") if value == "turned" else value


def others(case: str) -> dict[str, Any]:
    """Another value of every key that a case's family reads, all of which go together."""
    base = base_of(case)
    kind = base["model_type"]
    named = {name: other(kind, base, name) for name in table_of(kind).read - OLDER}
    return {name: value for name, value in named.items() if value is not None}
