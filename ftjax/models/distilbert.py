"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler."""

from collections.abc import Mapping
from typing import Any

from ftjax.models.config import inside
from ftjax.models.config_keys import keys
from ftjax.models.encoder import DEFAULT_TARGETS, Config, Model, checked
from ftjax.models.heads import Head, untied, with_dropouts
from ftjax.models.layers import Options

__all__ = ["DEFAULT_TARGETS", "Model"]

MODEL = "DistilBertModel"
HF_PREFIX = "distilbert"
POOLED = {"pooler": "pre_classifier", "classifier": "classifier"}
HEADS = {
    "classification": Head("DistilBertForSequenceClassification", POOLED, activation="relu"),
    "choice": Head("DistilBertForMultipleChoice", POOLED, activation="relu"),
    "tokens": Head("DistilBertForTokenClassification", {"classifier": "classifier"}),
    "span": Head("DistilBertForQuestionAnswering", {"classifier": "qa_outputs"}),
    "masked_lm": Head(
        "DistilBertForMaskedLM",
        {"mlm/dense": "vocab_transform", "mlm/norm": "vocab_layer_norm", "mlm": "vocab_projector"},
        vocabulary="vocab_projector",
    ),
}
KEYS = {
    "distilbert": keys(
        "vocab_size dim n_layers n_heads hidden_dim activation dropout attention_dropout "
        "seq_classif_dropout qa_dropout max_position_embeddings initializer_range "
        "tie_word_embeddings",
        aliases={
            "hidden_size": "dim",
            "num_attention_heads": "n_heads",
            "num_hidden_layers": "n_layers",
        },
        sinusoidal_pos_embds=(False,),  # which start as sines and are not trained
        is_encoder_decoder=(False,),
    )
}
LAYER = {
    "attention/query": "attention.q_lin",
    "attention/key": "attention.k_lin",
    "attention/value": "attention.v_lin",
    "attention/output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "ffn/up": "ffn.lin1",
    "ffn/down": "ffn.lin2",
    "ffn_norm": "output_layer_norm",
}
MODULES = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    **inside("encoder/layer_{}", "transformer.layer.{}", LAYER),
}


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    rates = {
        "classification": hf.get("seq_classif_dropout", 0.2),
        "choice": hf.get("seq_classif_dropout", 0.2),
        "tokens": hf.get("dropout", 0.1),
        "span": hf.get("qa_dropout", 0.1),
    }
    heads, tied = with_dropouts(HEADS, rates), hf.get("tie_word_embeddings", True)
    return checked(
        Config(
            vocab_size=hf.get("vocab_size", 30522),
            hidden_size=hf.get("dim", 768),
            embedding_size=hf.get("dim", 768),
            num_hidden_layers=hf.get("n_layers", 6),
            num_attention_heads=hf.get("n_heads", 12),
            intermediate_size=hf.get("hidden_dim", 3072),
            hidden_act=hf.get("activation", "gelu"),
            dropout=hf.get("dropout", 0.1),
            attention_dropout=hf.get("attention_dropout", 0.1),
            max_position_embeddings=hf.get("max_position_embeddings", 512),
            type_vocab_size=0,
            initializer_range=hf.get("initializer_range", 0.02),
            tied=tied,
            heads=heads if tied else untied(heads, "mlm"),
            modules=MODULES,
            options=options,
        ),
        "distilbert",
    )
