"""BERT (Devlin et al. 2019), post-norm encoder, as `transformers` computes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models.layers import (
    ACTIVATIONS,
    AttentionCore,
    Dense,
    Dropout,
    Embedding,
    LayerNorm,
    Options,
    at_starts,
    encoder_mask,
    mean_pool,
)
from ftjax.models.stack import Stack

Array = jax.Array
HF_PREFIX = "bert"
DEFAULT_TARGETS = ("query", "value")
# Tensors of published folders that no classifier uses: pretraining heads and buffers.
IGNORED = (r"cls\..*", r".*position_ids")


@dataclass(frozen=True)
class Config:
    """The architecture, named as in Hugging Face's config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    options: Options = field(default_factory=Options)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], options: Options | None = None) -> "Config":
        """Reads config.json's mapping.

        Raises:
            UserError: an option that is not implemented.
        """
        position = hf.get("position_embedding_type", "absolute")
        if position != "absolute":
            raise UserError(f"bert: position_embedding_type={position!r} is not implemented")
        if hf.get("is_decoder") or hf.get("add_cross_attention"):
            raise UserError("bert: is_decoder and add_cross_attention are not implemented")
        names = [name for name in cls.__dataclass_fields__ if name != "options" and name in hf]
        config = cls(**{name: hf[name] for name in names}, options=options or Options())
        if config.hidden_act not in ACTIVATIONS:
            raise UserError(f"bert: hidden_act={config.hidden_act!r} is not implemented")
        if config.hidden_size % config.num_attention_heads:
            raise UserError("bert: num_attention_heads does not divide hidden_size")
        return replace(
            config,
            options=replace(
                config.options,
                segments=config.options.segments or (1,) * config.num_hidden_layers,
            ),
        )

    def dense(self, features: int, axes: tuple[str | None, str | None], name: str) -> Dense:
        return Dense(
            features, axes, dtype=self.options.dtype, stddev=self.initializer_range, name=name
        )


class Embeddings(nn.Module):
    """LN(word + position + token type), with dropout."""

    config: Config

    @nn.compact
    def __call__(
        self, input_ids: Array, token_type_ids: Array | None, position_ids: Array | None
    ) -> Array:
        c = self.config
        make = partial(Embedding, features=c.hidden_size, stddev=c.initializer_range)
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, 1), jnp.int32)
        x = make(c.vocab_size, name="word")(input_ids)
        x = x + make(c.type_vocab_size, axes=(None, "embed"), name="token_type")(token_type_ids)
        position = make(c.max_position_embeddings, axes=(None, "embed"), name="position")
        x = x + (position.first(x.shape[1]) if position_ids is None else position(position_ids))
        x = LayerNorm(c.layer_norm_eps, name="norm")(x.astype(c.options.dtype))
        return Dropout(c.hidden_dropout_prob, name="dropout")(x)


class Attention(nn.Module):
    """Multi-head attention of `x` to `memory` with its output projection, without residual."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, memory: Array, mask: Array | None) -> Array:
        c = self.config
        heads = (c.num_attention_heads, c.hidden_size // c.num_attention_heads)

        def project(x: Array, name: str) -> Array:
            y = c.dense(c.hidden_size, ("embed", "heads"), name)(x)
            return y.reshape(*x.shape[:-1], *heads)

        query, key, value = project(x, "query"), project(memory, "key"), project(memory, "value")
        core = AttentionCore(c.attention_probs_dropout_prob, c.options.attention, name="core")
        context = core(query, key, value, mask).reshape(x.shape)
        out = c.dense(c.hidden_size, ("heads", "embed"), "output")(context)
        return Dropout(c.hidden_dropout_prob, name="dropout")(out)


class FeedForward(nn.Module):
    """down(act(up(x))), before residual and norm."""

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        x = ACTIVATIONS[c.hidden_act](c.dense(c.intermediate_size, ("embed", "mlp"), "up")(x))
        x = c.dense(c.hidden_size, ("mlp", "embed"), "down")(x)
        return Dropout(c.hidden_dropout_prob, name="dropout")(x)


class Layer(nn.Module):
    """Attention and feed-forward, each followed by residual and norm.

    Attributes:
        starts_only: compute only the positions where examples start, where nothing reads others.
    """

    config: Config
    starts_only: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, starts: Array | None) -> Array:
        c = self.config
        memory = x = nn.with_logical_constraint(x, ("batch", "length", "hidden"))
        if self.starts_only:
            x = at_starts(memory, starts)
            if mask is not None and mask.shape[2] > 1:
                mask = at_starts(mask[:, 0], starts)[:, None]
        x = LayerNorm(c.layer_norm_eps, name="attention_norm")(
            Attention(c, name="attention")(x, memory, mask) + x
        )
        return LayerNorm(c.layer_norm_eps, name="ffn_norm")(FeedForward(c, name="ffn")(x) + x)


class Model(nn.Module):
    """BERT under a head.

    A row is one example, or several packed ones: then `segment_ids` number them from 1, and
    `starts` (batch, examples) are the positions of their first tokens; outputs of heads have an
    axis more, (batch, examples, ...).

    Where the head alone trains, `features_only` gives what the head reads, float32 (batch,
    features), and `features` goes on from it.

    Attributes:
        config: the architecture.
        head: None gives hidden states (batch, length, features), "embedding" the pooled float32
            (batch, features), "classification" float32 logits (batch, labels).
        labels: number of labels.
        pooling: "cls" is BERT's pooler (dense and tanh on the first token); "mean" averages real
            tokens and has no pooler.
    """

    config: Config
    head: str | None = None
    labels: int = 2
    pooling: str = "cls"

    @nn.compact
    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        segment_ids: Array | None = None,
        starts: Array | None = None,
        features: Array | None = None,
        features_only: bool = False,
    ) -> Array:
        c = self.config
        if features is not None:
            return self._classify(features)
        x = Embeddings(c, name="embeddings")(input_ids, token_type_ids, position_ids)
        cls = self.head is not None and self.pooling == "cls"
        encoder = Stack(
            lambda make, name, last: make(c, last and cls, name=name),
            Layer,
            c.options.segments,
            c.options.remat,
            name="encoder",
        )
        x = encoder(x, encoder_mask(attention_mask, segment_ids), starts)
        if self.head is None:
            return x
        x = x.astype(jnp.float32)
        if not cls:
            x = mean_pool(x, attention_mask, segment_ids, starts)
        elif c.options.segments[-1] > 1:  # scanned layers compute all positions
            x = at_starts(x, starts)
        x = x[:, 0] if starts is None else x
        return x if features_only or self.head == "embedding" else self._classify(x)

    def _classify(self, x: Array) -> Array:
        c = self.config
        dense = partial(Dense, stddev=c.initializer_range)
        if self.pooling == "cls":
            x = jnp.tanh(dense(c.hidden_size, ("embed", None), name="pooler")(x))
        rate = c.hidden_dropout_prob if c.classifier_dropout is None else c.classifier_dropout
        x = Dropout(rate, name="dropout")(x)
        return dense(self.labels, ("embed", None), name="classifier")(x)


def hf_modules(config: Config) -> dict[str, str]:
    """Our module path → Hugging Face's module name, for unrolled layers, without "bert."."""
    layer = {
        "attention/query": "attention.self.query",
        "attention/key": "attention.self.key",
        "attention/value": "attention.self.value",
        "attention/output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "ffn/up": "intermediate.dense",
        "ffn/down": "output.dense",
        "ffn_norm": "output.LayerNorm",
    }
    names = {
        "embeddings/word": "embeddings.word_embeddings",
        "embeddings/position": "embeddings.position_embeddings",
        "embeddings/token_type": "embeddings.token_type_embeddings",
        "embeddings/norm": "embeddings.LayerNorm",
    }
    for i in range(config.num_hidden_layers):
        for ours, theirs in layer.items():
            names[f"encoder/layer_{i}/{ours}"] = f"encoder.layer.{i}.{theirs}"
    return names | {"pooler": "pooler.dense"}


HEAD_MODULES = {"classifier": "classifier"}  # outside the prefix
