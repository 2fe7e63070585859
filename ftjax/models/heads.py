"""Task heads that the families share, and how Hugging Face names their parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import flax.linen as nn
import jax

from ftjax.leaf import leaf
from ftjax.models.language_head import read_off
from ftjax.models.layers import ACTIVATIONS, Dense, Dropout, LayerNorm
from ftjax.names import Part
from ftjax.parallel.product import rows

Array = jax.Array


@dataclass(frozen=True)
class Head:
    """A head as a family's published models have it.

    Attributes:
        architecture: the class that Hugging Face's config.json names.
        modules: our module → theirs, of the parts outside the model's prefix. They are what
            every method trains.
        activation: of the dense layer "pooler" between the pooled vector and the classifier;
            None where there is no such layer. Of a masked language model's dense layer, where it
            is not that of the other layers.
        dropout: before the classifier.
        first_dropout: before the dense layer.
        prefix: of the model's other tensors, where it is not the family's.
        vocabulary: what they call the projection to the vocabulary, whose kernel is the words'
            table where the two are tied; empty where the head says no words.
    """

    architecture: str
    modules: Mapping[str, Any] = field(default_factory=dict)
    activation: str | None = None
    dropout: float = 0.0
    first_dropout: float = 0.0
    prefix: str | None = None
    vocabulary: str = ""


def with_dropouts(
    heads: Mapping[str, Head], rates: Mapping[str, float | tuple[float, float]]
) -> dict[str, Head]:
    """Heads with their dropouts: by kind, before the classifier, or before the dense layer too."""

    def with_rates(kind: str, head: Head) -> Head:
        rate = rates.get(kind, 0.0)
        first, last = rate if isinstance(rate, tuple) else (0.0, rate)
        return replace(head, first_dropout=first, dropout=last)

    return {kind: with_rates(kind, head) for kind, head in heads.items()}


def untied(heads: Mapping[str, Head], module: str) -> dict[str, Head]:
    """Heads of a model whose projection to the vocabulary, our `module`, is not the words' table.

    Where the bias was stored elsewhere than beside the kernel, a copy stays there.
    """

    def untie(head: Head) -> Head:
        if not head.vocabulary:
            return head
        name = head.modules.get(module, head.vocabulary)
        copy = "" if name == head.vocabulary else f"{name}.bias"
        return replace(head, modules={**head.modules, module: Part(head.vocabulary, copy=copy)})

    return {kind: untie(head) for kind, head in heads.items()}


def classify(head: Head, x: Array, labels: int, stddev: float) -> Array:
    """Logits (..., labels) of pooled float32 vectors (..., features)."""
    if head.activation:
        x = Dropout(head.first_dropout, name="pooler_dropout")(x)
        dense = Dense(x.shape[-1], ("embed", None), stddev=stddev, name="pooler")
        x = ACTIVATIONS[head.activation](dense(x))
    x = Dropout(head.dropout, name="dropout")(x)
    return Dense(labels, ("embed", None), stddev=stddev, name="classifier")(x)


class MaskedLM(nn.Module):
    """norm(act(dense(x))) times the word embeddings, plus a bias: float32 (..., vocabulary).

    Attributes:
        tied: the words' table is the kernel; else the head has its own.
    """

    activation: str
    epsilon: float
    stddev: float
    tied: bool = True

    @nn.compact
    def __call__(self, x: Array, table: Array) -> Array:
        x = Dense(table.shape[1], ("embed", None), stddev=self.stddev, name="dense")(x)
        x = LayerNorm(self.epsilon, name="norm")(ACTIVATIONS[self.activation](x))
        bias = leaf(self, "bias", nn.initializers.zeros, table.shape[:1], ("vocab",))
        if self.tied:
            return read_off(x, table) + bias
        init = nn.initializers.normal(self.stddev)
        return rows(x, leaf(self, "kernel", init, table.shape[::-1], ("embed", "vocab"))) + bias
