"""DeBERTa v2 and v3 (He et al. 2021, 2023): attention by content and by relative position."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models import encoder
from ftjax.models.attention import AttentionCore
from ftjax.models.bert import LAYER
from ftjax.models.cache import View
from ftjax.models.encoder import DEFAULT_TARGETS, Embeddings, Inputs, Layer, checked
from ftjax.models.heads import Head
from ftjax.models.layers import (
    Dropout,
    Embedding,
    LayerNorm,
    Options,
    at_starts,
)
from ftjax.models.stack import Stack

__all__ = ["DEFAULT_TARGETS", "Model"]

Array = jax.Array
MODEL = "DebertaV2Model"
HF_PREFIX = "deberta"
POOLED = {"pooler": "pooler.dense", "classifier": "classifier"}
NAMES = {
    "attention/query": "attention.self.query_proj",
    "attention/key": "attention.self.key_proj",
    "attention/value": "attention.self.value_proj",
    "attention/position_key": "attention.self.pos_key_proj",
    "attention/position_query": "attention.self.pos_query_proj",
}


@dataclass(frozen=True)
class Config(encoder.Config):
    """DeBERTa's.

    Attributes:
        relative: which terms join content with relative positions: "c2p", "p2c".
        share_att_key: positions are projected as contents are.
        position_buckets: distances are rounded to so many, logarithmically; 0 for not at all.
        max_relative_positions: the largest distance told apart.
        norm_relative: whether the table of distances is normalized.
    """

    relative: tuple[str, ...] = ()
    share_att_key: bool = False
    position_buckets: int = 0
    max_relative_positions: int = 512
    norm_relative: bool = False

    @property
    def span(self) -> int:
        """Half the size of the table of distances."""
        return self.position_buckets or self.max_relative_positions


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    if hf.get("conv_kernel_size", 0) > 0:
        raise UserError("deberta-v2: conv_kernel_size is not implemented")
    if hf.get("embedding_size", hf.get("hidden_size")) != hf.get("hidden_size"):
        raise UserError("deberta-v2: embedding_size other than hidden_size is not implemented")
    kinds = hf.get("pos_att_type") or ()
    kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
    relative = tuple(kinds) if hf.get("relative_attention") else ()
    most = hf.get("max_relative_positions", -1)
    names = [name for name in Config.__dataclass_fields__ if name in hf]
    values = {"type_vocab_size": 0, "layer_norm_eps": 1e-7, **{name: hf[name] for name in names}}
    values |= {
        "embedding_size": hf["hidden_size"],
        "position_buckets": max(hf.get("position_buckets", -1), 0),
        "max_relative_positions": most if most > 0 else hf.get("max_position_embeddings", 512),
        "positions": hf.get("position_biased_input", True),
        "norm_relative": "layer_norm" in (hf.get("norm_rel_ebd") or "none").lower(),
        "classifier_dropout": hf.get("cls_dropout"),
    }
    pooled = {"activation": hf.get("pooler_hidden_act", "gelu")}
    lm = "cls.predictions" if hf.get("legacy", True) else "lm_predictions.lm_head"
    inside = f"{lm}.transform" if hf.get("legacy", True) else lm
    heads = {
        "classification": Head("DebertaV2ForSequenceClassification", POOLED, **pooled),
        "choice": Head("DebertaV2ForMultipleChoice", POOLED, **pooled),
        "tokens": Head("DebertaV2ForTokenClassification", {"classifier": "classifier"}),
        "span": Head("DebertaV2ForQuestionAnswering", {"classifier": "qa_outputs"}),
        "masked_lm": Head(
            "DebertaV2ForMaskedLM",
            {"mlm/dense": f"{inside}.dense", "mlm/norm": f"{inside}.LayerNorm", "mlm": lm},
        ),
    }
    return checked(Config(**values, relative=relative, heads=heads, options=options), "deberta-v2")


def bucket(distance: Array, buckets: int, most: int) -> Array:
    """Distances: exact below half the buckets, logarithmic from there to `most`."""
    middle = buckets // 2
    size = jnp.where(jnp.abs(distance) < middle, middle - 1, jnp.abs(distance))
    scale = (middle - 1) / math.log((most - 1) / middle)
    far = jnp.ceil(jnp.log(size / middle) * scale).astype(jnp.int32) + middle
    return jnp.where(size <= middle, distance, far * jnp.sign(distance))


class Attention(nn.Module):
    """Disentangled attention: content to content, content to position, position to content."""

    config: Config

    @nn.compact
    def __call__(
        self, x: Array, memory: Array, view: View, starts: Array | None, distances: Array
    ) -> Array:
        """See `ftjax.models.encoder.Attention`.

        Args:
            x: (batch, queries, features).
            memory: (batch, length, features).
            view: which keys a query sees.
            starts: positions of the queries, where they are not all.
            distances: (2 span, features), what stands for each distance.
        """
        c = self.config
        heads = (c.num_attention_heads, c.hidden_size // c.num_attention_heads)

        def project(x: Array, module: nn.Module) -> Array:
            return module(x).reshape(*x.shape[:-1], *heads)

        def dense(name: str) -> nn.Module:
            return c.dense(c.hidden_size, ("embed", "heads"), name)

        to_query, to_key = dense("query"), dense("key")
        query, key = project(x, to_query), project(memory, to_key)
        value = project(memory, dense("value"))
        spread = 1 / math.sqrt(heads[1] * (1 + len(c.relative)))
        bias = None
        if c.relative:
            distances = Dropout(c.hidden_dropout_prob, name="distance_dropout")(distances)
            index = self.index(memory.shape[1], starts)[:, None]
            bias = jnp.zeros((), query.dtype)
            if "c2p" in c.relative:
                table = project(distances, to_key if c.share_att_key else dense("position_key"))
                score = jnp.einsum("bqhd,phd->bhqp", query, table)
                bias = bias + jnp.take_along_axis(score, index, axis=-1)
            if "p2c" in c.relative:
                table = project(distances, to_query if c.share_att_key else dense("position_query"))
                score = jnp.einsum("bkhd,phd->bhpk", key, table)
                bias = bias + jnp.take_along_axis(score, index, axis=-2)
            bias = bias * spread
        core = AttentionCore(
            c.attention_probs_dropout_prob, c.options.attention, spread, name="core"
        )
        context = core(query, key, value, view.mask, bias, view.pattern).reshape(x.shape)
        out = c.dense(c.hidden_size, ("heads", "embed"), "output")(context)
        return Dropout(c.hidden_dropout_prob, name="dropout")(out)

    def index(self, length: int, starts: Array | None) -> Array:
        """Rows of the table of distances: (1 or batch, queries, length)."""
        c = self.config
        query = jnp.arange(length)[None] if starts is None else starts
        distance = query[..., None] - jnp.arange(length)
        if c.position_buckets:
            distance = bucket(distance, c.position_buckets, c.max_relative_positions)
        return jnp.clip(distance + c.span, 0, 2 * c.span - 1)


class Encoder(nn.Module):
    """The stack of layers, which share a table of distances."""

    config: Config
    starts_only: bool

    @nn.compact
    def __call__(self, x: Array, view: View, starts: Array | None) -> Array:
        c = self.config
        shared = []
        if c.relative:
            make = Embedding(
                2 * c.span,
                c.hidden_size,
                axes=(None, "embed"),
                stddev=c.initializer_range,
                name="distances",
            )
            table = make.first(2 * c.span)
            if c.norm_relative:
                table = LayerNorm(c.layer_norm_eps, name="distance_norm")(table)
            shared = [table.astype(c.options.dtype)]
        else:
            shared = [jnp.zeros((0, c.hidden_size))]
        stack = Stack(
            lambda make, name, last: make(c, last and self.starts_only, Attention, name=name),
            Layer,
            c.options.segments,
            c.options.remat,
            name="layers",
        )
        return stack(x, view, starts, *shared)


class Model(encoder.Model):
    """DeBERTa under a head; see `ftjax.models.encoder.Model`."""

    config: Config

    def encode(self, inputs: Inputs, starts_only: bool) -> tuple[Array, Array]:
        c = self.config
        x, table = Embeddings(c, name="embeddings")(inputs)
        x = Encoder(c, starts_only, name="encoder")(x, inputs.view, inputs.starts)
        if starts_only and c.options.segments[-1] > 1:
            x = at_starts(x, inputs.starts)
        return x, table


def hf_modules(config: Config) -> dict[str, str]:
    """Our module path → Hugging Face's module name, for unrolled layers, without the prefix."""
    names = {
        "embeddings/word": "embeddings.word_embeddings",
        "embeddings/position": "embeddings.position_embeddings",
        "embeddings/token_type": "embeddings.token_type_embeddings",
        "embeddings/norm": "embeddings.LayerNorm",
        "encoder/distances": "encoder.rel_embeddings",
        "encoder/distance_norm": "encoder.LayerNorm",
    }
    for i in range(config.num_hidden_layers):
        for ours, theirs in {**LAYER, **NAMES}.items():
            names[f"encoder/layers/layer_{i}/{ours}"] = f"encoder.layer.{i}.{theirs}"
    return names
