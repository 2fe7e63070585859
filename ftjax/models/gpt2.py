"""GPT-2 (Radford et al. 2019), decoder with learned positions."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.models.config import QKV, fused, inside
from ftjax.models.config_keys import keys
from ftjax.models.decoder import Config, Model, checked
from ftjax.models.heads import Head, untied, with_dropouts
from ftjax.models.layers import Options
from ftjax.models.llama import tokens_dropout
from ftjax.names import Part

__all__ = ["Model"]

DEFAULT_TARGETS = ("c_attn",)  # query, key and value, which are stored as one

MODEL = "GPT2Model"
HF_PREFIX = "transformer"
HEADS = {
    "causal_lm": Head("GPT2LMHeadModel", vocabulary="lm_head"),
    "classification": Head("GPT2ForSequenceClassification", {"classifier": "score"}),
    "tokens": Head("GPT2ForTokenClassification", {"classifier": "classifier"}),
    "span": Head("GPT2ForQuestionAnswering", {"classifier": "qa_outputs"}),
}
KEYS = {
    "gpt2": keys(
        "vocab_size n_embd n_inner n_layer n_head n_positions activation_function "
        "layer_norm_epsilon scale_attn_weights embd_pdrop attn_pdrop resid_pdrop "
        "classifier_dropout hidden_dropout initializer_range tie_word_embeddings",
        # The summary is of a head for choices that is not among `HEADS`.
        inert="reorder_and_upcast_attn summary_activation summary_first_dropout "
        "summary_last_dropout summary_proj_to_labels summary_type summary_use_proj",
        aliases={
            "hidden_size": "n_embd",
            "max_position_embeddings": "n_positions",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
        is_encoder_decoder=(False,),
    )
}
LAYER = {
    "attention_norm": "ln_1",
    **fused("attn.c_attn", dict.fromkeys(QKV, "hidden_size"), transposed=True),
    "attention/output": Part("attn.c_proj", transposed=True),
    "ffn_norm": "ln_2",
    "ffn/up": Part("mlp.c_fc", transposed=True),
    "ffn/down": Part("mlp.c_proj", transposed=True),
}
MODULES = {
    "words": "wte",
    "positions": "wpe",
    **inside("decoder/layer_{}", "h.{}", LAYER),
    "final_norm": "ln_f",
}


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    size, heads, layers = hf.get("n_embd", 768), hf.get("n_head", 12), hf.get("n_layer", 12)
    if size % heads:
        raise UserError(f"gpt2: n_head={heads} does not divide n_embd={size}")
    stddev, tied = hf.get("initializer_range", 0.02), hf.get("tie_word_embeddings", True)
    family_heads = with_dropouts(HEADS, {"tokens": tokens_dropout(hf)})
    return checked(
        Config(
            vocab_size=hf.get("vocab_size", 50257),
            hidden_size=size,
            intermediate_size=hf.get("n_inner") or 4 * size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=size // heads,
            max_position_embeddings=hf.get("n_positions", 1024),
            hidden_act=hf.get("activation_function", "gelu_new"),
            gated=False,
            norm="layer",
            norm_eps=hf.get("layer_norm_epsilon", 1e-5),
            biases=("qkv", "output", "ffn"),
            scale=None if hf.get("scale_attn_weights", True) else 1.0,
            tied=tied,
            embedding_dropout=hf.get("embd_pdrop", 0.1),
            attention_dropout=hf.get("attn_pdrop", 0.1),
            dropout=hf.get("resid_pdrop", 0.1),
            initializer_range=stddev,
            residual_range=stddev / (2 * layers) ** 0.5,
            heads=family_heads if tied else untied(family_heads, "lm_head"),
            modules=MODULES,
            options=options,
        ),
        "gpt2",
    )
