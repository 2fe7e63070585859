"""Task heads that the families share, and how Hugging Face names their parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.models.layers import ACTIVATIONS, Dense, Dropout, LayerNorm

Array = jax.Array


@dataclass(frozen=True)
class Head:
    """A head as a family's published models have it.

    Attributes:
        architecture: the class that Hugging Face's config.json names.
        modules: our module → theirs, of the parts outside the model's prefix. They are what
            every method trains.
        activation: of the dense layer "pooler" between the pooled vector and the classifier;
            None where there is no such layer.
        drop_first: dropout also before that layer.
        prefix: of the model's other tensors, where it is not the family's.
    """

    architecture: str
    modules: Mapping[str, Any] = field(default_factory=dict)
    activation: str | None = None
    drop_first: bool = False
    prefix: str | None = None


def classify(head: Head, x: Array, labels: int, dropout: float, stddev: float) -> Array:
    """Logits (..., labels) of pooled float32 vectors (..., features)."""
    if head.activation:
        if head.drop_first:
            x = Dropout(dropout, name="pooler_dropout")(x)
        dense = Dense(x.shape[-1], ("embed", None), stddev=stddev, name="pooler")
        x = ACTIVATIONS[head.activation](dense(x))
    x = Dropout(dropout, name="dropout")(x)
    return Dense(labels, ("embed", None), stddev=stddev, name="classifier")(x)


class MaskedLM(nn.Module):
    """norm(act(dense(x))) times the word embeddings, plus a bias: float32 (..., vocabulary)."""

    activation: str
    epsilon: float
    stddev: float

    @nn.compact
    def __call__(self, x: Array, table: Array) -> Array:
        x = Dense(table.shape[1], ("embed", None), stddev=self.stddev, name="dense")(x)
        x = LayerNorm(self.epsilon, name="norm")(ACTIVATIONS[self.activation](x))
        init = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
        bias = self.param("bias", init, table.shape[:1], jnp.float32)
        return x @ table.T.astype(x.dtype) + bias
