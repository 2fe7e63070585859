"""The pre-norm decoder that GPT-2, Llama and their kin share, under any head.

A family's file says how its config.json maps to `Config`, what Hugging Face calls its modules, and
what heads it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models import config
from ftjax.models.attention import AttentionCore
from ftjax.models.cache import Cache, keeps_cache
from ftjax.models.experts import Experts
from ftjax.models.feed_forward import FeedForward
from ftjax.models.language_head import LanguageHead, Scores, capped, read_off, score
from ftjax.models.layers import (
    ACTIVATIONS,
    Dense,
    Dropout,
    Embedding,
    LayerNorm,
    RMSNorm,
)
from ftjax.models.masks import (
    View,
    near_views,
    pick,
    prompt_view,
    rows_view,
    token_view,
    view_of,
)
from ftjax.models.pooling import at_starts, last_tokens
from ftjax.models.rotary import Rotary, laid_out, rotate
from ftjax.models.stack import Stack

Array = jax.Array
DEFAULT_TARGETS = ("query", "value")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """A pre-norm decoder.

    Attributes:
        head_dim: of a head; the heads together may be wider than `hidden_size`.
        norm: "layer" or "rms"; "rms_offset" multiplies by 1 + scale.
        query_norm: heads of queries and keys are normalized.
        post_norms: sub-layers are normalized once more before the residual.
        windows: by kind of layer, how many positions back a token sees; None for all.
        rotaries: by kind of layer; empty for a table of learned positions.
        kinds: of each layer; empty for all 0.
        both_sides: a token sees those after it, too, and a window is as wide to either side.
        scale: of attention scores; None for 1 / √head_dim.
        attention_softcap, logit_softcap: c in c · tanh(x / c).
        embedding_scale: what embeddings are multiplied by.
        experts: feed-forward blocks of which each token takes `active`; 0 for one block.
    """

    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    hidden_act: str = "silu"
    gated: bool = True
    norm: str = "rms"
    norm_eps: float = 1e-6
    biases: tuple[str, ...] = ()
    query_norm: bool = False
    post_norms: bool = False
    windows: tuple[int | None, ...] = (None,)
    rotaries: tuple[Rotary, ...] = ()
    kinds: tuple[int, ...] = ()
    both_sides: bool = False
    scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    embedding_dropout: float = 0.0
    experts: int = 0
    active: int = 0
    tied: bool = False

    pre_norm: ClassVar[bool] = True

    @property
    def divisible(self) -> bool:
        """Whether feed-forward blocks can be computed in parts."""
        return self.gated and not self.experts and "ffn" not in self.biases

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        return self.num_key_value_heads * self.head_dim

    def normalize(self, name: str) -> nn.Module:
        if self.norm == "layer":
            return LayerNorm(self.norm_eps, name=name)
        return RMSNorm(self.norm_eps, self.norm == "rms_offset", name=name)


def sizes(hf: Mapping[str, Any]) -> dict[str, int]:
    """What config.json calls as `Config` does."""
    return {name: hf[name] for name in SIZES}


def checked(config: Config, family: str) -> Config:
    """A configuration with its segments and kinds.

    Raises:
        UserError: an option that is not implemented.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise UserError(f"{family}: hidden_act={config.hidden_act!r} is not implemented")
    if config.num_attention_heads % config.num_key_value_heads:
        raise UserError(f"{family}: num_key_value_heads does not divide num_attention_heads")
    kinds = config.kinds or (0,) * config.num_hidden_layers
    if len(kinds) != config.num_hidden_layers:
        count = f"{len(kinds)} layers of {config.num_hidden_layers}"
        raise UserError(f"{family}: layer_types name {count}")
    return replace(config, kinds=kinds).segmented()


class Attention(nn.Module):
    """Attention with its output projection, without residual."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, view: View, rotary: tuple[Array, Array] | None) -> Array:
        c = self.config

        def project(name: str, heads: int) -> Array:
            axes = ("embed", "heads" if name == "query" else "kv")
            y = c.dense(heads * c.head_dim, axes, name)(x)
            return y.reshape(*x.shape[:-1], heads, c.head_dim)

        query = project("query", c.num_attention_heads)
        key = project("key", c.num_key_value_heads)
        value = project("value", c.num_key_value_heads)
        query, key = laid_out(query, key)
        if c.query_norm:
            query, key = c.normalize("query_norm")(query), c.normalize("key_norm")(key)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        key, value = Cache(name="cache")(key, value, view.slots)
        core = AttentionCore(
            c.attention_dropout,
            c.options.attention,
            c.scale,
            c.attention_softcap,
            c.options.blocks,
            name="core",
        )
        context = core(query, key, value, view.mask, pattern=view.pattern)
        return c.project_context(context)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, kind: Any, views: Any, rotaries: Any) -> Array:
        """Applies the layer.

        Args:
            x: (batch, length, features).
            kind: number of the layer's kind.
            views, rotaries: by kind.
        """
        c = self.config
        x = nn.with_logical_constraint(x, ("batch", "length", "hidden"))
        view, rotary = view_of(views, kind), pick(rotaries, kind)
        y = Attention(c, name="attention")(c.normalize("attention_norm")(x), view, rotary)
        x = x + (c.normalize("attention_post_norm")(y) if c.post_norms else y)
        block = Experts if c.experts else partial(FeedForward, width=c.intermediate_size)
        y = block(c, name="ffn")(c.normalize("ffn_norm")(x))
        return x + (c.normalize("ffn_post_norm")(y) if c.post_norms else y)


class Model(nn.Module):
    """The decoder under a head.

    A row is one example, or several packed ones, see `ftjax.models.encoder.Model`.

    Where the collection "cache" is mutable, keys and values are kept for generation: first a
    prompt's, padded on the left, with an `attention_mask` as wide as all that may follow; then
    `column` is where the first token of `input_ids` stands: one a row, or several that follow each
    other. Logits of a prompt are of its last column alone (batch, 1, vocabulary).

    `features_only` and `features` are as those of `ftjax.models.encoder.Model`. With `targets`
    and `target_weights` (batch, length) a language model gives `Scores` instead of logits; with
    targets alone, the log-probability of each (batch, length).

    Attributes:
        config: the architecture.
        head: None gives hidden states (batch, length, features); "causal_lm" float32 logits
            (batch, length, vocabulary); "classification" those of each example's last token
            (batch, labels); "tokens" (batch, length, labels); "span" (batch, length, 2).
        labels: number of labels.
    """

    config: Config
    head: str | None = None
    labels: int = 2
    pooling: str = "last"

    @nn.compact
    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        segment_ids: Array | None = None,
        starts: Array | None = None,
        column: Array | None = None,
        features: Array | None = None,
        features_only: bool = False,
        targets: Array | None = None,
        target_weights: Array | None = None,
        target_smoothing: float = 0.0,
    ) -> Array | Scores:
        if features is not None:
            return self.classify(features)
        c, length = self.config, input_ids.shape[1]
        embedding = partial(Embedding, features=c.hidden_size, stddev=c.initializer_range)
        words = embedding(c.vocab_size, name="words")
        if position_ids is None and column is not None:
            position_ids = column[None, None]
        x = words(input_ids).astype(c.options.dtype)
        if c.embedding_scale != 1.0:
            x = x * jnp.asarray(c.embedding_scale, x.dtype)
        if token_type_ids is not None and not c.rotaries:
            x = x + words(token_type_ids).astype(x.dtype)
        rotaries = ()
        if c.rotaries:
            positions = jnp.arange(length)[None] if position_ids is None else position_ids
            rotaries = tuple(rotary.table(positions) for rotary in c.rotaries)
        else:
            table = embedding(c.max_position_embeddings, axes=(None, "embed"), name="positions")
            position_vectors = table.first(length) if position_ids is None else table(position_ids)
            x = x + position_vectors.astype(x.dtype)
        x = Dropout(c.embedding_dropout, name="embedding_dropout")(x)
        keep = keeps_cache(self)
        views = self.views(length, attention_mask, segment_ids, column, keep)
        stack = Stack(
            lambda cls, name, last: cls(c, name=name),
            Layer,
            c.options.segments,
            c.options.remat,
            c.kinds,
            name="decoder",
        )
        x = c.normalize("final_norm")(stack(x, views, rotaries))
        if self.head is None:
            return x
        if keep and column is None:  # rows end in the same column
            x = x[:, -1:]
        if targets is not None:  # in the compute dtype
            if target_weights is None:
                return self.language(x, words, targets)
            return self.language(x, words, targets, target_weights, target_smoothing)
        if self.head == "causal_lm":
            return self.language(x, words)
        x = x.astype(jnp.float32)
        if self.head != "classification":
            return self.each_token(x, words)
        x = at_starts(x, last_tokens(x.shape[:2], attention_mask, segment_ids, starts))
        x = x[:, 0] if starts is None else x
        return x if features_only else self.classify(x)

    def views(
        self,
        length: int,
        attention_mask: Array | None,
        segment_ids: Array | None,
        column: Array | None,
        keep: bool,
    ) -> tuple[View, ...]:
        """What each kind of layer sees."""
        c = self.config
        ends = [sum(c.options.segments[:i]) for i in range(len(c.options.segments) + 1)]
        # Scanned together, layers of several kinds keep equally many keys.
        ring = all(len(set(c.kinds[a:b])) == 1 for a, b in pairwise(ends))
        if c.both_sides and (keep or column is not None):
            raise UserError("a model that sees both sides of a token does not generate")
        if c.both_sides:
            side_windows = tuple(window and window - 1 for window in c.windows)
            return near_views(rows_view(attention_mask, segment_ids), length, side_windows)
        if column is not None:
            return tuple(token_view(column, attention_mask, w, ring, length) for w in c.windows)
        views = [prompt_view(length, attention_mask, segment_ids, w, keep, ring) for w in c.windows]
        pattern = views[0].pattern.replace(windows=c.windows)
        return tuple(view._replace(pattern=pattern) for view in views)

    def classify(self, x: Array) -> Array:
        dense = partial(Dense, stddev=self.config.initializer_range)
        return dense(self.labels, ("embed", None), False, name="classifier")(x)

    def each_token(self, x: Array, words: Embedding) -> Array:
        """What heads say of every position, from float32 hidden states."""
        c = self.config
        dense = partial(Dense, stddev=c.initializer_range)
        count = 2 if self.head == "span" else self.labels
        x = Dropout(c.heads[self.head].dropout, name="dropout")(x)
        return dense(count, ("embed", None), name="classifier")(x)

    def language(self, x: Array, words: Embedding, *targets: Any) -> Array | Scores:
        """Logits, or the scores of targets, their weights and smoothing."""
        c = self.config
        if not c.tied:
            head = partial(LanguageHead, c.vocab_size, ("embed", "vocab"), False)
            head = partial(head, stddev=c.initializer_range, softcap=c.logit_softcap)
            return head(gathered=c.options.gather_head, name="lm_head")(x, *targets)
        table, cap = words.embedding, c.logit_softcap
        if targets:
            return score(x, table.T, *targets, softcap=cap, gathered=c.options.gather_head)
        return capped(read_off(x, table), cap)
