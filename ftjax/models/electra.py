"""ELECTRA (Clark et al. 2020): BERT with smaller embeddings and without a pooler."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ftjax.errors import UserError
from ftjax.models import bert
from ftjax.models.encoder import DEFAULT_TARGETS, Config, Model
from ftjax.models.heads import Head
from ftjax.models.layers import Options

__all__ = ["DEFAULT_TARGETS", "Model"]

MODEL = "ElectraModel"
HF_PREFIX = "electra"
HEADS = {
    "classification": Head(
        "ElectraForSequenceClassification",
        {"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
        activation="gelu",
        drop_first=True,
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
    ),
}


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    kind, act = hf.get("summary_type", "first"), hf.get("summary_activation", "gelu")
    if kind != "first" or act != "gelu" or not hf.get("summary_use_proj", True):
        raise UserError(f"electra: summary_type={kind!r} with {act!r} is not implemented")
    config = replace(bert.from_hf(hf, options), heads=HEADS)
    size = hf.get("embedding_size", 128)
    return replace(config, embedding_size=size, project_embeddings=size != config.hidden_size)


def hf_modules(config: Config) -> dict[str, str]:
    """Our module path → Hugging Face's module name, for unrolled layers, without the prefix."""
    names = bert.hf_modules(config)
    del names["pooler"]
    return names | {"embeddings/project": "embeddings_project"}
