"""A family: BERT under another name, as a variant of a shared stack is one."""

from ftjax.models import bert
from ftjax.models.bert import DEFAULT_TARGETS, HF_PREFIX, MODEL, Model, from_hf

__all__ = ["DEFAULT_TARGETS", "HF_PREFIX", "MODEL", "Model", "from_hf"]

KIND = "encoder"
KEYS = {"own_bert": bert.KEYS["bert"]}
