"""XLNet (Yang et al. 2019) as an encoder: attention by content, distance and segment, one stream.

Positions are relative alone, as in Transformer-XL (Dai et al. 2019).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models import encoder
from ftjax.models.attention import AttentionCore
from ftjax.models.config import inside
from ftjax.models.config_keys import keys
from ftjax.models.encoder import DEFAULT_TARGETS, Inputs, Layer, checked
from ftjax.models.heads import Head, with_dropouts
from ftjax.models.language_head import read_off
from ftjax.models.layers import (
    ACTIVATIONS,
    Bias,
    Dense,
    Dropout,
    Embedding,
    Options,
)
from ftjax.models.masks import View
from ftjax.models.pooling import at_starts, last_tokens, mean_pool
from ftjax.models.stack import Stack
from ftjax.names import Part

__all__ = ["DEFAULT_TARGETS", "Model"]

Array = jax.Array
MODEL = "XLNetModel"
HF_PREFIX = "transformer"
POOLED = {"pooler": "sequence_summary.summary", "classifier": "logits_proj"}
by_head = partial(Part, raw=True, shape=("hidden_size", "num_attention_heads", "head_dim"))
ATTENTION = {
    "query": by_head("q", transposed=True),
    "key": by_head("k", transposed=True),
    "value": by_head("v", transposed=True),
    "position_key": by_head("r", transposed=True),
    "output": by_head("o"),
    "content_bias": Part("r_w_bias", raw=True),
    "position_bias": Part("r_r_bias", raw=True),
    "segment_bias": Part("r_s_bias", raw=True),
    "segments": Part("seg_embed", raw=True, shape=(2, "num_attention_heads", "head_dim")),
}
LAYER = {
    **inside("attention", "rel_attn", ATTENTION),
    "attention_norm": "rel_attn.layer_norm",
    "ffn/up": "ff.layer_1",
    "ffn/down": "ff.layer_2",
    "ffn_norm": "ff.layer_norm",
}
MODULES = {
    "embeddings/word": "word_embedding",
    "embeddings/mask": Part("mask_emb", raw=True, shape=(1, 1, "hidden_size")),
    **inside("encoder/layer_{}", "layer.{}", LAYER),
}
KEYS = {
    "xlnet": keys(
        "vocab_size d_model n_layer n_head d_inner d_head ff_activation dropout layer_norm_eps "
        "initializer_range clamp_len summary_activation summary_first_dropout "
        "summary_last_dropout tie_word_embeddings",
        inert="mem_len reuse_len same_length use_mems_eval use_mems_train start_n_top end_n_top",
        aliases={
            "n_token": "vocab_size",
            "hidden_size": "d_model",
            "num_attention_heads": "n_head",
            "num_hidden_layers": "n_layer",
        },
        attn_type=("bi",),
        bi_data=(False,),
        summary_type=("last", "cls_index"),  # which is the last token's, where none is given
        summary_use_proj=(True,),
        summary_proj_to_labels=(False,),
        is_encoder_decoder=(False,),
    )
}


@dataclass(frozen=True, kw_only=True)
class Config(encoder.Config):
    """XLNet's.

    Attributes:
        clamp_len: the largest distance told apart; not positive for all.
    """

    clamp_len: int = -1
    biases: tuple[str, ...] = ("ffn",)


def from_hf(hf: Mapping[str, Any], options: Options) -> Config:
    """Reads config.json's mapping.

    Raises:
        UserError: an option that is not implemented.
    """
    size, count = hf.get("d_model", 1024), hf.get("n_head", 16)
    if hf.get("d_head") not in (None, size // count):
        raise UserError(f"xlnet: d_head={hf['d_head']} other than d_model / n_head")
    activation = hf.get("summary_activation", "tanh")
    if activation not in ACTIVATIONS:
        raise UserError(f"xlnet: summary_activation={activation!r} is not implemented")
    dropout, pooler = hf.get("dropout", 0.1), {"activation": activation}
    heads = {
        "classification": Head("XLNetForSequenceClassification", POOLED, **pooler),
        "choice": Head("XLNetForMultipleChoice", POOLED, **pooler),
        "tokens": Head("XLNetForTokenClassification", {"classifier": "classifier"}),
        "span": Head("XLNetForQuestionAnsweringSimple", {"classifier": "qa_outputs"}),
        "causal_lm": Head("XLNetLMHeadModel", {"logits": "lm_loss"}, vocabulary="lm_loss"),
    }
    summary = hf.get("summary_first_dropout", 0.0), hf.get("summary_last_dropout", 0.1)
    return checked(
        Config(
            vocab_size=hf.get("vocab_size", 32000),
            hidden_size=size,
            embedding_size=size,
            num_hidden_layers=hf.get("n_layer", 24),
            num_attention_heads=count,
            intermediate_size=hf.get("d_inner", 4096),
            hidden_act=hf.get("ff_activation", "gelu"),
            dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=dropout,
            norm_eps=hf.get("layer_norm_eps", 1e-12),
            initializer_range=hf.get("initializer_range", 0.02),
            clamp_len=hf.get("clamp_len", -1),
            tied=hf.get("tie_word_embeddings", True),
            heads=with_dropouts(heads, {"classification": summary, "choice": summary}),
            modules=MODULES,
            options=options,
        ),
        "xlnet",
    )


def sinusoids(length: int, features: int, clamp: int) -> Array:
    """What stands for distances `length` down to 1 - `length`: (2 length, features)."""
    distance = jnp.arange(length, -length, -1, dtype=jnp.float32)
    if clamp > 0:
        distance = jnp.clip(distance, -clamp, clamp)
    frequency = 1 / 10_000 ** (jnp.arange(0, features, 2, dtype=jnp.float32) / features)
    angle = distance[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)


def shift(scores: Array) -> Array:
    """Scores by distance → by key: (..., q, 2q), as `sinusoids` orders them, → (..., q, q).

    The score of query i and key j stands q - i + j places into row i: rows one place shorter
    bring it to place j (Dai et al. 2019, appendix B).
    """
    *batch, length, width = scores.shape
    rows = scores.reshape(*batch, -1)[..., length:].reshape(*batch, length, width - 1)
    return rows[..., :length]


class Embeddings(nn.Module):
    """Words, with dropout."""

    config: Config

    @nn.compact
    def __call__(self, input_ids: Array) -> tuple[Array, Array]:
        """Embedded tokens (batch, length, features), and the table of words."""
        c = self.config
        embedding = partial(Embedding, features=c.hidden_size, stddev=c.initializer_range)
        word = embedding(c.vocab_size, name="word")
        # Only pre-training's second stream reads it; it is kept so that folders stay whole.
        embedding(1, axes=(None, "embed"), name="mask").first(1)
        x = word(input_ids).astype(c.options.dtype)
        return Dropout(c.dropout, name="dropout")(x), word.embedding


class Attention(nn.Module):
    """Attention by content, distance and segment: Yang et al. (2019), section 2.5 and A.2."""

    config: Config

    @nn.compact
    def __call__(
        self,
        x: Array,
        memory: Array,
        view: View,
        starts: Array | None,
        distances: Array,
        types_differ: Array | None,
    ) -> Array:
        """See `ftjax.models.encoder.Attention`; here every position is a query.

        Args:
            x: (batch, length, features).
            memory: the same.
            view: which keys a query sees.
            starts: None.
            distances: (2 length, features), what stands for each distance.
            types_differ: (batch, 1, length, length), whether token types do.
        """
        c = self.config
        heads = (c.num_attention_heads, c.head_dim)

        def project(x: Array, name: str) -> Array:
            y = c.dense(c.hidden_size, ("embed", "heads"), name)(x)
            return y.reshape(*x.shape[:-1], *heads)

        query, key, value = project(x, "query"), project(memory, "key"), project(memory, "value")

        def biased(name: str) -> Array:
            bias = Bias(heads, ("heads", None), c.initializer_range, name=name)()
            return query + bias.astype(query.dtype)

        position_key = project(distances, "position_key")
        score = shift(jnp.einsum("bqhd,phd->bhqp", biased("position_bias"), position_key))
        segments = Embedding(
            2,
            c.hidden_size,
            (None, "heads"),
            c.options.dtype,
            c.initializer_range,
            name="segments",
        )
        segment_key, by_segment = segments.first(2).reshape(2, *heads), biased("segment_bias")
        if types_differ is not None:
            same, other = jnp.einsum("bqhd,shd->sbhq", by_segment, segment_key)[..., None]
            score = score + jnp.where(types_differ, other, same)
        core = AttentionCore(c.attention_dropout, c.options.attention, name="core")
        bias = score * heads[1] ** -0.5
        query = biased("content_bias")
        context = core(query, key, value, view.mask, bias, view.pattern)
        return c.project_context(context)


class Model(encoder.Model):
    """XLNet under a head; see `ftjax.models.encoder.Model`.

    There are no absolute positions: `position_ids` change nothing. The family's own pooling is
    of the last real token; `transformers` reads the last position, which is the same in rows
    padded on the left, as XLNet's are. "causal_lm" says what stands at each position, of what
    `perm_mask` lets it see.
    """

    config: Config

    def encode(self, inputs: Inputs, starts_only: bool) -> tuple[Array, Array]:
        c, length, view = self.config, inputs.input_ids.shape[1], inputs.view
        x, table = Embeddings(c, name="embeddings")(inputs.input_ids)
        if view.mask is not None:  # a token sees itself, whatever the masks say
            pattern = view.pattern.replace(masked=True)
            view = View(view.mask | jnp.eye(length, dtype=bool), pattern=pattern)
        kinds, types_differ = inputs.token_type_ids, None
        if kinds is not None:
            types_differ = (kinds[:, :, None] != kinds[:, None])[:, None]
        distances = sinusoids(length, c.hidden_size, c.clamp_len).astype(x.dtype)
        distances = Dropout(c.dropout, name="distance_dropout")(distances)
        stack = Stack(
            lambda cls, name, last: cls(c, attention=Attention, name=name),
            Layer,
            c.options.segments,
            c.options.remat,
            name="encoder",
        )
        x = stack(x, view, None, distances, types_differ)
        return Dropout(c.dropout, name="final_dropout")(x), table

    def pool(self, x: Array, inputs: Inputs) -> Array:
        if self.pooling == "mean":
            return mean_pool(x, inputs.attention_mask, inputs.segment_ids, inputs.starts)
        masks = (inputs.attention_mask, inputs.segment_ids, inputs.starts)
        return at_starts(x, last_tokens(x.shape[:2], *masks))

    def each_token(self, x: Array, table: Array, starts: Array | None) -> Array:
        stddev = self.config.initializer_range
        if self.head == "causal_lm" and not self.config.tied:
            return Dense(table.shape[0], ("embed", "vocab"), stddev=stddev, name="logits")(x)
        if self.head == "causal_lm":
            return read_off(x, table) + Bias(table.shape[:1], ("vocab",), name="logits")()
        count = 2 if self.head == "span" else self.labels
        return Dense(count, ("embed", None), stddev=stddev, name="classifier")(x)
