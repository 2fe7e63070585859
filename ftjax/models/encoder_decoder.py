"""What encoder-decoders share: attention to memory, and how the two sides are run under a head."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.models import config
from ftjax.models.attention import AttentionCore
from ftjax.models.cache import Cache, keeps_cache
from ftjax.models.heads import classify
from ftjax.models.language_head import Scores
from ftjax.models.layers import (
    Dense,
    Dropout,
    Embedding,
    shift_right,
)
from ftjax.models.masks import View, prompt_view, rows_view, token_view
from ftjax.models.pooling import at_starts, last_tokens
from ftjax.models.stack import matching_segments

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """An encoder-decoder.

    Attributes:
        num_hidden_layers, num_decoder_layers: of the encoder and of the decoder.
        embedding_scale: what word embeddings are multiplied by.
        embedding_range: standard deviation of their initial table.
        start: what decoders read first.
        end: of a text.
        tied: one table embeds words on both sides and reads them off.
    """

    num_decoder_layers: int
    embedding_scale: float = 1.0
    start: int
    end: int

    @property
    def embedding_range(self) -> float:
        return self.initializer_range

    @property
    def depths(self) -> dict[str, tuple[int, ...]]:
        return {"encoder": (self.num_hidden_layers,), "decoder": (self.num_decoder_layers,)}


class Attention(nn.Module):
    """Attention of `x` to `memory` with its output projection, without residual.

    Without `memory`, to the keys and values that were kept of it.

    Attributes:
        config: of the family.
        heads: of queries, keys and values.
        head_dim: of a head.
        scale: of scores; None for 1 / √head_dim.
    """

    config: Config
    heads: int
    head_dim: int
    scale: float | None = None

    @nn.compact
    def __call__(
        self, x: Array, memory: Array | None, view: View, bias: Array | None = None
    ) -> Array:
        c = self.config

        def project(x: Array, name: str) -> Array:
            y = c.dense(self.heads * self.head_dim, ("embed", "heads"), name)(x)
            return y.reshape(*x.shape[:-1], self.heads, self.head_dim)

        query, key, value = project(x, "query"), None, None
        if memory is not None:
            key, value = project(memory, "key"), project(memory, "value")
        key, value = Cache(name="cache")(key, value, view.slots)
        core = AttentionCore(c.attention_dropout, c.options.attention, self.scale, name="core")
        context = core(query, key, value, view.mask, bias, view.pattern)
        return c.project_context(context)


class Model(nn.Module):
    """An encoder-decoder under a head.

    A family's file has `side`, `start` and `logits`.

    The cache, `column`, `features` and `targets` are as those of `ftjax.models.decoder.Model`, of
    `decoder_input_ids`; where there are targets, the decoder reads them, shifted.

    Attributes:
        config: the architecture.
        head: None gives the decoder's hidden states; "seq2seq_lm" float32 logits (batch, target
            length, vocabulary); "classification" (batch, labels), of the decoder where the input
            ends; "span" (batch, length, 2), of the decoder; "tokens" (batch, length, labels), of
            the encoder alone.
        labels: number of labels.
    """

    config: Config
    head: str | None = None
    labels: int = 2
    pooling: str = "end"

    @property
    def one_table(self) -> bool:
        """Whether words are embedded alike on both sides."""
        return True

    def side(self, decoder: bool, segments: tuple[int, ...]) -> nn.Module:
        """The encoder or the decoder: maps embedded tokens, a `View`, and in the decoder the
        encoder's output, its `View` and `column`, to hidden states."""
        raise NotImplementedError

    def start(self, ids: Array, mask: Array | None) -> int | Array:
        """What the decoder reads first to write `ids`, which are real where `mask` is not 0."""
        return self.config.start

    def decoder_inputs(self, ids: Array, mask: Array | None) -> Array:
        """What the decoder reads to write `ids`: the targets, or else the encoder's input."""
        return shift_right(ids, self.start(ids, mask))

    def logits(self, x: Array, words: Embedding, *targets: Any) -> Array | Scores:
        """The language model's, of hidden states; or the scores of targets, their weights and
        smoothing."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        decoder_input_ids: Array | None = None,
        decoder_attention_mask: Array | None = None,
        column: Array | None = None,
        features: Array | None = None,
        features_only: bool = False,
        targets: Array | None = None,
        target_weights: Array | None = None,
        target_smoothing: float = 0.0,
    ) -> Array | Scores:
        if features is not None:
            return self.classify(features)
        c = self.config
        embedding = partial(Embedding, c.vocab_size, c.hidden_size, stddev=c.embedding_range)
        words = embedding(name="words")
        dense = partial(Dense, stddev=c.initializer_range)
        keep = keeps_cache(self)
        memory, memory_view = None, rows_view(attention_mask)._replace(slots=column)
        if column is None:
            encoder = self.side(False, c.options.segments)
            memory = encoder(words(input_ids) * c.embedding_scale, memory_view)
            slots = jnp.arange(memory.shape[1]) if keep else None
            memory_view = memory_view._replace(slots=slots)
        if self.head == "tokens":
            x = Dropout(c.heads["tokens"].dropout, name="dropout")(memory.astype(jnp.float32))
            return dense(self.labels, ("embed", None), name="classifier")(x)
        if decoder_input_ids is None:
            if targets is None:
                decoder_input_ids = self.decoder_inputs(input_ids, attention_mask)
            else:
                decoder_input_ids = self.decoder_inputs(targets, target_weights)
        if column is None:
            view = prompt_view(decoder_input_ids.shape[1], decoder_attention_mask, keep=keep)
        else:
            view = token_view(column, decoder_attention_mask)
        decoder = self.side(True, matching_segments(c.options.segments, c.num_decoder_layers))
        words = words if self.one_table else embedding(name="decoder_words")
        x = words(decoder_input_ids) * c.embedding_scale
        x = decoder(x, view, memory, memory_view, column)
        x = x[:, -1:] if keep else x
        if self.head is None:
            return x
        if targets is not None:  # in the compute dtype
            return self.logits(x, words, targets, target_weights, target_smoothing)
        if self.head == "seq2seq_lm":
            return self.logits(x, words)
        x = x.astype(jnp.float32)
        if self.head == "span":
            return dense(2, ("embed", None), name="classifier")(x)
        ends = (input_ids[:, -x.shape[1] :] == c.end).astype(jnp.int32)  # past virtual tokens
        ends = last_tokens(x.shape[:2], ends, None, None)
        x = at_starts(x, ends)[:, 0]
        return x if features_only else self.classify(x)

    def classify(self, x: Array) -> Array:
        c = self.config
        head = c.heads[self.head]
        return classify(head, x, self.labels, c.initializer_range)
