"""GPT-Neo (Black et al. 2021): GPT-2 with unscaled scores, every other layer of them local."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.models.config import inside
from ftjax.models.config_keys import keys
from ftjax.models.decoder import DEFAULT_TARGETS, Config, Model, checked
from ftjax.models.heads import Head, untied, with_dropouts
from ftjax.models.layers import Options

__all__ = ["DEFAULT_TARGETS", "Model"]

MODEL = "GPTNeoModel"
HF_PREFIX = "transformer"
HEADS = {
    "causal_lm": Head("GPTNeoForCausalLM", vocabulary="lm_head"),
    "classification": Head("GPTNeoForSequenceClassification", {"classifier": "score"}),
    "tokens": Head("GPTNeoForTokenClassification", {"classifier": "classifier"}),
    "span": Head("GPTNeoForQuestionAnswering", {"classifier": "qa_outputs"}),
}
KEYS = {
    "gpt_neo": keys(
        "vocab_size hidden_size intermediate_size num_layers num_heads max_position_embeddings "
        "activation_function layer_norm_epsilon attention_types attention_layers window_size "
        "embed_dropout attention_dropout resid_dropout classifier_dropout initializer_range "
        "tie_word_embeddings",
        aliases={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
        is_encoder_decoder=(False,),
    )
}
KINDS = ("global", "local")
LAYER = {
    "attention_norm": "ln_1",
    "attention/query": "attn.attention.q_proj",
    "attention/key": "attn.attention.k_proj",
    "attention/value": "attn.attention.v_proj",
    "attention/output": "attn.attention.out_proj",
    "ffn_norm": "ln_2",
    "ffn/up": "mlp.c_fc",
    "ffn/down": "mlp.c_proj",
}
MODULES = {
    "words": "wte",
    "positions": "wpe",
    **inside("decoder/layer_{}", "h.{}", LAYER),
    "final_norm": "ln_f",
}


def kinds_of(hf: Mapping[str, Any]) -> tuple[int, ...]:
    """Each layer's kind, a place in `KINDS`.

    Raises:
        UserError: `attention_types` names another kind, or not as many layers as there are.
    """
    types, layers = hf.get("attention_types") or [[KINDS, 12]], hf.get("num_layers", 24)
    for pattern in types:
        is_pair = len(pattern) == 2 and isinstance(pattern[0], list | tuple)
        if not (is_pair and type(pattern[1]) is int and 0 < pattern[1] <= layers):
            raise UserError(
                f"gpt_neo: attention_types={types!r} are no kinds and how often they come"
            )
    names = hf.get("attention_layers")
    types = [(names, 1)] if names else types
    unknown = [name for pattern, _ in types for name in pattern if name not in KINDS]
    if unknown:
        raise UserError(f"gpt_neo: attention_types {unknown[0]!r} is not implemented")
    count = sum(len(pattern) * times for pattern, times in types)  # before there are as many
    if count != layers:
        raise UserError(f"gpt_neo: attention_types name {count} layers of {layers}")
    names = [name for pattern, times in types for name in times * list(pattern)]
    return tuple(KINDS.index(name) for name in names)


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    size, heads = hf.get("hidden_size", 2048), hf.get("num_heads", 16)
    if size % heads:
        raise UserError("gpt_neo: num_heads does not divide hidden_size")
    tied = hf.get("tie_word_embeddings", True)
    family_heads = with_dropouts(HEADS, {"tokens": hf.get("classifier_dropout", 0.1)})
    return checked(
        Config(
            vocab_size=hf.get("vocab_size", 50257),
            hidden_size=size,
            intermediate_size=hf.get("intermediate_size") or 4 * size,
            num_hidden_layers=hf.get("num_layers", 24),
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=size // heads,
            max_position_embeddings=hf.get("max_position_embeddings", 2048),
            hidden_act=hf.get("activation_function", "gelu_new"),
            gated=False,
            norm="layer",
            norm_eps=hf.get("layer_norm_epsilon", 1e-5),
            biases=("output", "ffn"),
            windows=(None, hf.get("window_size", 256)),
            kinds=kinds_of(hf),
            scale=1.0,
            tied=tied,
            embedding_dropout=hf.get("embed_dropout", 0.0),
            attention_dropout=hf.get("attention_dropout", 0.0),
            dropout=hf.get("resid_dropout", 0.0),
            initializer_range=hf.get("initializer_range", 0.02),
            heads=family_heads if tied else untied(family_heads, "lm_head"),
            modules=MODULES,
            options=options,
        ),
        "gpt_neo",
    )
