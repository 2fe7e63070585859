"""BERT (Devlin et al. 2019), post-norm encoder, as `transformers` computes it."""

from collections.abc import Mapping
from typing import Any

from ftjax.models.config import Table, inside
from ftjax.models.config_keys import keys
from ftjax.models.encoder import DEFAULT_TARGETS, Config, Model, checked, fields_in
from ftjax.models.heads import Head, untied, with_dropouts
from ftjax.models.layers import Options

__all__ = ["DEFAULT_TARGETS", "Model"]

MODEL = "BertModel"
HF_PREFIX = "bert"
WORDS = "cls.predictions.decoder"
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
    "masked_lm": Head("BertForMaskedLM", MLM, vocabulary=WORDS),
    "pretraining": Head(
        "BertForPreTraining",
        {**MLM, "next_sentence": "cls.seq_relationship"},
        activation="tanh",
        vocabulary=WORDS,
    ),
}
READ = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
    "hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings type_vocab_size "
    "layer_norm_eps initializer_range tie_word_embeddings"
)
FIXED = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "position_embedding_type": ("absolute", None),
}
KEYS = {"bert": keys(f"{READ} classifier_dropout", **FIXED)}
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
EMBEDDINGS = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
}
ENCODER = {**EMBEDDINGS, **inside("encoder/layer_{}", "encoder.layer.{}", LAYER)}
MODULES = {**ENCODER, "pooler": "pooler.dense"}


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    rate = classifier_dropout(hf)
    heads = with_dropouts(HEADS, {"classification": rate, "choice": rate, "tokens": rate})
    return read(hf, options, heads)


def classifier_dropout(hf: Mapping[str, Any]) -> float:
    """The dropout before a classifier: its own, or else that of hidden states."""
    rate = hf.get("classifier_dropout")
    return hf.get("hidden_dropout_prob", 0.1) if rate is None else rate


def read(
    hf: Mapping[str, Any], options: Options, heads: Mapping[str, Head], modules: Table = MODULES
) -> Config:
    """The configuration of BERT, or of kin whose keys are called the same, under its heads."""
    values = {"embedding_size": hf.get("hidden_size", 768), **fields_in(hf)}
    tied = hf.get("tie_word_embeddings", True)
    heads = heads if tied else untied(heads, "mlm")
    config = Config(**values, tied=tied, heads=heads, modules=modules, options=options)
    return checked(config, hf["model_type"])
