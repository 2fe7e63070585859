"""The post-norm encoder that BERT and its kin share (Devlin et al. 2019), under any head.

A family's file says how its config.json maps to `Config`, what Hugging Face calls its modules, and
what heads it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.formats.sentence_transformers.modules import DenseLayer
from ftjax.models import config
from ftjax.models.attention import AttentionCore
from ftjax.models.feed_forward import FeedForward
from ftjax.models.heads import MaskedLM, classify
from ftjax.models.layers import (
    ACTIVATIONS,
    Dense,
    Dropout,
    Embedding,
    LayerNorm,
)
from ftjax.models.masks import View, rows_view
from ftjax.models.pooling import at_starts, entity_pool, mean_pool
from ftjax.models.stack import Stack

Array = jax.Array
DEFAULT_TARGETS = ("query", "value")


@dataclass(frozen=True, kw_only=True)
class Config(config.Config):
    """A post-norm encoder; what is set to a value here is as in BERT's config.json.

    Attributes:
        embedding_size: of the tables.
        project_embeddings: to `hidden_size`, after norm and dropout.
        type_vocab_size: 0 where there are no token types.
        positions: whether there is a table of them.
        first_position: number of the first token's position in it.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    embedding_size: int = 768
    project_embeddings: bool = False
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    biases: tuple[str, ...] = ("qkv", "output", "ffn", "project")
    dropout: float = 0.1
    attention_dropout: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    positions: bool = True
    first_position: int = 0
    norm_eps: float = 1e-12

    pre_norm: ClassVar[bool] = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


# Keys of config.json that `Config` calls otherwise.
FIELDS = {
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "norm_eps",
}


def fields_in(hf: Mapping[str, Any], cls: type[Config] = Config) -> dict[str, Any]:
    """What config.json says that a configuration has, too."""
    named = {FIELDS.get(key, key): value for key, value in hf.items()}
    return {name: value for name, value in named.items() if name in cls.__dataclass_fields__}


def checked(config: Config, family: str) -> Config:
    """A configuration with its segments.

    Raises:
        UserError: an option that is not implemented.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise UserError(f"{family}: hidden_act={config.hidden_act!r} is not implemented")
    if config.hidden_size % config.num_attention_heads:
        raise UserError(f"{family}: num_attention_heads does not divide hidden_size")
    return config.segmented()


class Inputs(NamedTuple):
    """What `Model` was called with, and which keys each query sees: `view`."""

    input_ids: Array
    attention_mask: Array | None
    token_type_ids: Array | None
    position_ids: Array | None
    segment_ids: Array | None
    starts: Array | None
    view: View
    entities: Array | None = None


class Embeddings(nn.Module):
    """LN(word + position + token type), with dropout."""

    config: Config

    @nn.compact
    def __call__(self, inputs: Inputs) -> tuple[Array, Array]:
        """Embedded tokens (batch, length, embedding_size), and the table of words."""
        c = self.config
        embedding = partial(Embedding, features=c.embedding_size, stddev=c.initializer_range)
        word = embedding(c.vocab_size, name="word")
        x = word(inputs.input_ids)
        if c.type_vocab_size:
            kinds = embedding(c.type_vocab_size, axes=(None, "embed"), name="token_type")
            types = inputs.token_type_ids
            # A table of one kind is RoBERTa's; a tokenizer may name more, which are beyond it
            if types is None or c.type_vocab_size == 1:
                types = jnp.zeros((1, 1), jnp.int32)
            x = x + kinds(types)
        if c.positions:
            position = embedding(c.max_position_embeddings, axes=(None, "embed"), name="position")
            if inputs.position_ids is None:
                x = x + position.first(x.shape[1], c.first_position)
            else:
                x = x + position(inputs.position_ids + c.first_position)
        x = LayerNorm(c.norm_eps, name="norm")(x.astype(c.options.dtype))
        x = Dropout(c.dropout, name="dropout")(x)
        if c.project_embeddings:
            x = c.dense(c.hidden_size, (None, "embed"), "project")(x)
        return x, word.embedding


class Attention(nn.Module):
    """Multi-head attention of `x` to `memory` with its output projection, without residual."""

    config: Config

    @nn.compact
    def __call__(self, x: Array, memory: Array, view: View, starts: Array | None) -> Array:
        c = self.config
        heads = (c.num_attention_heads, c.head_dim)

        def project(x: Array, name: str) -> Array:
            y = c.dense(c.hidden_size, ("embed", "heads"), name)(x)
            return y.reshape(*x.shape[:-1], *heads)

        query, key, value = project(x, "query"), project(memory, "key"), project(memory, "value")
        core = AttentionCore(c.attention_dropout, c.options.attention, name="core")
        context = core(query, key, value, view.mask, pattern=view.pattern)
        return c.project_context(context)


class Layer(nn.Module):
    """Attention and feed-forward, each followed by residual and norm.

    Attributes:
        starts_only: compute only the positions where examples start, where nothing reads others.
        attention: the class; it is called with x, memory, view, `starts` where x is only what
            stands there, and what the stack's layers share.
    """

    config: Config
    starts_only: bool = False
    attention: type[nn.Module] = Attention

    @nn.compact
    def __call__(self, x: Array, view: View, starts: Array | None, *shared: Array) -> Array:
        c = self.config
        memory = x = nn.with_logical_constraint(x, ("batch", "length", "hidden"))
        query_positions = None
        if self.starts_only:
            query_positions = jnp.zeros((1, 1), jnp.int32) if starts is None else starts
            x = at_starts(memory, starts)
            mask = view.mask
            if mask is not None and mask.shape[2] > 1:
                mask = at_starts(mask[:, 0], starts)[:, None]
            view = View(mask)
        x = LayerNorm(c.norm_eps, name="attention_norm")(
            self.attention(c, name="attention")(x, memory, view, query_positions, *shared) + x
        )
        ffn = FeedForward(c, c.intermediate_size, "activation_dropout", name="ffn")
        return LayerNorm(c.norm_eps, name="ffn_norm")(ffn(x) + x)


class Model(nn.Module):
    """The encoder under a head.

    A row is one example, or several packed ones: then `segment_ids` number them from 1, and
    `starts` (batch, examples) are the positions of their first tokens; outputs of heads that read
    one vector an example have an axis more, (batch, examples, ...). `perm_mask` (batch, length,
    length) is nonzero where a token must not see another. A masked language model gives only what
    stands at `at_positions` (batch, count), where they are given.

    Where the head alone trains, `features_only` gives what the head reads, float32 (batch,
    features), and `features` goes on from it.

    Attributes:
        config: the architecture.
        head: None gives hidden states (batch, length, features); "embedding" the pooled float32
            (batch, features); "classification" float32 logits (batch, labels); "choice", of
            inputs (batch, choices, length), (batch, choices); "tokens" (batch, length, labels);
            "span" (batch, length, 2), start and end; "masked_lm" (batch, length, vocabulary);
            "pretraining" those and (batch, 2), whether the second text follows the first.
        labels: number of labels.
        pooling: "cls" is the family's own, of the first token; "mean" averages real tokens and
            has no layer between; "entities" puts beside each other the means over tokens with 1
            and with 2 in `entities` (batch, length), and the first token, and has no layer between.
        dense: layers after the pooled vector.
    """

    config: Config
    head: str | None = None
    labels: int = 2
    pooling: str = "cls"
    dense: tuple[DenseLayer, ...] = ()

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
        perm_mask: Array | None = None,
        entities: Array | None = None,
        at_positions: Array | None = None,
    ) -> Any:
        if features is not None:
            return self.classify(self.projected(features), self.labels)
        if self.head == "choice":
            choices = input_ids.shape[1]

            def flat(x: Array | None) -> Array | None:
                return None if x is None else x.reshape(-1, *x.shape[2:])

            input_ids, attention_mask = flat(input_ids), flat(attention_mask)
            token_type_ids, position_ids = flat(token_type_ids), flat(position_ids)
            perm_mask = flat(perm_mask)
        is_pooled = self.head in ("embedding", "classification", "choice")
        starts_only = is_pooled and self.pooling == "cls"
        inputs = Inputs(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            segment_ids,
            starts,
            rows_view(attention_mask, segment_ids, perm_mask),
            entities,
        )
        x, table = self.encode(inputs, starts_only)
        if self.head is None:
            return x
        x = x.astype(jnp.float32)
        if not is_pooled and at_positions is not None:
            return self.each_token(x, table, starts, at_positions)
        if not is_pooled:
            return self.each_token(x, table, starts)
        x = self.pool(x, inputs)
        x = x[:, 0] if starts is None else x
        if features_only:
            return x
        x = self.projected(x)
        if self.head == "embedding":
            return x
        if self.head == "choice":
            return self.classify(x, 1).reshape(-1, choices)
        return self.classify(x, self.labels)

    def encode(self, inputs: Inputs, starts_only: bool) -> tuple[Array, Array]:
        """Hidden states, of all positions or of those where examples start; the words' table."""
        c = self.config
        x, table = Embeddings(c, name="embeddings")(inputs)
        encoder = Stack(
            lambda cls, name, last: cls(c, last and starts_only, name=name),
            Layer,
            c.options.segments,
            c.options.remat,
            name="encoder",
        )
        x = encoder(x, inputs.view, inputs.starts)
        if starts_only and c.options.segments[-1] > 1:  # scanned layers compute all positions
            x = at_starts(x, inputs.starts)
        return x, table

    def pool(self, x: Array, inputs: Inputs) -> Array:
        """Each example's vector, (batch, 1 or examples, features), of what `encode` gave."""
        if self.pooling == "mean":
            return mean_pool(x, inputs.attention_mask, inputs.segment_ids, inputs.starts)
        if self.pooling == "entities":
            zeros = jnp.zeros(x.shape[:2], jnp.int32)
            entities = zeros if inputs.entities is None else inputs.entities
            return entity_pool(x, entities, inputs.segment_ids, inputs.starts)
        return x  # of first tokens alone

    def projected(self, x: Array) -> Array:
        """Float32 vectors after the Dense layers, if any."""
        for number, layer in enumerate(self.dense):
            dense = partial(Dense, layer.features, ("embed", None), layer.bias)
            x = dense(stddev=self.config.initializer_range, name=f"dense_{number}")(x)
            x = ACTIVATIONS[layer.activation](x) if layer.activation else x
        return x

    def classify(self, x: Array, labels: int) -> Array:
        c = self.config
        head = c.heads[self.head]
        if self.pooling != "cls":
            head = replace(head, activation=None)
        return classify(head, x, labels, c.initializer_range)

    def each_token(
        self, x: Array, table: Array, starts: Array | None, at_positions: Array | None = None
    ) -> Any:
        """What heads say of every position, and of masked words at those given."""
        c = self.config
        dense = partial(Dense, stddev=c.initializer_range)
        if self.head in ("tokens", "span"):
            x = Dropout(c.heads[self.head].dropout, name="dropout")(x)
            count = self.labels if self.head == "tokens" else 2
            return dense(count, ("embed", None), name="classifier")(x)
        masked = at_starts(x, at_positions) if at_positions is not None else x
        act = c.heads["masked_lm"].activation or c.hidden_act
        mlm = MaskedLM(act, c.norm_eps, c.initializer_range, c.tied, name="mlm")
        words = mlm(masked, table)
        if self.head == "masked_lm":
            return words
        first = at_starts(x, starts)
        pooled = jnp.tanh(dense(c.hidden_size, ("embed", None), name="pooler")(first))
        pooled = Dropout(c.heads[self.head].dropout, name="dropout")(pooled)
        follows = dense(2, ("embed", None), name="next_sentence")(pooled)
        return words, follows[:, 0] if starts is None else follows
