"""Llama (Touvron et al. 2023) and its kin: Mistral, Mixtral, Qwen 2 and 3, Phi 3."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.models import rotary
from ftjax.models.config import Table, fused, inside
from ftjax.models.config_keys import keys
from ftjax.models.decoder import DEFAULT_TARGETS, Config, Model, checked, sizes
from ftjax.models.heads import Head, untied, with_dropouts
from ftjax.models.layers import Options
from ftjax.names import Part

__all__ = ["DEFAULT_TARGETS", "Model"]

MODEL = "LlamaModel"
HF_PREFIX = "model"
KINDS = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "phi3": "Phi3",
    "mixtral": "Mixtral",
}
LAYER = {
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
    "ffn/gate": "mlp.gate_proj",
    "ffn/up": "mlp.up_proj",
    "ffn/down": "mlp.down_proj",
}
EXPERTS = {  # "{{}}" is an expert's number
    "ffn/router": "block_sparse_moe.gate",
    "ffn/gate": Part("block_sparse_moe.experts.{{}}.w1", stack="experts"),
    "ffn/down": Part("block_sparse_moe.experts.{{}}.w2", stack="experts"),
    "ffn/up": Part("block_sparse_moe.experts.{{}}.w3", stack="experts"),
}
QKV_SIZES = {
    "attention/query": "query_size",
    "attention/key": "key_size",
    "attention/value": "key_size",
}
PHI3 = {
    **fused("self_attn.qkv_proj", QKV_SIZES),
    **fused("mlp.gate_up_proj", dict.fromkeys(("ffn/gate", "ffn/up"), "intermediate_size")),
}


def modules_of(layer: Table) -> dict[str, str | Part]:
    """Our modules → theirs, of a decoder with such layers."""
    layers = inside("decoder/layer_{}", "layers.{}", layer)
    return {"words": "embed_tokens", **layers, "final_norm": "norm"}


MODULES = modules_of(LAYER)
OTHERS = {"mixtral": modules_of({**LAYER, **EXPERTS}), "phi3": modules_of({**LAYER, **PHI3})}


READ = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
    "num_key_value_heads head_dim max_position_embeddings hidden_act rms_norm_eps "
    "attention_dropout classifier_dropout hidden_dropout initializer_range tie_word_embeddings "
    f"{rotary.KEYS}"
)
SLIDING = "sliding_window use_sliding_window layer_types max_window_layers"
ONE_SIDED = {"is_encoder_decoder": (False,)}
KEYS = {
    "llama": keys(f"{READ} attention_bias mlp_bias", inert="pretraining_tp", **ONE_SIDED),
    "mistral": keys(f"{READ} sliding_window", **ONE_SIDED),
    "mixtral": keys(
        f"{READ} sliding_window num_local_experts num_experts_per_tok",
        inert="router_aux_loss_coef",  # of a loss that is refused
        aliases={"num_experts": "num_local_experts"},
        output_router_logits=(False,),
        router_jitter_noise=(0.0,),
        **ONE_SIDED,
    ),
    "qwen2": keys(f"{READ} {SLIDING}", **ONE_SIDED),
    "qwen3": keys(f"{READ} {SLIDING} attention_bias", **ONE_SIDED),
    "phi3": keys(
        f"{READ} sliding_window resid_pdrop partial_rotary_factor",
        inert="embd_pdrop original_max_position_embeddings",  # the latter of a refused scaling
        **ONE_SIDED,
    ),
}
QWEN = {"num_key_value_heads": 32, "sliding_window": 4096, "max_position_embeddings": 32768}
DEFAULTS = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
    },
    "mixtral": {
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
    },
    "qwen2": QWEN,
    "qwen3": {**QWEN, "head_dim": 128},
    "phi3": {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
}


def heads_of(name: str, tied: bool = False, dropout: float = 0.1) -> dict[str, Head]:
    """The heads that Hugging Face has, by the prefix of their classes.

    Args:
        name: the prefix.
        tied: words are read off by their table.
        dropout: before the classifier of tokens.
    """
    heads = {
        "causal_lm": Head(f"{name}ForCausalLM", vocabulary="lm_head"),
        "classification": Head(f"{name}ForSequenceClassification", {"classifier": "score"}),
        "tokens": Head(f"{name}ForTokenClassification", {"classifier": "score"}),
    }
    if name not in ("Phi3", "Gemma", "Gemma2", "Gemma3"):
        prefix = "transformer" if name in ("Llama", "Qwen2", "Qwen3") else None
        architecture, modules = f"{name}ForQuestionAnswering", {"classifier": "qa_outputs"}
        heads["span"] = Head(architecture, modules, prefix=prefix)
    heads = with_dropouts(heads, {"tokens": dropout})
    return heads if tied else untied(heads, "lm_head")


def tokens_dropout(hf: Mapping[str, Any]) -> float:
    """The dropout before the classifier of tokens, as transformers' generic class takes it."""
    rates = (hf.get("classifier_dropout"), hf.get("hidden_dropout"), 0.1)
    return next(rate for rate in rates if rate is not None)


def windows_of(hf: Mapping[str, Any]) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
    """Windows by kind of layer, and each layer's kind: 0 sees all, 1 a sliding window.

    Raises:
        UserError: a kind that is not implemented.
    """
    window, layers = hf.get("sliding_window"), hf["num_hidden_layers"]
    kinds = hf.get("layer_types")
    if hf["model_type"] in ("qwen2", "qwen3"):
        window = window if hf.get("use_sliding_window") else None
        first = hf.get("max_window_layers", 28)
        kinds = kinds or [
            "sliding_attention" if i >= first else "full_attention" for i in range(layers)
        ]
    for kind in kinds or ():
        if kind not in ("full_attention", "sliding_attention"):
            raise UserError(f"{hf['model_type']}: layer_types with {kind!r} is not implemented")
    if not window:
        return (None,), ()
    if kinds is None:
        return (window,), ()
    return (None, window), tuple(int(kind == "sliding_attention") for kind in kinds)


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    family = hf["model_type"]
    hf = {**DEFAULTS[family], **hf}
    size, heads = hf["hidden_size"], hf["num_attention_heads"]
    head_dim = hf.get("head_dim") or size // heads
    biases = ("qkv", "output") if hf.get("attention_bias") else ()
    biases = ("qkv",) if family == "qwen2" else biases
    windows, kinds = windows_of(hf)
    active, count = hf.get("num_experts_per_tok", 2), hf.get("num_local_experts", 8)
    if family == "mixtral" and active > count:
        raise UserError(f"mixtral: num_experts_per_tok={active} of num_local_experts={count}")
    theta, partial = 1e6 if family == "mixtral" else 1e4, family == "phi3"
    rotation = rotary.from_hf(hf, head_dim, family, theta=theta, partial=partial)
    tied = hf.get("tie_word_embeddings", False)
    return checked(
        Config(
            **sizes(hf),
            num_key_value_heads=hf.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            hidden_act=hf.get("hidden_act", "silu"),
            norm_eps=hf.get("rms_norm_eps", 1e-6),
            biases=(*biases, *(["ffn"] if hf.get("mlp_bias") else [])),
            query_norm=family == "qwen3",
            windows=windows,
            kinds=kinds,
            rotaries=(rotation,) * len(windows),
            experts=count if family == "mixtral" else 0,
            active=active if family == "mixtral" else 0,
            tied=tied,
            attention_dropout=hf.get("attention_dropout") or 0.0,
            dropout=hf.get("resid_pdrop", 0.0),
            initializer_range=hf.get("initializer_range", 0.02),
            heads=heads_of(KINDS[family], tied, tokens_dropout(hf)),
            modules=OTHERS.get(family, MODULES),
            options=options,
        ),
        family,
    )
