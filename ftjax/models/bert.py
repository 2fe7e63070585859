"""BERT (Devlin et al. 2019), post-norm encoder, as `transformers` computes it."""

from collections.abc import Mapping
from typing import Any

from ftjax.errors import UserError
from ftjax.models.encoder import DEFAULT_TARGETS, Config, Model, checked
from ftjax.models.heads import Head
from ftjax.models.layers import Options

__all__ = ["DEFAULT_TARGETS", "Model"]

MODEL = "BertModel"
HF_PREFIX = "bert"
MLM = {
    "mlm/dense": "cls.predictions.transform.dense",
    "mlm/norm": "cls.predictions.transform.LayerNorm",
    "mlm": "cls.predictions",
}
HEADS = {
    "classification": Head(
        "BertForSequenceClassification", {"classifier": "classifier"}, activation="tanh"
    ),
    "choice": Head("BertForMultipleChoice", {"classifier": "classifier"}, activation="tanh"),
    "tokens": Head("BertForTokenClassification", {"classifier": "classifier"}),
    "span": Head("BertForQuestionAnswering", {"classifier": "qa_outputs"}),
    "masked_lm": Head("BertForMaskedLM", MLM),
    "pretraining": Head(
        "BertForPreTraining", {**MLM, "next_sentence": "cls.seq_relationship"}, activation="tanh"
    ),
}
LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn/up": "intermediate.dense",
    "ffn/down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    position = hf.get("position_embedding_type", "absolute")
    if position not in ("absolute", None):
        raise UserError(f"bert: position_embedding_type={position!r} is not implemented")
    if hf.get("is_decoder") or hf.get("add_cross_attention"):
        raise UserError("bert: is_decoder and add_cross_attention are not implemented")
    names = [name for name in Config.__dataclass_fields__ if name in hf]
    values = {"embedding_size": hf.get("hidden_size", 768), **{name: hf[name] for name in names}}
    return checked(Config(**values, heads=HEADS, options=options), "bert")


def hf_modules(config: Config) -> dict[str, str]:
    """Our module path → Hugging Face's module name, for unrolled layers, without "bert."."""
    names = {
        "embeddings/word": "embeddings.word_embeddings",
        "embeddings/position": "embeddings.position_embeddings",
        "embeddings/token_type": "embeddings.token_type_embeddings",
        "embeddings/norm": "embeddings.LayerNorm",
    }
    for i in range(config.num_hidden_layers):
        for ours, theirs in LAYER.items():
            names[f"encoder/layer_{i}/{ours}"] = f"encoder.layer.{i}.{theirs}"
    return names | {"pooler": "pooler.dense"}
