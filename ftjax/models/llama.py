"""Llama (Touvron et al. 2023) and its kin: Mistral, Mixtral, Qwen 2 and 3, Phi 3."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.formats.hf import Part
from ftjax.models import rotary
from ftjax.models.decoder import DEFAULT_TARGETS, Config, Model, checked
from ftjax.models.heads import Head
from ftjax.models.layers import Options

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


def heads_of(name: str, tied: bool = False) -> dict[str, Head]:
    """The heads that Hugging Face has, by the prefix of their classes."""
    heads = {
        "causal_lm": Head(f"{name}ForCausalLM", {} if tied else {"lm_head": "lm_head"}),
        "classification": Head(f"{name}ForSequenceClassification", {"classifier": "score"}),
        "tokens": Head(f"{name}ForTokenClassification", {"classifier": "score"}),
    }
    if name not in ("Phi3", "Gemma", "Gemma2", "Gemma3"):
        inside = "transformer" if name in ("Llama", "Qwen2", "Qwen3") else None
        architecture, modules = f"{name}ForQuestionAnswering", {"classifier": "qa_outputs"}
        heads["span"] = Head(architecture, modules, prefix=inside)
    return heads


def windows_of(hf: Mapping[str, Any]) -> tuple[tuple[int | None, ...], tuple[int, ...]]:
    """Windows by kind of layer, and each layer's kind: 0 sees all, 1 a sliding window.

    Raises:
        UserError: a kind that is not implemented.
    """
    window, layers = hf.get("sliding_window"), hf["num_hidden_layers"]
    kinds = hf.get("layer_types")
    if kinds is None and "use_sliding_window" in hf:
        first = hf.get("max_window_layers", layers) if hf["use_sliding_window"] else layers
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
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
    family = hf.get("model_type", "llama")
    if hf.get("pretraining_tp", 1) not in (None, 1):
        raise UserError(f"{family}: pretraining_tp is not implemented")
    size, heads = hf["hidden_size"], hf["num_attention_heads"]
    head_dim = hf.get("head_dim") or size // heads
    biases = ("qkv", "output") if hf.get("attention_bias") else ()
    biases = ("qkv",) if family == "qwen2" else biases
    windows, kinds = windows_of(hf)
    tied = hf.get("tie_word_embeddings", False)
    return checked(
        Config(
            vocab_size=hf["vocab_size"],
            hidden_size=size,
            intermediate_size=hf["intermediate_size"],
            num_hidden_layers=hf["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=hf.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            max_position_embeddings=hf.get("max_position_embeddings", 2048),
            hidden_act=hf.get("hidden_act", "silu"),
            norm_eps=hf.get("rms_norm_eps", 1e-6),
            biases=(*biases, *(["ffn"] if hf.get("mlp_bias") else [])),
            query_norm=family == "qwen3",
            windows=windows,
            kinds=kinds,
            rotaries=(rotary.from_hf(hf, head_dim, family),) * len(windows),
            experts=hf.get("num_local_experts", 0),
            active=hf.get("num_experts_per_tok", 0),
            tied=tied,
            embedding_dropout=hf.get("embd_pdrop", 0.0),
            attention_dropout=hf.get("attention_dropout") or 0.0,
            residual_dropout=hf.get("resid_pdrop", 0.0),
            classifier_dropout=hf.get("classifier_dropout") or 0.1,
            initializer_range=hf.get("initializer_range", 0.02),
            heads=heads_of(KINDS[family], tied=tied),
            options=options,
        ),
        family,
    )


def hf_modules(config: Config) -> dict[str, str | Part]:
    """Our module path → where it is stored, for unrolled layers, without the prefix."""
    names: dict[str, str | Part] = {"words": "embed_tokens", "final_norm": "norm"}
    fused = "Phi3" in config.heads["causal_lm"].architecture
    for i in range(config.num_hidden_layers):
        for ours, theirs in LAYER.items():
            names[f"decoder/layer_{i}/{ours}"] = f"layers.{i}.{theirs}"
        if config.experts:
            block = f"layers.{i}.block_sparse_moe"
            names[f"decoder/layer_{i}/ffn/router"] = f"{block}.gate"
            for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
                names[f"decoder/layer_{i}/ffn/{ours}"] = Part(
                    f"{block}.experts.{{}}.{theirs}", stack=config.experts
                )
        if fused:
            wide = config.num_attention_heads * config.head_dim
            narrow = config.num_key_value_heads * config.head_dim
            for index, name in enumerate(("query", "key", "value")):
                names[f"decoder/layer_{i}/attention/{name}"] = Part(
                    f"layers.{i}.self_attn.qkv_proj", (wide, narrow, narrow), index
                )
            for index, name in enumerate(("gate", "up")):
                names[f"decoder/layer_{i}/ffn/{name}"] = Part(
                    f"layers.{i}.mlp.gate_up_proj", (config.intermediate_size,) * 2, index
                )
    return names
