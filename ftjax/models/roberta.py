"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): BERT with other positions.

The first token's position is the padding's number plus one, and padding has none.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ftjax.models import bert
from ftjax.models.config_keys import keys
from ftjax.models.encoder import DEFAULT_TARGETS, Config, Model
from ftjax.models.heads import Head, with_dropouts
from ftjax.models.layers import Options

__all__ = ["DEFAULT_TARGETS", "Model"]

MODEL = "RobertaModel"
HF_PREFIX = "roberta"
HEADS = {
    "classification": Head(
        "RobertaForSequenceClassification",
        {"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
        activation="tanh",
    ),
    "choice": Head("RobertaForMultipleChoice", {"classifier": "classifier"}, activation="tanh"),
    "tokens": Head("RobertaForTokenClassification", {"classifier": "classifier"}),
    "span": Head("RobertaForQuestionAnswering", {"classifier": "qa_outputs"}),
    "masked_lm": Head(
        "RobertaForMaskedLM",
        {"mlm/dense": "lm_head.dense", "mlm/norm": "lm_head.layer_norm", "mlm": "lm_head"},
        activation="gelu",  # whatever `hidden_act` says
        vocabulary="lm_head.decoder",
    ),
}
DEFAULTS = {"roberta": {"vocab_size": 50265}, "xlm-roberta": {}}
KEYS = dict.fromkeys(
    ("roberta", "xlm-roberta"), keys(f"{bert.READ} classifier_dropout pad_token_id", **bert.FIXED)
)


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    kind = "XLMRoberta" if hf["model_type"] == "xlm-roberta" else "Roberta"
    heads = {
        name: replace(head, architecture=head.architecture.replace("Roberta", kind))
        for name, head in HEADS.items()
    }
    rate, hidden = bert.classifier_dropout(hf), hf.get("hidden_dropout_prob", 0.1)
    rates = {"classification": (rate, rate), "choice": hidden, "tokens": rate}
    hf = {**DEFAULTS[hf["model_type"]], **hf}
    config = bert.read(hf, options, with_dropouts(heads, rates))
    return replace(config, first_position=hf.get("pad_token_id", 1) + 1)
