"""DeBERTa v2 and v3 (He et al. 2021, 2023): attention by content and by relative position."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import UserError
from ftjax.models import bert, encoder
from ftjax.models.attention import AttentionCore
from ftjax.models.config import inside
from ftjax.models.config_keys import keys
from ftjax.models.encoder import DEFAULT_TARGETS, Embeddings, Inputs, Layer, checked, fields_in
from ftjax.models.heads import Head, untied, with_dropouts
from ftjax.models.layers import (
    Dropout,
    Embedding,
    LayerNorm,
    Options,
)
from ftjax.models.masks import View
from ftjax.models.pooling import at_starts
from ftjax.models.stack import Stack

__all__ = ["DEFAULT_TARGETS", "Model"]

Array = jax.Array
MODEL = "DebertaV2Model"
HF_PREFIX = "deberta"
POOLED = {"pooler": "pooler.dense", "classifier": "classifier"}
LAYER = {
    **bert.LAYER,
    "attention/query": "attention.self.query_proj",
    "attention/key": "attention.self.key_proj",
    "attention/value": "attention.self.value_proj",
    "attention/position_key": "attention.self.pos_key_proj",
    "attention/position_query": "attention.self.pos_query_proj",
}
MODULES = {
    **bert.EMBEDDINGS,
    "encoder/distances": "encoder.rel_embeddings",
    "encoder/distance_norm": "encoder.LayerNorm",
    **inside("encoder/layers/layer_{}", "encoder.layer.{}", LAYER),
}
DEFAULTS = {
    "vocab_size": 128100,
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
KEYS = {
    "deberta-v2": keys(
        f"{bert.READ} embedding_size pos_att_type relative_attention max_relative_positions "
        "position_buckets position_biased_input norm_rel_ebd share_att_key cls_dropout legacy "
        "pooler_dropout pooler_hidden_act pooler_hidden_size attention_head_size",
        inert="conv_act conv_groups",
        conv_kernel_size=(0,),
        is_encoder_decoder=(False,),
    )
}


@dataclass(frozen=True, kw_only=True)
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
    hf = {**DEFAULTS, **hf}
    size, heads = hf["hidden_size"], hf["num_attention_heads"]
    for name, implemented in (
        ("embedding_size", size),
        ("pooler_hidden_size", size),
        ("attention_head_size", size // heads),
    ):
        if hf.get(name, implemented) != implemented:
            other = f"{name}={hf[name]} other than {implemented}"
            raise UserError(f"deberta-v2: {other} is not implemented")
    kinds = hf.get("pos_att_type") or ()
    kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
    max_distance = hf.get("max_relative_positions", -1)
    max_distance = max_distance if max_distance > 0 else hf.get("max_position_embeddings", 512)
    buckets = max(hf.get("position_buckets", -1), 0)
    # Up to half of them, each distance has its own.
    if buckets and not 1 <= buckets // 2 < max_distance - 1:
        raise UserError(
            f"deberta-v2: position_buckets={buckets} must be 2 or more, and half of them below "
            f"max_relative_positions - 1 = {max_distance - 1}"
        )
    legacy, tied = hf.get("legacy", True), hf.get("tie_word_embeddings", True)
    # The other head reads words off by their table, whether tied or not.
    tied = tied or not legacy
    values = fields_in(hf, Config) | {
        "embedding_size": size,
        "relative": tuple(kinds) if hf.get("relative_attention") else (),
        "position_buckets": buckets,
        "max_relative_positions": max_distance,
        "positions": hf.get("position_biased_input", True),
        "norm_relative": "layer_norm" in (hf.get("norm_rel_ebd") or "none").lower(),
        "tied": tied,
        "heads": heads_of(hf, legacy, tied),
        "modules": MODULES,
    }
    return checked(Config(**values, options=options), "deberta-v2")


def heads_of(hf: Mapping[str, Any], legacy: bool, tied: bool) -> dict[str, Head]:
    """The heads that Hugging Face has; of the masked language model's there are two."""
    pooler = {"activation": hf.get("pooler_hidden_act", "gelu")}
    lm = "cls.predictions" if legacy else "lm_predictions.lm_head"
    transform = f"{lm}.transform" if legacy else lm
    heads = {
        "classification": Head("DebertaV2ForSequenceClassification", POOLED, **pooler),
        "choice": Head("DebertaV2ForMultipleChoice", POOLED, **pooler),
        "tokens": Head("DebertaV2ForTokenClassification", {"classifier": "classifier"}),
        "span": Head("DebertaV2ForQuestionAnswering", {"classifier": "qa_outputs"}),
        "masked_lm": Head(
            "DebertaV2ForMaskedLM",
            {"mlm/dense": f"{transform}.dense", "mlm/norm": f"{transform}.LayerNorm", "mlm": lm},
            vocabulary=f"{lm}.decoder" if legacy else "",
        ),
    }
    hidden, rate = hf.get("hidden_dropout_prob", 0.1), hf.get("cls_dropout")
    pair = hf.get("pooler_dropout", 0.0), hidden if rate is None else rate
    rates = {"classification": pair, "choice": pair, "tokens": hidden}
    heads = with_dropouts(heads, rates)
    return heads if tied else untied(heads, "mlm")


@lru_cache
def buckets_of(buckets: int, max_distance: int) -> np.ndarray:
    """What distances -most to most are rounded to; those farther away are as the farthest.

    Exact below half the buckets, logarithmic from there. In float32 and in the order of the
    reference, since a distance may lie on the edge of a bucket.
    """
    distance, middle = np.arange(-max_distance, max_distance + 1), buckets // 2
    size = np.maximum(np.abs(distance), middle).astype(np.float32)
    scale = np.log(np.float32((max_distance - 1) / middle))
    far = np.ceil(np.log(size / np.float32(middle)) / scale * np.float32(middle - 1)) + middle
    return np.where(size > middle, far * np.sign(distance), distance).astype(np.int32)


def rows_of(config: Config, length: int) -> np.ndarray:
    """Rows of the table of distances for distances 1 - length to length - 1; never falling."""
    distance = np.arange(1 - length, length)
    if config.position_buckets:
        max_distance = config.max_relative_positions
        table = buckets_of(config.position_buckets, max_distance)
        distance = table[np.clip(distance, -max_distance, max_distance) + max_distance]
    return np.clip(distance + config.span, 0, 2 * config.span - 1).astype(np.int32)


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
            distances: (rows, features), what stands for each distance within a row of tokens.
        """
        c = self.config
        heads = (c.num_attention_heads, c.head_dim)

        def project(x: Array, module: nn.Module) -> Array:
            return module(x).reshape(*x.shape[:-1], *heads)

        dense = partial(c.dense, c.hidden_size, ("embed", "heads"))
        to_query, to_key = dense("query"), dense("key")
        query, key = project(x, to_query), project(memory, to_key)
        value = project(memory, dense("value"))
        scale = 1 / math.sqrt(heads[1] * (1 + len(c.relative)))
        bias = None
        if c.relative:
            distances = Dropout(c.dropout, name="distance_dropout")(distances)
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
            bias = bias * scale
        core = AttentionCore(c.attention_dropout, c.options.attention, scale, name="core")
        context = core(query, key, value, view.mask, bias, view.pattern)
        return c.project_context(context)

    def index(self, length: int, starts: Array | None) -> Array:
        """Rows of `distances`: (1 or batch, queries, length)."""
        query = jnp.arange(length)[None] if starts is None else starts
        rows = rows_of(self.config, length)
        return jnp.asarray(rows - rows[0])[query[..., None] - jnp.arange(length) + length - 1]


class Encoder(nn.Module):
    """The stack of layers, which share a table of distances."""

    config: Config
    starts_only: bool

    @nn.compact
    def __call__(self, x: Array, view: View, starts: Array | None) -> Array:
        c = self.config
        shared = []
        if c.relative:
            embedding = Embedding(
                2 * c.span,
                c.hidden_size,
                axes=(None, "embed"),
                stddev=c.initializer_range,
                name="distances",
            )
            rows = rows_of(c, x.shape[1])  # each layer multiplies them: none that nothing reads
            table = embedding.first(rows[-1] - rows[0] + 1, rows[0])
            if c.norm_relative:
                table = LayerNorm(c.norm_eps, name="distance_norm")(table)
            shared = [table.astype(c.options.dtype)]
        else:
            shared = [jnp.zeros((0, c.hidden_size))]
        stack = Stack(
            lambda cls, name, last: cls(c, last and self.starts_only, Attention, name=name),
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
