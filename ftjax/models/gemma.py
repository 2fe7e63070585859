"""Gemma 1, 2 and 3 (text): norms by 1 + scale, scaled embeddings, local and global layers."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ftjax.models import llama, rotary
from ftjax.models.config_keys import keys
from ftjax.models.decoder import DEFAULT_TARGETS, Config, Model, checked, sizes
from ftjax.models.heads import Head
from ftjax.models.layers import Options

__all__ = ["DEFAULT_TARGETS", "Model"]

MODEL = "GemmaModel"
HF_PREFIX = "model"
KINDS = {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3"}
POST_NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}
MODULES = {
    "gemma": llama.MODULES,
    "gemma2": llama.modules_of({**llama.LAYER, **POST_NORMS}),
    "gemma3_text": llama.modules_of({**llama.LAYER, **POST_NORMS}),
}
READ = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim max_position_embeddings rms_norm_eps attention_bias "
    "attention_dropout initializer_range tie_word_embeddings "
    f"{rotary.KEYS}"
)
TOKENS = "classifier_dropout hidden_dropout"
LATER = "hidden_activation query_pre_attn_scalar final_logit_softcapping"
SLIDING = "sliding_window layer_types"
KEYS = {
    # In the first two, what transformers makes of it depends on whether there is padding.
    "gemma": keys(
        f"{READ} {TOKENS} hidden_act", use_bidirectional_attention=(None, False), **llama.ONE_SIDED
    ),
    "gemma2": keys(
        f"{READ} {TOKENS} {LATER} {SLIDING} attn_logit_softcapping",
        use_bidirectional_attention=(None, False),
        **llama.ONE_SIDED,
    ),
    "gemma3_text": keys(
        f"{READ} {LATER} {SLIDING} sliding_window_pattern rope_local_base_freq "
        "use_bidirectional_attention",
        inert="_sliding_window_pattern",  # a record: with it stands `layer_types`
        attn_logit_softcapping=(None,),  # which transformers' class knows and does not heed
        **llama.ONE_SIDED,
    ),
}
DEFAULTS = {
    "gemma": {"max_position_embeddings": 8192},
    "gemma2": {
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
    },
}


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    family = hf["model_type"]
    hf = {**DEFAULTS[family], **hf}
    layers, head_dim = hf["num_hidden_layers"], hf.get("head_dim") or 256
    windows, kinds, both_sides = (None,), (), bool(hf.get("use_bidirectional_attention"))
    if both_sides:  # the window is then of both sides together
        window = hf.get("sliding_window")
        hf = {**hf, "sliding_window": (4096 if window is None else window) // 2 + 1}
    if family != "gemma":
        period = hf.get("sliding_window_pattern", 6) if family == "gemma3_text" else 2
        names = hf.get("layer_types") or [
            "sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)
        ]
        windows, kinds = llama.windows_of({**hf, "layer_types": names})
    if family == "gemma3_text":
        of_kind = partial(rotary.of_kind, hf, size=head_dim, family=family)
        theta, local_theta = hf.get("rope_theta", 1e6), hf.get("rope_local_base_freq", 1e4)
        global_rotary = of_kind("full_attention", theta=theta, scaling=hf.get("rope_scaling"))
        local_rotary = of_kind("sliding_attention", theta=local_theta, scaling=None)
        rotaries = (global_rotary, local_rotary)[: len(windows)]
    else:
        rotaries = (rotary.from_hf(hf, head_dim, family),) * len(windows)
    scalar, tied = hf.get("query_pre_attn_scalar"), hf.get("tie_word_embeddings", True)
    act = hf.get("hidden_activation", hf.get("hidden_act", "gelu_pytorch_tanh"))
    if family == "gemma" and act == "gelu":  # which released configurations call so
        act = "gelu_pytorch_tanh"
    return checked(
        Config(
            **sizes(hf),
            num_key_value_heads=hf["num_key_value_heads"],
            head_dim=head_dim,
            hidden_act=act,
            norm="rms_offset",
            norm_eps=hf.get("rms_norm_eps", 1e-6),
            biases=("qkv", "output") if hf.get("attention_bias") else (),
            query_norm=family == "gemma3_text",
            post_norms=family != "gemma",
            windows=windows,
            kinds=kinds,
            both_sides=both_sides,
            rotaries=rotaries,
            scale=scalar**-0.5 if scalar else None,
            attention_softcap=hf.get("attn_logit_softcapping"),
            logit_softcap=hf.get("final_logit_softcapping"),
            embedding_scale=hf["hidden_size"] ** 0.5,
            tied=tied,
            attention_dropout=hf.get("attention_dropout") or 0.0,
            initializer_range=hf.get("initializer_range", 0.02),
            heads=heads_of(KINDS[family], tied, llama.tokens_dropout(hf)),
            modules=MODULES[family],
            options=options,
        ),
        family,
    )


def heads_of(name: str, tied: bool, dropout: float) -> dict[str, Head]:
    """The heads that Hugging Face has; see `ftjax.models.llama.heads_of`."""
    heads = llama.heads_of(name, tied, dropout)
    if name == "Gemma3":
        text = replace(heads["classification"], architecture="Gemma3TextForSequenceClassification")
        return {"causal_lm": heads["causal_lm"], "classification": text}
    return heads
