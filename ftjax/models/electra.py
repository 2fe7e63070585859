"""ELECTRA (Clark et al. 2020): BERT with smaller embeddings and without a pooler."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ftjax.models import bert
from ftjax.models.config_keys import keys
from ftjax.models.encoder import DEFAULT_TARGETS, Config, Model
from ftjax.models.heads import Head, with_dropouts
from ftjax.models.layers import Options

__all__ = ["DEFAULT_TARGETS", "Model"]

MODEL = "ElectraModel"
HF_PREFIX = "electra"
HEADS = {
    "classification": Head(
        "ElectraForSequenceClassification",
        {"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
        activation="gelu",
    ),
    "choice": Head(
        "ElectraForMultipleChoice",
        {"pooler": "sequence_summary.summary", "classifier": "classifier"},
        activation="gelu",
    ),
    "tokens": Head("ElectraForTokenClassification", {"classifier": "classifier"}),
    "span": Head("ElectraForQuestionAnswering", {"classifier": "qa_outputs"}),
    "masked_lm": Head(
        "ElectraForMaskedLM",
        {
            "mlm/dense": "generator_predictions.dense",
            "mlm/norm": "generator_predictions.LayerNorm",
            "mlm": "generator_lm_head",
        },
        activation="gelu",
        vocabulary="generator_lm_head",
    ),
}
MODULES = {**bert.ENCODER, "embeddings/project": "embeddings_project"}
DEFAULTS = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
KEYS = {
    "electra": keys(
        f"{bert.READ} classifier_dropout embedding_size summary_first_dropout summary_last_dropout",
        **bert.FIXED,
        summary_type=("first",),
        summary_activation=("gelu",),
        summary_use_proj=(True,),
        summary_proj_to_labels=(False,),
    )
}


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    hf = {**DEFAULTS, **hf}
    rate = bert.classifier_dropout(hf)
    summary = hf.get("summary_first_dropout", 0.0), hf.get("summary_last_dropout", 0.1)
    rates = {"classification": (rate, rate), "choice": summary, "tokens": rate}
    config = bert.read(hf, options, with_dropouts(HEADS, rates), MODULES)
    size = hf.get("embedding_size", 128)
    return replace(config, embedding_size=size, project_embeddings=size != config.hidden_size)
