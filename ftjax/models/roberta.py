"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): BERT with other positions.

The first token's position is the padding's number plus one, and padding has none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ftjax.models import bert
from ftjax.models.encoder import DEFAULT_TARGETS, Config, Model
from ftjax.models.heads import Head
from ftjax.models.layers import Options

__all__ = ["DEFAULT_TARGETS", "Model", "hf_modules"]

MODEL = "RobertaModel"
HF_PREFIX = "roberta"
HEADS = {
    "classification": Head(
        "RobertaForSequenceClassification",
        {"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
        activation="tanh",
        drop_first=True,
    ),
    "choice": Head("RobertaForMultipleChoice", {"classifier": "classifier"}, activation="tanh"),
    "tokens": Head("RobertaForTokenClassification", {"classifier": "classifier"}),
    "span": Head("RobertaForQuestionAnswering", {"classifier": "qa_outputs"}),
    "masked_lm": Head(
        "RobertaForMaskedLM",
        {"mlm/dense": "lm_head.dense", "mlm/norm": "lm_head.layer_norm", "mlm": "lm_head"},
    ),
}


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    config = bert.from_hf(hf, options)
    first = hf.get("pad_token_id", 1) + 1
    kind = "XLMRoberta" if hf.get("model_type") == "xlm-roberta" else "Roberta"
    heads = {
        name: replace(head, architecture=head.architecture.replace("Roberta", kind))
        for name, head in HEADS.items()
    }
    return replace(config, first_position=first, heads=heads)


hf_modules = bert.hf_modules
