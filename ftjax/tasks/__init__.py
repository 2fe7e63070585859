"""The registry of tasks: a new task is one file and one line here.

Or it is nothing here: a class of another package, see `ftjax.registry`.
"""

from collections.abc import Mapping
from typing import Any

from ftjax import registry

# name → (module, class, what it is)
TASKS: registry.Table = {
    "classification": ("classification", "Classification", "one label for a text or a pair"),
    "multilabel": ("multilabel", "Multilabel", "any number of labels for a text or a pair"),
    "ordinal": ("ordinal", "Ordinal", "one of several labels that have an order"),
    "regression": ("regression", "Regression", "a number for a text or a pair"),
    "token_classification": (
        "token_classification",
        "TokenClassification",
        "a tag for each word, as of entities; with a label for all of them where rows have one",
    ),
    "relation": ("relation", "Relation", "what relates two entities marked in a text"),
    "multiple_choice": ("multiple_choice", "MultipleChoice", "one of several texts after a text"),
    "span_qa": ("span_qa", "SpanQA", "the part of a text that answers a question, or none"),
    "contrastive": ("contrastive", "Contrastive", "texts that belong together near each other"),
    "seq2seq": ("seq2seq", "Seq2Seq", "a text from a text: translation, summaries, descriptions"),
    "causal_lm": ("causal_lm", "CausalLM", "each token from those before it"),
    "instruction": ("instruction", "Instruction", "what the assistant says in chats"),
    "preference": ("preference", "Preference", "the better of two answers (DPO)"),
    "masked_lm": ("masked_lm", "MaskedLM", "masked tokens, or masked whole words"),
    "next_sentence": ("next_sentence", "NextSentence", "masked tokens, and what follows a text"),
    "span_corruption": ("span_corruption", "SpanCorruption", "spans left out of a text (T5)"),
    "denoising": ("denoising", "Denoising", "a text from one masked and permuted (BART)"),
}
REGISTRY = registry.Registry(
    "task.name={!r}", "ftjax.tasks", TASKS, "ftjax.tasks", "ftjax.tasks.base:Task"
)


def find(name: str) -> type:
    """The dataclass of options registered as `name`."""
    return REGISTRY.find(name)


def columns(name: str) -> dict[str, str]:
    """The fields that a task's rows have: what `data.columns` maps, each to its own name."""
    return {field: field for field in find(name).schema.fields}


def create(settings: Mapping[str, Any]) -> Any:
    """A task from {"name": ..., option: value, ...}."""
    return REGISTRY.create(settings)
